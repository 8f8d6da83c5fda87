"""What medians are made of: files that are to be read, cut into partitions, and an earlier medians file."""

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

#: A partition has at most this many cells and, unless it is one cell, stored entries.
PARTITION_CELLS = 32_768
PARTITION_ENTRIES = 1 << 25


@dataclass(frozen=True)
class EarlierMedians:
    """The medians that are added to: what is said of each data set, and its genes, by name."""

    path: Path
    kind: str
    gene_table: GeneTable | None
    described: tuple[dict[str, Any], ...]
    genes: dict[str, tuple[str, ...]]

    @classmethod
    def load(cls, path: Path, exact: bool, gene_table: GeneTable | None) -> "EarlierMedians":
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
            place = path / DATASETS / entry["name"]
            # Its medians are about to be computed anew.
            if hash_digests(place) != entry["digests_hash"]:
                raise DataError(f"{path}: digests of {entry['name']} are damaged: make it again from all files")
            genes[entry["name"]] = tuple(json.loads((place / GENES_FILE).read_text()))
        return cls(path, medians.kind, kept, tuple(described), genes)

    def require_unchanged(self) -> None:
        """Raise DataError if the medians are not those that were loaded."""
        Medians.load(self.path)
        if tuple(zarr.open_group(self.path, mode="r").attrs["datasets"]) != self.described:  # type: ignore[arg-type]
            raise DataError(f"{self.path}: another --add has changed it meanwhile: start again")


@dataclass(frozen=True)
class MediansSource:
    """A file that is to be read, with its own sorted genes, and for each delivered gene its number there or -1."""

    path: Path
    n_cells: int
    kind: str
    genes: tuple[str, ...]
    numbers: npt.NDArray[np.int32]

    @classmethod
    def of(cls, path: Path, n_cells: int, kind: str, ids: Sequence[str | None]) -> "MediansSource":
        genes = tuple(sorted({gene for gene in ids if gene is not None}))
        number = {gene: i for i, gene in enumerate(genes)}
        numbers = np.array([-1 if gene is None else number[gene] for gene in ids], np.int32)
        return cls(path, n_cells, kind, genes, numbers)

    @property
    def name(self) -> str:
        return self.path.stem

    def open(self, options: CountOptions, file: Fingerprint, work: Path) -> CountFile:
        """Open the file, with a copy by cell in `work` where its counts are stored by gene."""
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
        """Its ranges of cells, cut by what is stored of each cell, with the number of each delivered gene."""
        start = 0
        while start < self.n_cells:
            stop = min(start + PARTITION_CELLS, self.n_cells)
            ends = counts.stored_entries(start, stop).cumsum()
            stop = start + max(1, int(np.searchsorted(ends, PARTITION_ENTRIES, side="right")))
            yield Partition(counts.source, file, start, stop, int(ends[stop - start - 1]), numbers, n_genes)
            start = stop


def refuse_mixed(earlier: EarlierMedians | None, datasets: Sequence[MediansSource]) -> None:
    kinds = {f"{dataset.name}: {dataset.kind}": dataset.kind for dataset in datasets}
    if earlier is not None:
        kinds[f"the medians so far: {earlier.kind}"] = earlier.kind
    if len(set(kinds.values())) > 1:
        raise DataError(
            f"gene ids of different kinds cannot be put together ({', '.join(kinds)}): make the medians of all files "
            "with --gene-table for symbols, or name the column of var with the same kind of ids with --gene-column"
        )
    genes = {**(earlier.genes if earlier else {}), **{dataset.name: dataset.genes for dataset in datasets}}
    refuse_species_mixed({name: find_species(own) for name, own in genes.items()})
