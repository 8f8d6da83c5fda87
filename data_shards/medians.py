"""Non-zero medians of genes over data sets: `medians.zarr`.

Each file is cut into partitions of rows that only its size decides. A partition becomes one t-digest a gene; digests
of sixteen partitions, then of sixteen such groups and so on, are joined in flat merges, so that temporary files stay
small and the result is the same for any number of workers. The digest of each data set is kept: medians over all data
sets are one flat merge of these, and a new data set is added without reading the old ones.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from data_shards.output import hash_path, refuse_existing, whole_directory
from data_shards.parallel import map_in_order

SCHEMA = 1
PARTITION_CELLS = 16_384
FAN_IN = 16
_GENE_BLOCK = 2048
_GENES = "genes.json"
_GENE_TABLE = "gene_table.parquet"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Medians:
    """The medians of a `medians.zarr`.

    Attributes:
        kind: "ensembl" or "as-is".
        genes: gene ids, sorted, each once.
        medians: float64 (n_genes,), median of non-zero `count / total * 10,000`; NaN without a value.
        counts: int64 (n_genes,), non-zero values.
        method: "t-digest" or "exact".
        datasets: names.
        gene_table: maps the symbols of later files.
    """

    kind: str
    genes: tuple[str, ...]
    medians: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    method: str
    datasets: tuple[str, ...]
    gene_table: GeneTable | None

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of genes and medians."""
        digest = hashlib.sha256("\n".join([self.kind, *self.genes]).encode())
        digest.update(self.medians.astype("<f8").tobytes())
        return digest.hexdigest()

    @classmethod
    def load(cls, path: Path) -> "Medians":
        """Read a `medians.zarr`.

        Raises:
            DataError: it is missing, not a medians file, or damaged.
        """
        if not path.exists():
            raise DataError(f"{path}: no such medians file: make it with `gm-train data medians`")
        try:
            root = zarr.open_group(path, mode="r")
            attrs: dict[str, Any] = dict(root.attrs)
            names = json.loads((path / _GENES).read_text())
            medians = cls(
                kind=names["kind"],
                genes=tuple(names["genes"]),
                medians=_read(root, "medians"),
                counts=_read(root, "counts"),
                method=attrs["method"],
                datasets=tuple(dataset["name"] for dataset in attrs["datasets"]),
                gene_table=GeneTable.load(path / _GENE_TABLE) if attrs["gene_table"] else None,
            )
            if attrs["schema"] != SCHEMA or attrs["hash"] != medians.hash:
                raise DataError(f"{path}: damaged or of another version: make it again with `gm-train data medians`")
            return medians
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: not a medians file, or damaged ({error}): make it again with `gm-train data medians`"
            ) from error


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
        with whole_directory(out, replace=add) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
            if earlier is not None:
                shutil.copytree(out, folder, dirs_exist_ok=True)
            medians = _write(folder, Path(scratch), files, ids, gene_table, workers, exact)
    finally:
        for file in files:
            file.close()
    with_median = int((medians.counts > 0).sum())
    say(f"{out}: medians of {with_median:,} genes ({medians.method}) over {len(medians.datasets)} data sets")
    return medians


def dataset_name(path: Path) -> str:
    """The name of a file's data set: its stem."""
    return path.name.removesuffix(".h5ad").removesuffix(".zarr")


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
    workers: int,
    exact: bool,
) -> Medians:
    root = zarr.open_group(folder, mode="a")
    attrs: dict[str, Any] = dict(root.attrs)
    described: list[dict[str, Any]] = list(attrs.get("datasets", []))
    known = {entry["name"]: tuple(json.loads((folder / entry["name"] / _GENES).read_text())) for entry in described}
    datasets = [_dataset(file, found) for file, found in zip(files, ids, strict=True)]
    for dataset, found in zip(datasets, ids, strict=True):
        name = dataset.file.name
        group = root.create_group(name)
        if not exact:
            digests = _digest(dataset, scratch / name, workers)
            for array in ("means", "weights", "indptr", "counts"):
                _store(group, array, getattr(digests, array))
        (folder / name / _GENES).write_text(json.dumps(list(dataset.genes)) + "\n")
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
        values, counts = _merged_medians(root, numbers, len(genes))
    (folder / _GENES).write_text(json.dumps({"kind": ids[0].kind, "genes": genes}, indent=0) + "\n")
    if gene_table is not None:
        gene_table.save(folder / _GENE_TABLE)
    method = "exact" if exact else "t-digest"
    medians = Medians(ids[0].kind, genes, values, counts, method, tuple(known), gene_table)
    _store(root, "medians", values)
    _store(root, "counts", counts)
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


def _digest(dataset: _Dataset, scratch: Path, workers: int) -> Digests:
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
        for partition, digests in zip(partitions, map_in_order(digest_partition, partitions, workers), strict=True):
            add(digests, 0)
            progress.update(partition.stop - partition.start)
    rest = [folder for folders in levels for folder in folders]
    return Digests.merge([Digests.load(folder) for folder in rest], [own] * len(rest), len(own))


def _store(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    # zarr cannot make chunks of no elements.
    group.create_array(name, data=np.asarray(values), chunks=(min(max(1, len(values)), 1 << 20),), overwrite=True)


def _merged_medians(
    root: zarr.Group, numbers: dict[str, npt.NDArray[np.int32]], n_genes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Medians and counts over the digests of all data sets, a block of genes at a time."""
    medians, counts = np.full(n_genes, np.nan), np.zeros(n_genes, np.int64)
    for first in tqdm(range(0, n_genes, _GENE_BLOCK), desc="medians of all data sets", disable=None):
        last = min(first + _GENE_BLOCK, n_genes)
        parts, places = [], []
        for name, own in numbers.items():
            # A data set's genes are sorted as all genes are: those of a block stand together.
            low, high = (int(place) for place in np.searchsorted(own, [first, last]))
            group: Any = root[name]
            indptr = np.asarray(group["indptr"][low : high + 1])
            span = slice(int(indptr[0]), int(indptr[-1]))
            parts.append(
                Digests(group["means"][span], group["weights"][span], indptr - indptr[0], group["counts"][low:high])
            )
            places.append(own[low:high] - first)
        merged = Digests.merge(parts, places, last - first)
        medians[first:last], counts[first:last] = merged.medians(), merged.counts
    return medians, counts


def _read(group: Any, name: str) -> Any:
    return np.asarray(group[name][:])
