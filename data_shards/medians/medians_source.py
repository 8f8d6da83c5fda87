"""Input of medians: count files, cut into partitions, and the medians file to add to."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from data_shards.counts.count_file import CountFile, open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.counts.gene_ids import GeneTable
from data_shards.counts.species import find_species, refuse_species_mixed
from data_shards.errors import DataError
from data_shards.files.fingerprint import Fingerprint
from data_shards.medians.medians_file import DATASETS, GENES_FILE, Medians, hash_digests
from data_shards.medians.tdigest import Partition

#: Most cells of a partition, and most stored entries; a single cell may have more entries.
PARTITION_CELLS = 32_768
PARTITION_ENTRIES = 1 << 25


@dataclass(frozen=True)
class EarlierMedians:
    """The medians file to add to.

    Attributes:
        path: the file.
        kind: "ensembl" or "as-is".
        gene_table: its gene table; None if it has none.
        described: its attributes of each data set.
        genes: the sorted gene ids of each data set, by name.
    """

    path: Path
    kind: str
    gene_table: GeneTable | None
    described: tuple[dict[str, Any], ...]
    genes: dict[str, tuple[str, ...]]

    @classmethod
    def load(cls, path: Path, exact: bool, gene_table: GeneTable | None) -> "EarlierMedians":
        """Read a `medians.zarr` and check that data sets can be added to it.

        Args:
            path: the file.
            exact: whether exact medians are asked for, which cannot be added to.
            gene_table: the table that was asked for; None uses that of the file.

        Raises:
            DataError: it cannot be read or added to, its digests are damaged, or it has another gene table.
        """
        medians = Medians.load(path)
        if exact or medians.method == "exact":
            raise DataError(f"{path}: exact medians cannot be added to: make them again from all files, without --add")
        kept = medians.gene_table
        if gene_table is not None and (kept is None or kept.hash != gene_table.hash):
            raise DataError(
                f"{path}: was made with another gene table, or none: leave out --gene-table, or make it again"
            )
        described: Any = zarr.open_group(path, mode="r").attrs["datasets"]
        genes = {}
        for entry in described:
            folder = path / DATASETS / entry["name"]
            # All medians are computed again from these digests, and damage would spread to them.
            if hash_digests(folder) != entry["digests_hash"]:
                raise DataError(f"{path}: digests of {entry['name']} are damaged: make it again from all files")
            genes[entry["name"]] = tuple(json.loads((folder / GENES_FILE).read_text()))
        return cls(path, medians.kind, kept, tuple(described), genes)

    def require_unchanged(self) -> None:
        """Raise DataError if the file has changed since `load`."""
        Medians.load(self.path)
        if tuple(zarr.open_group(self.path, mode="r").attrs["datasets"]) != self.described:  # type: ignore[arg-type]
            raise DataError(f"{self.path}: another --add has changed it meanwhile: start again")


@dataclass(frozen=True)
class MediansSource:
    """A count file to read.

    Attributes:
        path: the file.
        n_cells: number of its cells.
        kind: kind of its gene ids, "ensembl" or "as-is".
        genes: its gene ids, sorted, each once.
        numbers: int32 (n_delivered,), for each gene as delivered its number in `genes`, or -1.
    """

    path: Path
    n_cells: int
    kind: str
    genes: tuple[str, ...]
    numbers: npt.NDArray[np.int32]

    @classmethod
    def of(cls, path: Path, n_cells: int, kind: str, ids: Sequence[str | None]) -> "MediansSource":
        """Sort and number the genes of a file.

        Args:
            path: the file.
            n_cells: number of its cells.
            kind: kind of its gene ids, "ensembl" or "as-is".
            ids: id of each gene as delivered; None for genes without one.
        """
        genes = tuple(sorted({gene for gene in ids if gene is not None}))
        number = {gene: i for i, gene in enumerate(genes)}
        numbers = np.array([-1 if gene is None else number[gene] for gene in ids], np.int32)
        return cls(path, n_cells, kind, genes, numbers)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.path.stem

    def open(self, options: CountOptions, file: Fingerprint, work: Path) -> CountFile:
        """Open the file.

        Args:
            options: how to read its counts.
            file: its fingerprint.
            work: folder for a by-cell copy, which is made if the counts are stored by gene; created if missing.

        Raises:
            DataError: the file cannot be read, or no longer has this fingerprint.
        """
        work.mkdir(exist_ok=True)
        counts = open_counts(self.path, options, work)
        try:
            source = counts.source
            try:
                file.require_unchanged()
            except DataError:
                if source.by_cell is not None:
                    shutil.rmtree(source.by_cell.path)
                raise
        except BaseException:
            counts.close()
            raise
        return counts

    def partitions(
        self, counts: CountFile, file: Fingerprint, numbers: npt.NDArray[np.int32], n_genes: int
    ) -> Iterator[Partition]:
        """Cut its cells into ranges, by the number of stored entries of each cell.

        Args:
            counts: the opened file.
            file: its fingerprint.
            numbers: int32 (n_delivered,), number of each gene as delivered, or -1.
            n_genes: one more than the largest possible number.
        """
        start = 0
        while start < self.n_cells:
            stop = min(start + PARTITION_CELLS, self.n_cells)
            ends = counts.stored_entries(start, stop).cumsum()
            stop = start + max(1, int(np.searchsorted(ends, PARTITION_ENTRIES, side="right")))
            yield Partition(counts.source, file, start, stop, int(ends[stop - start - 1]), numbers, n_genes)
            start = stop


def refuse_mixed(earlier: EarlierMedians | None, datasets: Sequence[MediansSource]) -> None:
    """Raise DataError if the data sets differ in the kind of their gene ids or in their species."""
    kinds = {f"{dataset.name}: {dataset.kind}": dataset.kind for dataset in datasets}
    if earlier is not None:
        kinds[f"the medians so far: {earlier.kind}"] = earlier.kind
    if len(set(kinds.values())) > 1:
        raise DataError(
            f"gene ids of different kinds cannot be combined ({', '.join(kinds)}): make the medians of all files "
            "with --gene-table for symbols, or name the column of var with the same kind of ids with --gene-column"
        )
    genes = {**(earlier.genes if earlier else {}), **{dataset.name: dataset.genes for dataset in datasets}}
    refuse_species_mixed({name: find_species(own) for name, own in genes.items()})
