"""Simulated cells for the data benchmarks, as a file of counts and as a token store."""

from dataclasses import replace
from pathlib import Path

from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.simulate.write_atlas import write_atlas
from gm_train.bench.measure.turns import Say

TOP_K = 2048
#: With these, about 1,000 of the 20,000 genes are detected in a cell.
_GENES, _MOLECULES = 20_000, 2600.0


def atlas_options(n_cells: int) -> AtlasOptions:
    """Options of the simulator: 24 donors in 8 batches, 20 cell types in random order."""
    return AtlasOptions(
        cells=n_cells,
        genes=_GENES,
        cell_types=20,
        programmes=60,
        donors=24,
        batches=8,
        genes_per_programme=50,
        counts_per_cell=_MOLECULES,
    )


def simulated_counts(folder: Path, n_cells: int, compression: str, workers: int, say: Say, sort: bool = False) -> Path:
    """Simulate cells into `folder/COMPRESSION.h5ad`, unless the file exists.

    Args:
        folder: an existing folder.
        n_cells: number of cells.
        compression: of the counts: gzip, lzf or none.
        workers: processes that simulate.
        say: takes progress lines.
        sort: write the cells of one type next to each other.

    Returns:
        The path of the file.
    """
    path = folder / f"{compression}.h5ad"
    if not path.exists():
        say(f"simulating {n_cells:,} cells, {compression}")
        write_atlas(path, replace(atlas_options(n_cells), sorted=sort), compression, workers)
    return path


def store_of(h5ad: Path, folder: Path, workers: int, say: Say) -> Path:
    """Make `folder/store.zarr` from a file and the file's own medians, unless it exists. No cells are held out.

    Args:
        h5ad: counts.
        folder: existing folder for the medians and the store.
        workers: processes that prepare.
        say: takes progress lines.

    Returns:
        The path of the store.
    """
    medians, store = folder / "medians.zarr", folder / "store.zarr"
    if not medians.exists():
        say(f"medians of {h5ad.name}")
        make_medians([h5ad], medians, workers=workers, say=say)
    if not store.exists():
        say(f"token store of {h5ad.name}")
        make_store([h5ad], medians, store, top_k=TOP_K, splits=SplitOptions(by="none"), workers=workers, say=say)
    return store
