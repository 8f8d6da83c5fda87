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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from tqdm import tqdm

from data_shards.counts import CountFile, CountOptions, open_counts
from data_shards.digests import Digests, Partition, digest_partition
from data_shards.errors import DataError
from data_shards.exact import exact_medians
from data_shards.genes import GeneIds, GeneTable, find_gene_ids
from data_shards.medians_file import GENE_TABLE_FILE, GENES_FILE, SCHEMA, Medians, merged_medians, store_array
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
    check_names([*(earlier.datasets if earlier else ()), *(dataset_name(path) for path in paths)])
    files = [open_counts(path, options) for path in paths]
    try:
        ids = [find_gene_ids(file, gene_table, min_mapped, earlier.kind if earlier else None) for file in files]
        for file, found in zip(files, ids, strict=True):
            say(f"{file.name}: {file.n_cells:,} cells; {found.report}")
        _refuse_mixed(files, ids)
        with (
            Workers(workers) as pool,
            whole_directory(out, replace=add) as folder,
            tempfile.TemporaryDirectory(dir=folder) as scratch,
        ):
            if earlier is not None:
                shutil.copytree(out, folder, dirs_exist_ok=True)
            medians = _write(folder, Path(scratch), files, ids, gene_table, pool, exact)
    finally:
        for file in files:
            file.close()
    with_median = int((medians.counts > 0).sum())
    say(f"{out}: medians of {with_median:,} genes ({medians.method}) over {len(medians.datasets)} data sets")
    return medians


def dataset_name(path: Path) -> str:
    """The name of a file's data set: its stem."""
    return path.stem


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


def _refuse_mixed(files: Sequence[CountFile], ids: Sequence[GeneIds]) -> None:
    kinds = {found.kind for found in ids}
    if len(kinds) > 1:
        listed = ", ".join(f"{file.name}: {found.kind}" for file, found in zip(files, ids, strict=True))
        raise DataError(f"gene ids of different kinds cannot be put together ({listed}): give --gene-table for symbols")


@dataclass(frozen=True)
class _Dataset:
    """A file that is being read, with its own sorted genes."""

    file: CountFile
    genes: tuple[str, ...]
    numbers: npt.NDArray[np.int32]

    def partitions(self) -> Iterator[Partition]:
        source = self.file.source
        for start in range(0, self.file.n_cells, PARTITION_CELLS):
            stop = min(start + PARTITION_CELLS, self.file.n_cells)
            yield Partition(source, start, stop, self.numbers, len(self.genes))


def _dataset(file: CountFile, found: GeneIds) -> _Dataset:
    genes = tuple(sorted({gene for gene in found.ids if gene is not None}))
    number = {gene: i for i, gene in enumerate(genes)}
    numbers = np.array([-1 if gene is None else number[gene] for gene in found.ids], np.int32)
    return _Dataset(file, genes, numbers)


def _write(
    folder: Path,
    scratch: Path,
    files: Sequence[CountFile],
    ids: Sequence[GeneIds],
    gene_table: GeneTable | None,
    workers: Workers,
    exact: bool,
) -> Medians:
    root = zarr.open_group(folder, mode="a")
    attrs: dict[str, Any] = dict(root.attrs)
    described: list[dict[str, Any]] = list(attrs.get("datasets", []))
    known = {entry["name"]: tuple(json.loads((folder / entry["name"] / GENES_FILE).read_text())) for entry in described}
    datasets = [_dataset(file, found) for file, found in zip(files, ids, strict=True)]
    for dataset, found in zip(datasets, ids, strict=True):
        name = dataset.file.name
        group = root.create_group(name)
        if not exact:
            digests = _digest(dataset, scratch / name, workers)
            for array in ("means", "weights", "indptr", "counts"):
                store_array(group, array, getattr(digests, array))
        (folder / name / GENES_FILE).write_text(json.dumps(list(dataset.genes)) + "\n")
        known[name] = dataset.genes
        described.append(
            {
                "name": name,
                "n_cells": dataset.file.n_cells,
                "source_file": dataset.file.path.name,
                "source_hash": hash_path(dataset.file.path),
                "genes_delivered": found.report.delivered,
                "genes_mapped": found.report.mapped,
            }
        )
    genes = tuple(sorted(set().union(*known.values())))
    number = {gene: i for i, gene in enumerate(genes)}
    numbers = {name: np.array([number[gene] for gene in own], np.int32) for name, own in known.items()}
    if exact:
        partitions = [
            Partition(p.source, p.start, p.stop, _renumbered(p.numbers, numbers[dataset.file.name]), len(genes))
            for dataset in datasets
            for p in dataset.partitions()
        ]
        values, counts = exact_medians(partitions, len(genes), workers)
    else:
        values, counts = merged_medians(root, numbers, len(genes))
    (folder / GENES_FILE).write_text(json.dumps({"kind": ids[0].kind, "genes": genes}, indent=0) + "\n")
    if gene_table is not None:
        gene_table.save(folder / GENE_TABLE_FILE)
    method = "exact" if exact else "t-digest"
    medians = Medians(ids[0].kind, genes, values, counts, method, tuple(known), gene_table)
    store_array(root, "medians", values)
    store_array(root, "counts", counts)
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


def _digest(dataset: _Dataset, scratch: Path, workers: Workers) -> Digests:
    """The digests of a data set, through a tree of flat merges whose shape only the number of cells decides."""
    partitions = list(dataset.partitions())
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

    progress = tqdm(total=dataset.file.n_cells, desc=f"medians {dataset.file.name}", unit=" cells", disable=None)
    with progress:
        for partition, digests in zip(partitions, workers.map_in_order(digest_partition, partitions), strict=True):
            add(digests, 0)
            progress.update(partition.stop - partition.start)
    rest = [folder for folders in levels for folder in folders]
    return Digests.merge([Digests.load(folder) for folder in rest], [own] * len(rest), len(own))
