"""Non-zero medians of genes over data sets: `medians.zarr`.

Each file is cut into partitions of rows that only its size decides. A partition becomes one t-digest a gene; digests
of sixteen partitions, then of sixteen such groups and so on, are joined in flat merges, so that temporary files stay
small and the result is the same for any number of workers. The digest of each data set is kept: medians over all data
sets are one flat merge of these, and a new data set is added without reading the old ones.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from tqdm import tqdm

from data_shards.counts import CountOptions, CountSource, open_counts
from data_shards.digests import Digests, Partition, digest_partition
from data_shards.errors import DataError
from data_shards.exact import exact_medians
from data_shards.genes import GENE_TABLE_FILE, GeneTable, find_gene_ids
from data_shards.medians_file import (
    DATASETS,
    DIGEST_ARRAYS,
    GENES_FILE,
    SCHEMA,
    Medians,
    hash_digests,
    merged_medians,
    store_array,
)
from data_shards.output import hash_path, refuse_existing, whole_directory
from data_shards.parallel import Workers

PARTITION_CELLS = 8192
FAN_IN = 16

Say = Callable[[str], None]


def make_medians(
    paths: Sequence[Path],
    out: Path,
    options: CountOptions | None = None,
    gene_table: GeneTable | None = None,
    *,
    min_mapped: float = 0.5,
    workers: int = 1,
    exact: bool = False,
    add: bool = False,
    say: Say = print,
) -> Medians:
    """Medians of the genes of files, written to `out`.

    Args:
        paths: AnnData files; their stems name the data sets.
        out: a new `.zarr` directory, or with `add` the one to add to.
        options: how counts are read, for all files.
        gene_table: maps symbols; kept for the files that are tokenized later.
        min_mapped: share of a file's genes that must have Ensembl ids, if ids are Ensembl ids.
        workers: processes; the result does not depend on it.
        exact: exact medians (to float32) instead of digests; nothing can be added to these.
        add: add the files to the data sets of `out`.
        say: takes lines of the report.

    Raises:
        DataError: `out` exists, files that cannot be used together, or bad counts.
    """
    earlier = _earlier(out, exact, gene_table) if add else None
    if earlier is not None:
        gene_table = earlier.gene_table
    else:
        refuse_existing(out)
    check_names([*(earlier.datasets if earlier else ()), *(path.stem for path in paths)])
    datasets = []
    for path in paths:
        with open_counts(path, options) as counts:
            found = find_gene_ids(counts, gene_table, min_mapped)
            say(f"{counts.name}: {counts.n_cells:,} cells; {found.report}")
            datasets.append(_Dataset.of(path, counts.n_cells, found.kind, found.ids))
    _refuse_mixed(earlier, datasets)
    with (
        Workers(workers) as pool,
        whole_directory(out, replace=add) as folder,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
    ):
        if earlier is not None:
            shutil.copytree(out, folder, dirs_exist_ok=True)
        medians = _write(folder, Path(scratch), datasets, options or CountOptions(), gene_table, pool, exact)
    with_median = int((medians.counts > 0).sum())
    say(f"{out}: medians of {with_median:,} genes ({medians.method}) over {len(medians.datasets)} data sets")
    return medians


def check_names(names: Sequence[str]) -> None:
    """Refuse data sets of the same name, and names that cannot be those of a group."""
    for name in names:
        if name.startswith((".", "__")) or not name or name.endswith((".json", ".npy", ".parquet")):
            raise DataError(f"{name!r} cannot name a data set: rename the file")
        if names.count(name) > 1:
            raise DataError(f"two data sets are named {name!r} after their files: rename one of the files")


def _earlier(out: Path, exact: bool, gene_table: GeneTable | None) -> Medians:
    earlier = Medians.load(out)
    if exact or earlier.method == "exact":
        raise DataError(f"{out}: exact medians cannot be added to: make them again from all files, without --add")
    if gene_table is not None and (earlier.gene_table is None or earlier.gene_table.hash != gene_table.hash):
        raise DataError(f"{out}: was made with another gene table, or none: leave out --gene-table, or make it again")
    return earlier


@dataclass(frozen=True)
class _Dataset:
    """A file that is to be read, with its own sorted genes, and for each delivered gene its number there or -1."""

    path: Path
    n_cells: int
    kind: str
    genes: tuple[str, ...]
    numbers: npt.NDArray[np.int32]

    @classmethod
    def of(cls, path: Path, n_cells: int, kind: str, ids: Sequence[str | None]) -> "_Dataset":
        genes = tuple(sorted({gene for gene in ids if gene is not None}))
        number = {gene: i for i, gene in enumerate(genes)}
        numbers = np.array([-1 if gene is None else number[gene] for gene in ids], np.int32)
        return cls(path, n_cells, kind, genes, numbers)

    @property
    def name(self) -> str:
        return self.path.stem

    def partitions(
        self, source: CountSource, numbers: npt.NDArray[np.int32] | None = None, n_genes: int | None = None
    ) -> Iterator[Partition]:
        """Its ranges of cells, the genes in its own numbers or in others."""
        numbers = self.numbers if numbers is None else numbers
        for start in range(0, self.n_cells, PARTITION_CELLS):
            stop = min(start + PARTITION_CELLS, self.n_cells)
            yield Partition(source, start, stop, numbers, len(self.genes) if n_genes is None else n_genes)


def _refuse_mixed(earlier: Medians | None, datasets: Sequence[_Dataset]) -> None:
    kinds = {f"{dataset.name}: {dataset.kind}": dataset.kind for dataset in datasets}
    if earlier is not None:
        kinds[f"the medians so far: {earlier.kind}"] = earlier.kind
    if len(set(kinds.values())) > 1:
        raise DataError(
            f"gene ids of different kinds cannot be put together ({', '.join(kinds)}): make the medians of all files "
            "with --gene-table for symbols, or name the column of var with the same kind of ids with --gene-column"
        )


def _write(
    folder: Path,
    scratch: Path,
    datasets: Sequence[_Dataset],
    options: CountOptions,
    gene_table: GeneTable | None,
    workers: Workers,
    exact: bool,
) -> Medians:
    root = zarr.open_group(folder, mode="a")
    attrs: dict[str, Any] = dict(root.attrs)
    described: list[dict[str, Any]] = list(attrs.get("datasets", []))
    known = {}
    for entry in described:
        place = folder / DATASETS / entry["name"]
        # Its medians are about to be computed anew.
        if hash_digests(place) != entry["digests_hash"]:
            raise DataError(f"digests of {entry['name']} are damaged: make the medians again from all files")
        known[entry["name"]] = tuple(json.loads((place / GENES_FILE).read_text()))
    for dataset in datasets:
        place = folder / DATASETS / dataset.name
        group = root.create_group(f"{DATASETS}/{dataset.name}")
        (place / GENES_FILE).write_text(json.dumps(list(dataset.genes)) + "\n")
        known[dataset.name] = dataset.genes
        if not exact:
            # A copy by cell of counts that are stored by gene is gone before the next one is made.
            with open_counts(dataset.path, options) as counts:
                digests = _digest(dataset, counts.source, scratch / dataset.name, workers)
            for array in DIGEST_ARRAYS:
                store_array(group, array, getattr(digests, array))
        described.append(
            {
                "name": dataset.name,
                "n_cells": dataset.n_cells,
                "source_file": dataset.path.name,
                "source_hash": hash_path(dataset.path),
                "digests_hash": None if exact else hash_digests(place),
            }
        )
    genes = tuple(sorted(set().union(*known.values())))
    number = {gene: i for i, gene in enumerate(genes)}
    numbers = {name: np.array([number[gene] for gene in own], np.int32) for name, own in known.items()}
    if exact:
        with ExitStack() as opened:
            # All are read three times: copies by cell of all of them lie in TMPDIR at once.
            partitions = [
                partition
                for dataset in datasets
                for partition in dataset.partitions(
                    opened.enter_context(open_counts(dataset.path, options)).source,
                    _renumbered(dataset.numbers, numbers[dataset.name]),
                    len(genes),
                )
            ]
            values, counted = exact_medians(partitions, len(genes), workers)
    else:
        values, counted = merged_medians(root, numbers, len(genes))
    kind = datasets[0].kind
    (folder / GENES_FILE).write_text(json.dumps({"kind": kind, "genes": genes}, indent=0) + "\n")
    if gene_table is not None:
        gene_table.save(folder / GENE_TABLE_FILE)
    method = "exact" if exact else "t-digest"
    medians = Medians(kind, genes, values, counted, method, tuple(known), gene_table)
    store_array(root, "medians", values)
    store_array(root, "counts", counted)
    root.attrs.update(
        schema=SCHEMA,
        method=method,
        hash=medians.hash,
        gene_table=gene_table.hash if gene_table is not None else None,
        datasets=described,
    )
    return medians


def _renumbered(numbers: npt.NDArray[np.int32], new: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return np.where(numbers >= 0, new[numbers], -1).astype(np.int32)


def _digest(dataset: _Dataset, source: CountSource, scratch: Path, workers: Workers) -> Digests:
    """The digests of a data set, through a tree of flat merges whose shape only the number of cells decides."""
    partitions = list(dataset.partitions(source))
    own = np.arange(len(dataset.genes), dtype=np.int32)
    levels: list[list[Path]] = [[]]
    made = 0

    def add(digests: Digests, level: int) -> None:
        nonlocal made
        if level == len(levels):
            levels.append([])
        folder = scratch / str(made)
        made += 1
        digests.save(folder)
        levels[level].append(folder)
        if len(levels[level]) == FAN_IN:
            join(level)

    def join(level: int) -> None:
        folders, levels[level] = levels[level], []
        merged = Digests.merge([Digests.load(folder) for folder in folders], [own] * len(folders), len(own))
        for folder in folders:
            shutil.rmtree(folder)
        add(merged, level + 1)

    progress = tqdm(total=dataset.n_cells, desc=f"medians {dataset.name}", unit=" cells", disable=None)
    with progress:
        for partition, digests in zip(partitions, workers.map_in_order(digest_partition, partitions), strict=True):
            add(digests, 0)
            progress.update(partition.stop - partition.start)
    rest = [folder for folders in levels for folder in folders]
    return Digests.merge([Digests.load(folder) for folder in rest], [own] * len(rest), len(own))
