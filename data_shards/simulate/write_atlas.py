"""Write a simulated atlas as `.h5ad`, a few thousand cells at a time."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

from data_shards.errors import OptionError
from data_shards.files.atomic import refuse_existing, whole_file
from data_shards.files.hdf5_output import Hdf5Output
from data_shards.simulate.atlas import CHUNK_CELLS, I64, draw_atlas, draw_cells, format_gmt
from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.simulate.regulation import format_regulation
from data_shards.workers.progress import Progress
from data_shards.workers.workers import Workers

#: Filters of HDF5 that every installation has.
COMPRESSIONS = ("lzf", "gzip", "none")


def regulation_path(out: Path) -> Path:
    """The table of an atlas's regulators and targets, beside its `.h5ad`."""
    return out.with_suffix(".regulation.tsv")


def write_atlas(out: Path, options: AtlasOptions, compression: str = "lzf", workers: int = 1) -> Path:
    """Write an atlas to `out` (`.h5ad`, counts as CSR), and beside it its programmes and who regulates whom, if any do.

    The same options give the same atlas. Memory does not grow with the number of cells.

    Args:
        out: path of the new `.h5ad`.
        options: what to simulate.
        compression: HDF5 filter of the counts, one of `COMPRESSIONS`.
        workers: processes that draw cells; the result does not depend on their number.

    Returns:
        The path of the GMT file.

    Raises:
        DataError: `out` does not end in `.h5ad`, the compression is unknown, or a file exists or cannot be written.
    """
    if compression not in COMPRESSIONS:
        raise OptionError(f"--compression {compression!r}: must be one of {', '.join(COMPRESSIONS)}")
    if out.suffix != ".h5ad":
        raise OptionError(f"{out}: an atlas is an AnnData file: name it {out.with_suffix('.h5ad').name}")
    gmt = out.with_suffix(".gmt")
    atlas = draw_atlas(options)
    gene_names = [f"GENE{i:05d}" for i in range(options.genes)]
    table = regulation_path(out)
    refuse_existing(table)  # also without regulators: a table of another atlas must not stand beside this one
    with ExitStack() as files:
        regulation_file = files.enter_context(whole_file(table)) if atlas.regulation is not None else None
        gmt_file, h5ad_file = files.enter_context(whole_file(gmt)), files.enter_context(whole_file(out))
        with Hdf5Output(h5ad_file, "w+") as output:
            try:
                with Workers(workers) as pool, h5py.File(output, "w") as file:
                    kind = None if compression == "none" else compression
                    for _ in _write_cells(file, options, gene_names, kind, pool):
                        output.check()
            finally:
                output.check()
        gmt_file.write_text(format_gmt(atlas, gene_names))
        if regulation_file is not None and atlas.regulation is not None:
            regulation_file.write_text(format_regulation(atlas.regulation, gene_names))
    return gmt


def _draw(options: AtlasOptions, first: int) -> tuple[I64, I64, sp.csr_matrix]:
    """Draw the chunk of cells that begins with cell `first`."""
    size = min(CHUNK_CELLS, options.cells - first)
    return draw_cells(draw_atlas(options), options, first // CHUNK_CELLS, size)


def _write_cells(
    file: h5py.File, options: AtlasOptions, gene_names: Sequence[str], compression: str | None, workers: Workers
) -> Iterator[None]:
    """Write the whole atlas to `file`; yield after each few thousand cells."""
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    matrix = file.create_group("X")
    matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    matrix.attrs["shape"] = np.array([options.cells, options.genes])
    arrays = {
        name: matrix.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1 << 16,), compression=compression)
        for name, dtype in (("data", "<f4"), ("indices", "<i4"), ("indptr", "<i8"))
    }
    _extend(arrays["indptr"], np.zeros(1, np.int64))
    obs = file.create_group("obs")
    columns = ["cell_type", "donor_id", "batch"]
    obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    obs.attrs["column-order"] = np.array(columns, dtype=object)
    names = obs.create_dataset("_index", (0,), h5py.string_dtype(), maxshape=(None,), chunks=(1 << 12,))
    names.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    codes = {}
    for column, text, size in zip(
        columns,
        ("type{:03d}", "donor{:03d}", "batch{:03d}"),
        (options.cell_types, options.donors, options.batches),
        strict=True,
    ):
        group = obs.create_group(column)
        group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        write_elem(group, "categories", np.array([text.format(i) for i in range(size)], dtype=object))
        codes[column] = group.create_dataset("codes", (0,), "<i2", maxshape=(None,), chunks=(1 << 14,))
        codes[column].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    batch_of = draw_atlas(options).batch_of
    starts = range(0, options.cells, CHUNK_CELLS)
    n_entries = 0
    with Progress(total=options.cells, desc="simulating", unit=" cells") as progress:
        drawn = workers.map_in_order(partial(_draw, options), starts)
        for first, (types, donors, counts) in zip(starts, drawn, strict=True):
            _extend(arrays["data"], counts.data)
            _extend(arrays["indices"], counts.indices)
            _extend(arrays["indptr"], counts.indptr[1:].astype(np.int64) + n_entries)
            n_entries += counts.nnz
            _extend(names, np.array([f"cell{i:08d}" for i in range(first, first + len(types))], dtype=object))
            for column, values in zip(columns, (types, donors, batch_of[donors]), strict=True):
                _extend(codes[column], values)
            progress.update(len(types))
            yield
    write_elem(file, "var", pd.DataFrame(index=pd.Index(gene_names)))
    for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        write_elem(file, name, {})


def _extend(dataset: h5py.Dataset, values: npt.NDArray[Any]) -> None:
    start = dataset.shape[0]
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values
