"""Files that a store is made from: match their genes to the vocabulary, and check that they did not change."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards.counts.count_file import CountFile, open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.counts.filters import BoundFilter, CellFilter
from data_shards.errors import DataError
from data_shards.files.fingerprint import Fingerprint
from data_shards.prepare.splits import SplitOptions, donor_codes
from data_shards.tokens.tokenizer import GeneColumns, Tokenizer

_CELLS = 1 << 16


@dataclass(frozen=True)
class SourceOptions:
    """How one file becomes a data set.

    Attributes:
        counts: how its counts are read.
        cells: which cells are left out.
        obs_columns: columns of obs that are kept; None keeps all.
        min_mapped: share of its genes that must have Ensembl ids, if ids are Ensembl ids.
    """

    counts: CountOptions
    cells: CellFilter
    obs_columns: tuple[str, ...] | None
    min_mapped: float

    def record(self) -> dict[str, Any]:
        """The options as JSON, under the manifest's keys."""
        return {
            "counts": asdict(self.counts),
            "filters": self.cells.record(),
            "obs_columns": None if self.obs_columns is None else list(self.obs_columns),
            "min_mapped": self.min_mapped,
        }


@dataclass(frozen=True, eq=False)
class Source:
    """A file that can be ranked.

    Attributes:
        path: the file.
        n_cells: number of its cells.
        options: how it becomes a data set.
        columns: its genes' numbers in the vocabulary.
        cells: which of its cells are left out.
        obs_columns: columns of obs that are kept, including `donor_key`.
        donor_key: column of obs with the donors; None if there is none or cells are not split by donor.
        donors: names of the donors if `--split-by donor` was asked for; else empty.
    """

    path: Path
    n_cells: int
    options: SourceOptions
    columns: GeneColumns
    cells: BoundFilter
    obs_columns: tuple[str, ...]
    donor_key: str | None
    donors: frozenset[str]

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.path.stem

    def record(self) -> dict[str, Any]:
        """Everything besides its content and the tokenizer that determines how it is ranked, as JSON."""
        numbers = hashlib.sha256(self.columns.numbers.astype("<i4").tobytes()).hexdigest()
        return {**self.options.record(), "obs_kept": list(self.obs_columns), "numbers": numbers}


def bind_source(
    path: Path, options: SourceOptions, tokenizer: Tokenizer, splits: SplitOptions
) -> tuple[Source, list[str]]:
    """Match a file to the vocabulary.

    Args:
        path: the file.
        options: how it becomes a data set.
        tokenizer: the store's tokenizer.
        splits: which cells are held out.

    Returns:
        The source, and lines of the report.

    Raises:
        DataError: the file cannot be used.
    """
    with open_counts(path, options.counts) as counts:
        columns = tokenizer.bind(counts, options.min_mapped)
        cells = options.cells.bind(counts, tokenizer.gene_table)
        donor_key = splits.find_donor_key(counts.name, counts.annotations.columns)
        kept = _kept_columns(counts, options.obs_columns)
        lines = [
            f"{counts.name}: {counts.n_cells:,} cells; {columns.report}; "
            f"{columns.found:,} of the {len(tokenizer.vocabulary.genes):,} genes of the vocabulary"
        ]
        if cells.mitochondrial is not None:
            lines.append(f"{counts.name}: {int(cells.mitochondrial.sum()):,} mitochondrial genes")
        if donor_key is not None and donor_key not in kept:
            kept = (*kept, donor_key)
            lines.append(f"{counts.name}: column {donor_key!r} of obs is kept too: cells are split by it")
        donors: set[str] = set()
        if splits.by == "donor" and donor_key is not None:
            for start in range(0, counts.n_cells, _CELLS):
                stop = min(start + _CELLS, counts.n_cells)
                donors.update(donor_codes(counts.read_obs(start, stop, [donor_key])[donor_key])[1])
        n_cells = counts.n_cells
    return Source(path, n_cells, options, columns, cells, kept, donor_key, frozenset(donors - {""})), lines


def _kept_columns(counts: CountFile, asked: tuple[str, ...] | None) -> tuple[str, ...]:
    columns = counts.annotations.columns
    for column in asked or ():
        if column not in columns:
            raise DataError(
                f"{counts.path}: no column {column!r} in obs: --obs-columns can name {', '.join(columns) or '(none)'}"
            )
    return tuple(columns if asked is None else dict.fromkeys(asked))


def refuse_changed(files: Sequence[Fingerprint], of_medians: Mapping[str, str]) -> list[str]:
    """Raise if a file is not the one that its medians were made from.

    Args:
        files: the files.
        of_medians: SHA-256 of the source file of each data set in the medians.

    Returns:
        Names of the data sets that the medians do not contain.

    Raises:
        DataError: a data set of the medians was made from another file.
    """
    unknown = []
    for file in files:
        expected = of_medians.get(file.path.stem)
        if expected is None:
            unknown.append(file.path.stem)
        elif expected != file.sha256:
            raise DataError(
                f"{file.path}: is not the file that the medians were made from (SHA-256 {file.sha256[:12]}…, "
                f"expected {expected[:12]}…): restore that file, or make the medians again"
            )
    return unknown
