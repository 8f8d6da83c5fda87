"""From counts and medians to a token store, or to more data sets of one.

Ranges of cells are read, filtered and ranked in parallel; one writer takes them in the order of the files. All is made
in a work folder beside the store, which a killed start leaves to the next one, and becomes the store, or a part of it,
in one moment at the end.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_shards.assembling import add_to_store, dataset_work, finish_datasets, go_on, new_store
from data_shards.counts import CountOptions
from data_shards.errors import DataError
from data_shards.filters import CellFilter
from data_shards.genes import GENE_TABLE_FILE
from data_shards.manifest import SCHEMA, DatasetEntry, Manifest
from data_shards.medians import check_names
from data_shards.output import refuse_existing
from data_shards.parallel import Workers
from data_shards.ranked import PART_CELLS, rank_dataset
from data_shards.sources import Source, SourceOptions, bind_source, read_states, refuse_changed
from data_shards.splits import Earlier, SplitOptions, earlier_splits, too_few_donors
from data_shards.store import LAYOUT, choose_block_cells, hash_files
from data_shards.store_plan import StoreOptions, StorePlan, plan_more, plan_new
from data_shards.tokenizer import FILES
from data_shards.work import work_folder

Say = Callable[[str], None]


def make_store(
    paths: Sequence[Path],
    medians_path: Path | None,
    out: Path,
    options: CountOptions | None = None,
    *,
    top_k: int | None = None,
    dither: bool = False,
    genes_file: Path | None = None,
    deny_file: Path | None = None,
    keep_values: bool = False,
    cells: CellFilter | None = None,
    obs_columns: Sequence[str] | None = None,
    splits: SplitOptions | None = None,
    min_mapped: float = 0.5,
    workers: int = 1,
    dask: str | None = None,
    add: bool = False,
    say: Say = print,
) -> Manifest:
    """Tokenize the cells of files into a new store, or add them to one.

    Args:
        paths: AnnData files; their stems name the data sets, in this order.
        medians_path: what `make_medians` wrote; with `add` none is needed, and another than the store's is refused.
        out: a new `.zarr` directory, or with `add` the store to add to.
        options: how counts are read, for all files.
        top_k, dither, genes_file, deny_file, keep_values: as in `StoreOptions`; with `add`, others than the store's are
            refused.
        cells: which cells are left out.
        obs_columns: columns of obs that are kept; none keeps all.
        splits: which cells are held out.
        min_mapped: share of a file's genes that must have Ensembl ids, if ids are Ensembl ids.
        workers: processes that rank, if there is no scheduler; the result does not depend on it.
        dask: address of a Dask scheduler whose workers rank.
        add: add the files to the data sets of `out`.
        say: takes lines of the report.

    Raises:
        DataError: `out` exists, files that cannot be used, bad counts, or nothing left to write.
    """
    splits = splits or SplitOptions()
    shared = StoreOptions(top_k, dither, genes_file, deny_file, keep_values)
    own = SourceOptions(
        options or CountOptions(),
        cells or CellFilter(),
        None if obs_columns is None else tuple(obs_columns),
        min_mapped,
    )
    if not add:
        refuse_existing(out)
    plan = plan_more(out, medians_path, shared) if add else plan_new(medians_path, shared, say)
    _check_names(out, plan, [path.stem for path in paths])
    # What cannot be used is found before hours go into the files ahead of it.
    sources = []
    for path in paths:
        source, lines = bind_source(path, own, plan.tokenizer, splits)
        sources.append(source)
        for line in lines:
            say(line)
    earlier = Earlier() if plan.store is None else earlier_splits(out, plan.store)
    _refuse_few_donors(sources, splits, earlier)
    with Workers(workers, dask) as pool:
        states = read_states(paths, pool)
        for name in refuse_changed(states, plan.of_medians) if plan.of_medians else ():
            say(f"{name}: is not among the data sets of the medians: it is ranked with the medians of others")
        identity = {
            "schema": SCHEMA,
            "tokenizer": plan.tokenizer.hash,
            "values": plan.values,
            "part_cells": PART_CELLS,
            "layout": LAYOUT,
        }
        with work_folder(out, identity, say) as work:
            if plan.store is not None and Manifest.load(out).hash != plan.store.hash:
                raise DataError(f"{out}: another --add has changed it meanwhile: start again")
            go_on(work, out if add else None, [source.name for source in sources], plan.names, say)
            datasets = [
                rank_dataset(
                    dataset_work(work, source.name), source, state, plan.tokenizer.ranker, plan.values, pool, say
                )
                for source, state in zip(sources, states, strict=True)
            ]
            donor_keys = {source.name: source.donor_key for source in sources}
            entries = finish_datasets(datasets, donor_keys, splits, earlier, say)
            if plan.store is not None:
                manifest = _manifest(plan, entries, plan.store.files)
                add_to_store(out, datasets, manifest)
            else:

                def fill(folder: Path) -> Manifest:
                    plan.tokenizer.save(folder)
                    return _manifest(plan, entries, hash_files(folder, [*FILES, GENE_TABLE_FILE]))

                manifest = new_store(work, out, datasets, fill)
    say(
        f"{out}: {manifest.n_cells:,} cells, {manifest.n_tokens:,} tokens of {manifest.n_genes:,} genes, "
        f"blocks of {manifest.block_cells} cells"
    )
    return manifest


def _check_names(out: Path, plan: StorePlan, names: Sequence[str]) -> None:
    check_names(list(names))
    for name in names:
        if name in plan.names:
            raise DataError(f"{out}: has a data set {name!r} already: leave the file out, or rename it")


def _refuse_few_donors(sources: Sequence[Source], splits: SplitOptions, earlier: Earlier) -> None:
    known: frozenset[str] = frozenset().union(*(source.donors for source in sources))
    held_out = splits.validation + splits.test > 0
    if splits.by == "donor" and held_out and len(known) < 2 and not known & earlier.donors.keys():
        raise too_few_donors(len(known))


def _manifest(plan: StorePlan, entries: Sequence[DatasetEntry], files: dict[str, Any]) -> Manifest:
    """The manifest of a store with the data sets that it has, and more."""
    datasets = (*(plan.store.datasets if plan.store is not None else ()), *entries)
    n_tokens = sum(entry.n_tokens for entry in datasets)
    tokenizer = plan.tokenizer
    return Manifest(
        schema=SCHEMA,
        vocabulary_hash=tokenizer.vocabulary.hash,
        medians_hash=tokenizer.medians_hash,
        tokenizer_hash=tokenizer.hash,
        medians_file_hash=plan.medians_file_hash,
        kind=tokenizer.vocabulary.kind,
        n_genes=len(tokenizer.vocabulary.genes),
        top_k=tokenizer.top_k,
        dither=tokenizer.dither,
        values=plan.values,
        block_cells=choose_block_cells([entry.n_cells for entry in datasets], n_tokens),
        options=plan.options,
        datasets=datasets,
        files=files,
    )
