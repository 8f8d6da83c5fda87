"""Make `medians.zarr`: the non-zero medians of genes over data sets.

Each file is cut into partitions of rows; only its content decides where. A partition becomes one t-digest per gene.
The digests of sixteen partitions are joined in one flat merge, then those of sixteen such groups, and so on: temporary
files stay small, and the result is the same for any number of workers. Finished digests are parts in a work folder, so
that a killed run can be resumed. `medians.zarr` keeps the digest of each data set. The medians over all data sets are
one flat merge of these, and a new data set is added without reading the old ones.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from data_shards.counts.count_file import open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.counts.gene_ids import GENE_TABLE_FILE, GeneTable, find_gene_ids
from data_shards.files.atomic import refuse_existing, whole_directory
from data_shards.files.fingerprint import Fingerprint, read_fingerprints, state_of
from data_shards.files.names import check_names
from data_shards.files.work_folder import parts_folder, refuse_again, work_folder
from data_shards.medians.exact_medians import exact_medians
from data_shards.medians.medians_file import (
    DATASETS,
    GENES_FILE,
    SCHEMA,
    Medians,
    StoreTask,
    merged_medians,
    store_array,
    store_digests,
)
from data_shards.medians.medians_source import EarlierMedians, MediansSource, refuse_mixed
from data_shards.medians.tdigest import Partition, scratch
from data_shards.medians.tdigest_parts import DigestTask
from data_shards.medians.tdigest_tree import digest_dataset, digested_part
from data_shards.workers.progress import Progress
from data_shards.workers.workers import Steps, Workers

#: Version of how files are cut, what parts hold and how they are merged. Parts of another version are not reused.
_PARTS = 3

Say = Callable[[str], None]


def make_medians(
    paths: Sequence[Path],
    out: Path,
    options: CountOptions | None = None,
    gene_table: GeneTable | None = None,
    *,
    min_mapped: float = 0.5,
    workers: int = 1,
    dask: str | None = None,
    exact: bool = False,
    add: bool = False,
    say: Say = print,
) -> Medians:
    """Compute the medians of the genes of files and write them to `out`.

    The same files give the same bytes: in any order, for any number and kind of workers, whether added later or all at
    once, and after any number of killed runs.

    Args:
        paths: AnnData files; their stems name the data sets.
        out: a new `.zarr` directory, or with `add` the one to add to.
        options: how to read the counts of all files.
        gene_table: maps symbols to Ensembl ids; it is kept in `out` for files that are tokenized later.
        min_mapped: share of a file's genes (0 to 1) that must map to Ensembl ids, unless ids are used as they are.
        workers: number of processes on this machine.
        dask: address of a Dask scheduler whose workers are used instead; they must see the files and `out` under the
            same paths.
        exact: compute exact medians (to float32) instead of digests; nothing can be added to these later.
        add: add the files to the data sets of `out`.
        say: called with each line of the report.

    Raises:
        DataError: `out` exists, files cannot be used together, counts are bad, a file changes while it is read, or a
            worker dies.
    """
    options = options or CountOptions()
    # `out` may be a link to another disk: with `add`, the work folder must lie beside its target.
    out = out.resolve() if add else out.absolute()
    paths = sorted((path.absolute() for path in paths), key=lambda path: path.stem)
    earlier = EarlierMedians.load(out, exact, gene_table) if add else None
    if earlier is not None:
        gene_table = earlier.gene_table
    else:
        refuse_existing(out)
    check_names([path.stem for path in paths])
    for path in paths:
        if earlier is not None and path.stem in earlier.genes:
            refuse_again(out, path.stem)
    datasets, states = [], {}
    for path in paths:
        states[path.stem] = state_of(path)
        with open_counts(path, options) as counts:
            gene_ids = find_gene_ids(counts, gene_table, min_mapped)
            say(f"{counts.name}: {counts.n_cells:,} cells; {gene_ids.report}")
            datasets.append(MediansSource.of(path, counts.n_cells, gene_ids.kind, gene_ids.ids))
    refuse_mixed(earlier, datasets)
    with Workers(workers, dask, say) as pool:
        files = {file.path.stem: file for file in read_fingerprints(paths, pool)}
        for name, file in files.items():
            file.require_state(states[name])
        identity = {
            "parts": _PARTS,
            "files": {name: file.sha256 for name, file in files.items()},
            "options": asdict(options),
            "gene_table": gene_table.hash if gene_table is not None else None,
            "exact": exact,
        }
        with work_folder(out, identity, say) as work, whole_directory(out, replace=add) as folder:
            if earlier is not None:
                earlier.require_unchanged()
            parts = parts_folder(work)
            parts.mkdir(exist_ok=True)
            make = _make_exact if exact else _make_digests
            medians = make(folder, parts, datasets, files, earlier, options, gene_table, pool)
    with_median = int((medians.counts > 0).sum())
    say(f"{out}: medians of {with_median:,} genes ({medians.method}) over {len(medians.datasets)} data sets")
    return medians


def _make_digests(
    folder: Path,
    work: Path,
    datasets: Sequence[MediansSource],
    files: dict[str, Fingerprint],
    earlier: EarlierMedians | None,
    options: CountOptions,
    gene_table: GeneTable | None,
    workers: Workers,
) -> Medians:
    """Digest the new data sets, copy the digests of earlier ones, and merge all of them."""
    n_cells = sum(dataset.n_cells for dataset in datasets)
    with Progress(total=n_cells, desc="medians", unit=" cells") as progress:
        jobs = (_digest(dataset, files[dataset.name], work, options, workers, progress) for dataset in datasets)
        try:
            for task in workers.run(jobs):
                if isinstance(task, DigestTask):
                    progress.update(task.partition.stop - task.partition.start)
        finally:
            scratch.forget()  # with one worker this process digests; it may need the memory for other work
    genes = {dataset.name: dataset.genes for dataset in datasets}
    described = {dataset.name: _describe(dataset, files[dataset.name]) for dataset in datasets}
    root = zarr.create_group(folder)
    root.create_group(DATASETS)
    stores = [StoreTask(digested_part(work / name), own, folder / DATASETS / name) for name, own in genes.items()]
    for task, digests_hash in zip(stores, workers.map_in_order(store_digests, stores), strict=True):
        described[task.out.name]["digests_hash"] = digests_hash
    for unfinished in (folder / DATASETS).glob(".*"):  # left by a worker that died
        shutil.rmtree(unfinished, ignore_errors=True)
    if earlier is not None:
        for entry in earlier.described:
            shutil.copytree(earlier.path / DATASETS / entry["name"], folder / DATASETS / entry["name"])
            described[entry["name"]] = entry
        genes.update(earlier.genes)
    names = tuple(sorted(genes))
    union, numbers = _number({name: genes[name] for name in names})
    values, counted = merged_medians(folder, numbers, len(union), workers)
    kind = datasets[0].kind
    medians = Medians(kind, union, values, counted, "t-digest", names, gene_table)
    _finish(folder, medians, [described[name] for name in names])
    return medians


def _digest(
    dataset: MediansSource, file: Fingerprint, work: Path, options: CountOptions, workers: Workers, progress: Progress
) -> Steps:
    """Yield the steps that digest a data set; parts that an earlier run finished are not made again."""
    parts = work / dataset.name
    if digested_part(parts).exists():
        progress.update(dataset.n_cells)
        return
    with dataset.open(options, file, parts) as counts:
        by_cell = counts.source.by_cell
        partitions = list(dataset.partitions(counts, file, dataset.numbers, len(dataset.genes)))
    yield from digest_dataset(partitions, parts, workers, progress)
    if by_cell is not None:
        shutil.rmtree(by_cell.path)


def _make_exact(
    folder: Path,
    work: Path,
    datasets: Sequence[MediansSource],
    files: dict[str, Fingerprint],
    earlier: EarlierMedians | None,
    options: CountOptions,
    gene_table: GeneTable | None,
    workers: Workers,
) -> Medians:
    """Compute exact medians; `earlier` is always None, since exact medians cannot be added to."""
    union, numbers = _number({dataset.name: dataset.genes for dataset in datasets})
    with ExitStack() as opened:
        # All files are read three times: the by-cell copies of all of them stay in the work folder until the end.
        partitions: list[Partition] = []
        for dataset in datasets:
            file = files[dataset.name]
            counts = opened.enter_context(dataset.open(options, file, work / dataset.name))
            new = np.where(dataset.numbers >= 0, numbers[dataset.name][dataset.numbers], -1).astype(np.int32)
            partitions.extend(dataset.partitions(counts, file, new, len(union)))
        values, counted = exact_medians(partitions, len(union), workers, work)
    medians = Medians(datasets[0].kind, union, values, counted, "exact", tuple(numbers), gene_table)
    zarr.create_group(folder)
    _finish(folder, medians, [_describe(dataset, files[dataset.name]) for dataset in datasets])
    return medians


def _number(genes: dict[str, tuple[str, ...]]) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.int32]]]:
    """All genes, sorted, and for each data set the number of each of its genes among them."""
    union = tuple(sorted(set().union(*genes.values())))
    number = {gene: i for i, gene in enumerate(union)}
    return union, {name: np.array([number[gene] for gene in own], np.int32) for name, own in genes.items()}


def _describe(dataset: MediansSource, file: Fingerprint) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "n_cells": dataset.n_cells,
        "source_file": dataset.path.name,
        "source_hash": file.sha256,
        "digests_hash": None,
    }


def _finish(folder: Path, medians: Medians, described: Sequence[dict[str, Any]]) -> None:
    """Write the arrays, gene names and attributes of the root."""
    root = zarr.open_group(folder, mode="a")
    (folder / GENES_FILE).write_text(json.dumps({"kind": medians.kind, "genes": medians.genes}, indent=0) + "\n")
    if medians.gene_table is not None:
        medians.gene_table.save(folder / GENE_TABLE_FILE)
    store_array(root, "medians", medians.medians)
    store_array(root, "counts", medians.counts)
    root.attrs.update(
        schema=SCHEMA,
        method=medians.method,
        hash=medians.hash,
        gene_table=medians.gene_table.hash if medians.gene_table is not None else None,
        datasets=list(described),
    )
