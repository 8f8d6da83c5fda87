"""Summarise the content of a store, in numbers and in text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_shards.counts.gene_ids import GeneReport
from data_shards.files.location import Location, location_of
from data_shards.hashing import mix64
from data_shards.rows.packing import arrange
from data_shards.rows.store_reader import StoreReader
from data_shards.store.arrays import open_array
from data_shards.store.manifest import DatasetEntry, Manifest
from data_shards.tokens.vocabulary import FIRST_GENE
from data_shards.workers.progress import Progress

I64 = npt.NDArray[np.int64]
#: Cells whose lengths are read at a time.
_STEP = 1 << 20
#: Cells of the samples that are packed, or whose tokens are read.
_SAMPLE = 8192
#: Approximate defaults of training: cells that are packed together, and tokens of a pool.
_GROUP_CELLS, _POOL_TOKENS = 1024, 1 << 20


@dataclass(frozen=True, eq=False)
class StoreSummary:
    """The manifest of a store and the lengths of its cells.

    Attributes:
        path: path or URL of the store.
        manifest: its manifest.
        lengths: for each data set int64 (top_k + 1,), the number of cells of each length in tokens.
    """

    path: Location
    manifest: Manifest
    lengths: tuple[I64, ...]

    @classmethod
    def read(cls, store: str | Location) -> "StoreSummary":
        """Read the manifest and the lengths of all cells.

        Raises:
            DataError: there is no store, or it is damaged.
        """
        path = location_of(store)
        manifest = Manifest.load(path)
        lengths_of_sets = []
        with Progress(total=manifest.n_cells, desc="lengths of cells", unit=" cells") as progress:
            for entry in manifest.datasets:
                lengths = np.zeros(manifest.top_k + 1, np.int64)
                indptr = open_array(path, entry.name, "indptr")
                for first in range(0, entry.n_cells, _STEP):
                    bounds = indptr.read(first, min(first + _STEP, entry.n_cells) + 1)
                    lengths += np.bincount(np.diff(bounds), minlength=len(lengths))
                    progress.update(len(bounds) - 1)
                lengths_of_sets.append(lengths)
        return cls(path, manifest, tuple(lengths_of_sets))

    @property
    def all_lengths(self) -> I64:
        """Number of cells of each length in all data sets together: int64 (top_k + 1,)."""
        cells: I64 = np.sum(self.lengths, axis=0, dtype=np.int64)
        return cells

    @property
    def longest(self) -> int:
        """Number of tokens of the longest cell."""
        return int(np.flatnonzero(self.all_lengths).max())

    def fill(self, row_length: int) -> tuple[float, float]:
        """Share of a row's positions that hold a token: with one cell a row, and with cells packed into rows.

        The packed share is estimated from a few thousand cells, at even steps through the cells sorted by length.
        """
        cells = self.all_lengths
        numbers = (np.arange(_SAMPLE) + 0.5) / _SAMPLE * cells.sum()
        sample = np.searchsorted(cells.cumsum(), numbers, side="right").astype(np.int64)
        hashes = mix64(np.arange(_SAMPLE, dtype=np.uint64))
        n_groups = max(_SAMPLE // _GROUP_CELLS, round(int(sample.sum()) / _POOL_TOKENS))
        _, cells_of_row = arrange(sample, hashes, np.zeros(n_groups, np.uint64), row_length)
        rows = len(cells_of_row)
        return float(sample.mean() / row_length), float(sample.sum() / (rows * row_length))

    def gene_shares(self) -> tuple[npt.NDArray[np.float64], int]:
        """Share of the cells of some blocks that have each gene among their tokens.

        Returns:
            The shares, float64 (n_genes,), descending, and the number of cells read.

        Raises:
            DataError: a chunk is damaged.
        """
        reader = StoreReader(self.path)
        n_blocks = max(1, _SAMPLE // self.manifest.block_cells)
        numbers = np.unique(np.linspace(0, sum(self.manifest.n_blocks) - 1, n_blocks).astype(np.int64))
        counts, cells = np.zeros(self.manifest.n_genes, np.int64), 0
        for number in numbers:
            (block,) = reader.read([int(number)])
            counts += np.bincount(block.tokens.astype(np.int64) - FIRST_GENE, minlength=len(counts))
            cells += len(block.indptr) - 1
        return np.sort(counts / cells)[::-1], cells

    def describe(self) -> list[str]:
        """Describe the data sets, lengths, splits and hashes, in lines of text."""
        manifest = self.manifest
        mean, longest = manifest.n_tokens / manifest.n_cells, self.longest
        lines = [
            f"{self.path}",
            f"  cells        {manifest.n_cells:,}",
            f"  tokens       {manifest.n_tokens:,}",
            f"  genes        {manifest.n_genes:,} ({manifest.kind} ids)",
            f"  top-k        {manifest.top_k:,}" + (", dithered counts" if manifest.dither else ""),
            f"  tokens/cell  {_lengths(self.all_lengths)}",
            f"  packing      into rows of {longest:,} leaves {1 - self.fill(longest)[1]:.1%} of their positions empty; "
            f"padding each cell to that would leave {1 - mean / longest:.1%}",
            f"  blocks       of {manifest.block_cells} cells",
            f"  vocabulary   {manifest.vocabulary_hash}",
            f"  medians      {manifest.medians_hash}, of "
            + (f"the medians file {manifest.medians_file_hash}" if manifest.medians_file_hash else "a model (--like)"),
            f"  store        {manifest.hash}",
        ]
        if manifest.values:
            count = "dithered count" if manifest.dither else "count"
            lines.append(f"  values       {count} / total * 10,000 / median of each token, float32")
        for flag, key in (("--genes     ", "genes_file"), ("--deny-genes", "deny_file")):
            if manifest.options.get(key) is not None:
                lines.append(f"  {flag} {manifest.options[key]}, SHA-256 {manifest.options[f'{key}_hash']}")
        for entry, lengths in zip(manifest.datasets, self.lengths, strict=True):
            lines += _describe(entry, lengths)
        return lines


def _describe(entry: DatasetEntry, lengths: I64) -> list[str]:
    how = {
        "donor": f"whole donors ({entry.donor_key})",
        "dataset": "whole data sets",
        "cell": "single cells, weaker than donors",
        "none": "none held out",
    }
    return [
        f"  {entry.name}",
        *(_imported(entry, entry.imported) if entry.imported else _ranked(entry)),
        f"    cells      {entry.n_cells:,}, {entry.n_tokens:,} tokens",
        f"    lengths    {_lengths(lengths)}",
        f"    splits     {entry.n_train:,} training, {entry.n_validation:,} validation, {entry.n_test:,} test, "
        f"by {how[entry.split_by]}",
        f"    content    {entry.content_hash}",
    ]


def _ranked(entry: DatasetEntry) -> list[str]:
    """Where the cells of a data set come from that was ranked from counts."""
    read = ", ".join(f"{key}={value}" for key, value in entry.counts.items() if value not in (None, False)) or "X"
    examples = tuple(entry.genes["unknown_examples"])
    numbers = {key: value for key, value in entry.genes.items() if key not in ("in_vocabulary", "unknown_examples")}
    report = GeneReport(**numbers, unknown_examples=examples)
    return [
        f"    from       {entry.source_file} ({read}): {entry.source_cells:,} cells, "
        f"{entry.filtered_cells:,} filtered, {entry.empty_cells:,} without a token",
        f"    genes      {report}; {entry.genes['in_vocabulary']:,} of the vocabulary",
    ]


def _imported(entry: DatasetEntry, imported: dict[str, Any]) -> list[str]:
    """Where the cells of a data set come from that was imported already ranked."""
    n_files = len(imported["files"])
    return [
        f"    imported   {entry.source_file} ({n_files:,} files, ranked already): {entry.source_cells:,} cells, "
        f"{entry.empty_cells:,} without a token",
        f"    genes      {entry.genes['in_vocabulary']:,} of the vocabulary; tokens of {imported['tokens']['file']}, "
        f"medians of {imported['medians']['file']}",
        f"    dropped    {sum(imported['dropped'].values()):,} tokens",
    ]


def _lengths(cells: I64) -> str:
    """Mean, quantiles and maximum of the tokens of a cell, from the number of cells of each length."""
    cumulative = cells.cumsum()
    low, median, high = (int(np.searchsorted(cumulative, share * cumulative[-1])) for share in (0.05, 0.5, 0.95))
    mean = float(cells @ np.arange(len(cells)) / cumulative[-1])
    longest = int(np.flatnonzero(cells).max())
    return f"mean {mean:,.0f}, median {median:,}, 5 % to 95 %: {low:,} to {high:,}, longest {longest:,}"
