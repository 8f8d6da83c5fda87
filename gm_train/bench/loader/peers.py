"""Other loaders of single cells, each set up as its documentation says, for random order in one process.

They deliver counts. Some need a copy of the `.h5ad` in a format of their own; it is made at the first start. Each
loader is imported where it is used, since none of them has to be installed.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scipy.sparse as sp

#: Cells per batch.
BATCH = 256
_SCDATASET_FETCH = 16  # batches that scDataset reads at once: its default
_SOMA_READ = 8192  # cells that tiledbsoma-ml reads at once; with the default, 65,536, a read would exceed a turn

Batches = Iterator[sp.csr_matrix]


@dataclass(frozen=True)
class Peer:
    """A loader from another project.

    Attributes:
        name: name in tables.
        modules: modules that it imports.
        batches: takes the `.h5ad` and a folder for a copy; yields endless batches of counts in random order.
    """

    name: str
    modules: tuple[str, ...]
    batches: Callable[[Path, Path], Batches]

    def missing(self) -> list[str]:
        """List the modules that are not installed."""
        return [module for module in self.modules if not _is_installed(module)]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is not installed
        return False


def _annbatch(h5ad: Path, folder: Path) -> Batches:
    import zarr
    from annbatch import DatasetCollection, Loader

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    copy = folder / "annbatch.zarr"
    if not copy.exists():
        DatasetCollection(copy).add_adatas([h5ad], shuffle=True)

    def load_counts(group: Any) -> Any:
        import anndata as ad

        return ad.AnnData(X=ad.io.sparse_dataset(group["X"]))

    loader: Any = Loader(batch_size=BATCH, shuffle=True, preload_to_gpu=False)
    loader.use_collection(DatasetCollection(copy, mode="r"), load_adata=load_counts)
    while True:
        for batch in loader:
            yield batch["X"]


def _scdataset(h5ad: Path, block_size: int) -> Batches:
    import anndata as ad
    from scdataset import BlockShuffling, scDataset

    def fetch(data: Any, cells: Any) -> Any:
        return data.X[cells]

    data = ad.read_h5ad(h5ad, backed="r")
    order = BlockShuffling(block_size=block_size)
    loader = scDataset(data, order, batch_size=BATCH, fetch_factor=_SCDATASET_FETCH, fetch_callback=fetch)
    while True:
        for batch in loader:
            yield sp.csr_matrix(batch)


def _scdataset_16(h5ad: Path, folder: Path) -> Batches:
    return _scdataset(h5ad, 16)


def _scdataset_1(h5ad: Path, folder: Path) -> Batches:
    return _scdataset(h5ad, 1)


def _scdl(h5ad: Path, folder: Path) -> Batches:
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset
    from bionemo.scdl.util.torch_dataloader_utils import collate_sparse_matrix_batch
    from torch.utils.data import DataLoader

    copy = folder / "scdl"
    if copy.exists():
        data = SingleCellMemMapDataset(str(copy))
    else:
        data = SingleCellMemMapDataset(str(copy), str(h5ad), use_X_not_raw=True)
        data.save()
    n_genes = data.number_of_variables()[0]
    loader: Any = DataLoader(data, batch_size=BATCH, shuffle=True, collate_fn=collate_sparse_matrix_batch)
    while True:
        for batch in loader:
            arrays = (batch.values().numpy(), batch.col_indices().numpy(), batch.crow_indices().numpy())
            yield sp.csr_matrix(arrays, (batch.shape[0], n_genes))


def _annloader(h5ad: Path, folder: Path) -> Batches:
    import anndata as ad
    from anndata.experimental import AnnLoader

    loader: Any = AnnLoader(
        ad.read_h5ad(h5ad, backed="r"),
        batch_size=BATCH,
        shuffle=True,
        use_default_converter=False,
    )
    while True:
        for batch in loader:
            yield sp.csr_matrix(batch.X)


def _tiledbsoma(h5ad: Path, folder: Path) -> Batches:
    import tiledbsoma
    import tiledbsoma.io
    from tiledbsoma_ml import ExperimentDataset

    copy = folder / "soma"
    if not copy.exists():
        tiledbsoma.io.from_h5ad(str(copy), str(h5ad), measurement_name="RNA")
    with tiledbsoma.Experiment.open(str(copy)) as experiment, experiment.axis_query("RNA") as query:
        data = ExperimentDataset(
            query, layer_name="data", batch_size=BATCH, io_batch_size=_SOMA_READ, shuffle=True, return_sparse_X=True
        )
    while True:
        for counts, _ in data:
            yield sp.csr_matrix(counts)


#: In the order of tables.
PEERS = (
    Peer("annbatch", ("annbatch", "zarrs"), _annbatch),
    Peer("scDataset, blocks of 16", ("scdataset", "torch"), _scdataset_16),
    Peer("scDataset, blocks of 1", ("scdataset", "torch"), _scdataset_1),
    Peer("bionemo-scdl", ("bionemo.scdl", "torch"), _scdl),
    Peer("AnnLoader", ("anndata", "torch"), _annloader),
    Peer("tiledbsoma-ml", ("tiledbsoma_ml", "torch"), _tiledbsoma),
)
