"""Filters that decide which cells are kept."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from data_shards.counts.count_file import CountFile
from data_shards.counts.count_loops import cell_totals
from data_shards.counts.gene_ids import GeneTable, ensembl_id
from data_shards.errors import DataError, OptionError

#: Columns of `var` that hold symbols in files of Cell Ranger, scanpy and CELLxGENE.
_SYMBOL_COLUMNS = ("feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_short_name")
_MITOCHONDRIAL = ("MT-", "mt-")


@dataclass(frozen=True)
class CellFilter:
    """Limits that a cell must meet to be kept; counts are those of all genes as delivered.

    Attributes:
        min_genes: smallest number of detected genes.
        min_counts: smallest total count.
        max_mito: largest share (0 to 1) of a cell's counts in mitochondrial genes; None for no limit.
        where: boolean columns of obs that must be true.
    """

    min_genes: int = 0
    min_counts: float = 0.0
    max_mito: float | None = None
    where: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_genes < 0:
            raise OptionError(f"--min-genes {self.min_genes}: must be at least 0")
        if not self.min_counts >= 0:
            raise OptionError(f"--min-counts {self.min_counts:g}: must be at least 0")

    def bind(self, counts: CountFile, table: GeneTable | None) -> "BoundFilter":
        """Make the filter for one file.

        Raises:
            DataError: a column of `where` is missing or not boolean, or no mitochondrial gene is recognised.
        """
        columns = counts.annotations.columns
        for column in self.where:
            if column not in columns:
                raise DataError(f"{counts.path}: no column {column!r} in obs: --where can be one of {_text(columns)}")
            if not pd.api.types.is_bool_dtype(counts.read_obs(0, 1, [column])[column]):
                boolean = [name for name in columns if _is_boolean(counts, name)]
                raise DataError(
                    f"{counts.path}: column {column!r} of obs is not boolean: --where can be one of {_text(boolean)}"
                )
        mitochondrial = None if self.max_mito is None else _mitochondrial(counts, table)
        return BoundFilter(self, mitochondrial)

    def record(self) -> dict[str, Any]:
        """The limits as JSON."""
        return {**asdict(self), "where": list(self.where)}


@dataclass(frozen=True, eq=False)
class BoundFilter:
    """A filter for one file.

    Attributes:
        options: the limits.
        mitochondrial: float64 (n_delivered,), 1 for mitochondrial genes, else 0; None without `max_mito`.
    """

    options: CellFilter
    mitochondrial: npt.NDArray[np.float64] | None

    def keep(self, counts: sp.csr_matrix, obs: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Decide which cells are kept: bool (n_cells,).

        Args:
            counts: csr_matrix (n_cells, n_delivered), float64, without zeros.
            obs: the annotations of the same cells, with the columns of `where`.
        """
        kept = np.diff(counts.indptr) >= self.options.min_genes
        if self.options.min_counts > 0 or self.mitochondrial is not None:
            totals = cell_totals(counts.indptr, counts.data)
            kept &= totals >= self.options.min_counts
        if self.mitochondrial is not None:
            assert self.options.max_mito is not None
            kept &= counts @ self.mitochondrial <= self.options.max_mito * totals
        for column in self.options.where:
            kept &= obs[column].astype("boolean").fillna(False).to_numpy(bool)
        return np.asarray(kept, bool)


def _mitochondrial(counts: CountFile, table: GeneTable | None) -> npt.NDArray[np.float64]:
    columns = [list(counts.var[name]) for name in _SYMBOL_COLUMNS if name in counts.var.columns]
    for symbols in (counts.gene_names, list(counts.var.index), *columns):
        found = [str(symbol).startswith(_MITOCHONDRIAL) for symbol in symbols]
        if any(found):
            return np.array(found, np.float64)
    if table is not None:
        known = {
            gene for gene, symbol in zip(table.ids, table.symbols, strict=True) if symbol.startswith(_MITOCHONDRIAL)
        }
        for ids in (counts.gene_names, list(counts.var.index)):
            found = [ensembl_id(str(name)) in known for name in ids]
            if any(found):
                return np.array(found, np.float64)
    raise DataError(
        f"{counts.path}: --max-mito: no mitochondrial gene (MT-…) recognised among its {counts.n_genes:,} genes: add "
        f"their symbols to var as {_SYMBOL_COLUMNS[0]!r}, make the medians with --gene-table, or leave out --max-mito"
    )


def _is_boolean(counts: CountFile, column: str) -> bool:
    return bool(pd.api.types.is_bool_dtype(counts.read_obs(0, 1, [column])[column]))


def _text(columns: Sequence[str]) -> str:
    return ", ".join(columns) or "(none)"
