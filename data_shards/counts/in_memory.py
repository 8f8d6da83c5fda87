"""Read the counts of an AnnData in memory with the same checks as those of a file."""

import io
from pathlib import Path

import anndata as ad
import h5py
import pandas as pd
from anndata.io import write_elem

from data_shards.counts.count_file import CountFile, open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.counts.gene_ids import ID_COLUMNS
from data_shards.errors import DataError

#: Stands for the file's name in messages.
_NAME = "AnnData in memory"


def counts_in_memory(cells: ad.AnnData, options: CountOptions | None = None) -> CountFile:
    """Open the counts of an AnnData in memory. They are copied, into a file in memory; annotations of cells are not.

    Args:
        cells: the cells, also a view or backed by a file.
        options: where its counts are.

    Raises:
        DataError: there is no cell or no gene, or it lacks the matrix named by the options.
    """
    options = options or CountOptions()
    where, matrix, var = "X", cells.X, cells.var
    if options.layer is not None:
        if options.layer not in cells.layers:
            names = ", ".join(sorted(cells.layers)) or "(none)"
            raise DataError(f"{_NAME}: no layer {options.layer!r}: the layer can be one of: {names}")
        where, matrix = f"layers/{options.layer}", cells.layers[options.layer]
    elif options.raw:
        if cells.raw is None:
            raise DataError(f"{_NAME}: has no raw counts: leave raw out or name a layer")
        where, matrix, var = "raw/X", cells.raw.X, cells.raw.var
    file = h5py.File(io.BytesIO(), "w")
    try:
        if matrix is not None:
            write_elem(file, where, matrix[:] if cells.isbacked else matrix)
        write_elem(file, "obs", pd.DataFrame(index=cells.obs_names.astype(str)))
        names_and_ids = [name for name in (*ID_COLUMNS, options.gene_column) if name in var.columns]
        frame = pd.DataFrame({name: _as_text(var[name]) for name in names_and_ids}, index=var.index.rename(None))
        write_elem(file, "raw/var" if options.raw else "var", frame)
        if options.raw:
            write_elem(file, "var", pd.DataFrame(index=cells.var_names.astype(str)))
        return open_counts(Path(_NAME), options, root=file)
    except BaseException:
        file.close()
        raise


def _as_text(column: pd.Series) -> list[str]:
    """The ids of a column as text, so that columns of any type can be stored; missing ones are empty, as in a file."""
    return ["" if pd.isna(value) else str(value) for value in column]
