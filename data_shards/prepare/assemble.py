"""Turn ranked data sets into a new store, or add them to one, in one atomic step.

A data set belongs to a store once the manifest names it. So a kill at any moment leaves the store as it was.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from data_shards.counts.gene_ids import GENE_TABLE_FILE
from data_shards.errors import DataError
from data_shards.files.atomic import flush, refuse_existing
from data_shards.files.work_folder import work_folder
from data_shards.prepare.rank_datasets import RankedDataset, finished_folder
from data_shards.prepare.splits import Annotated, Earlier, SplitOptions, draw_splits
from data_shards.prepare.store_plan import StorePlan
from data_shards.store.manifest import SCHEMA, TEST, TRAIN, VALIDATION, DatasetEntry, Manifest
from data_shards.store.writer import LAYOUT, ArrayWriter, content_hash, hash_files
from data_shards.tokens.tokenizer import FILES

_DATASETS, _STORE = "datasets", "store"

Say = Callable[[str], None]


def dataset_work(work: Path, name: str) -> Path:
    """The work folder of one data set."""
    return work / _DATASETS / name


def go_on(work: Path, store: Path | None, names: Sequence[str], kept: Iterable[str], say: Say) -> None:
    """Undo what a killed start did after ranking, so that this start can continue from the ranked data sets.

    Args:
        work: the work folder.
        store: the store that data sets are added to; None for a new store.
        names: data sets of this start. The store has none of them. Work on any other data set is removed.
        kept: data sets that the store's manifest names.
        say: called with each line of the report.

    Raises:
        DataError: files cannot be moved or removed.
    """
    target = store or work / _STORE
    kept = set(kept)
    try:
        for folder in sorted((work / _DATASETS).glob("*")):
            finished = finished_folder(folder)
            moved = target / folder.name
            if folder.name not in names:
                say(f"{folder.name}: was ranked by an earlier start that did not finish; removing it")
                shutil.rmtree(folder)
            elif finished.exists() and not (finished / folder.name).exists():
                if moved.exists():
                    moved.rename(finished / folder.name)
                else:
                    shutil.rmtree(folder)
        shutil.rmtree(work / _STORE, ignore_errors=True)
        for folder in store.iterdir() if store is not None else ():
            # A group that the manifest does not name can only come from an --add that was killed.
            if folder.name not in kept and (folder / "zarr.json").is_file() and (folder / "indptr").is_dir():
                say(f"{folder}: was left by an --add that did not finish; removing it")
                shutil.rmtree(folder)
    except OSError as error:
        raise DataError(f"{work}: cannot be cleared ({error}): check the disk, and start again") from error


def finish_datasets(
    datasets: Sequence[RankedDataset],
    donor_keys: Mapping[str, str | None],
    splits: SplitOptions,
    earlier: Earlier,
    say: Say,
) -> tuple[DatasetEntry, ...]:
    """Draw and write the splits of ranked data sets.

    Args:
        datasets: the ranked data sets.
        donor_keys: name of each data set -> its column of donors in obs, or None.
        splits: which cells are held out.
        earlier: splits that the store's present data sets fix.
        say: called with each line of the report.

    Returns:
        The manifest's entry of each data set.
    """
    writers = {one.name: ArrayWriter(one.folder, "split") for one in datasets}
    annotated = [Annotated(one.name, one.folder / "obs.parquet", donor_keys[one.name]) for one in datasets]
    drawn = draw_splits(annotated, splits, lambda name, split: writers[name].append(split), earlier)
    entries = []
    for one, split in zip(datasets, drawn, strict=True):
        say(f"{one.name}: {split}")
        entries.append(
            DatasetEntry(
                name=one.name,
                n_cells=one.summary.n_cells,
                n_tokens=one.summary.n_tokens,
                n_train=split.cells[TRAIN],
                n_validation=split.cells[VALIDATION],
                n_test=split.cells[TEST],
                content_hash=content_hash(
                    one.hashes.tokens, one.hashes.indptr, writers[one.name].close(), one.hashes.values
                ),
                split_by=split.by,
                donor_key=split.donor_key,
                filtered_cells=one.summary.filtered,
                empty_cells=one.summary.empty,
                splits=splits.record(),
                cell_hash=one.hashes.cell_hash,
                **one.described,
            )
        )
    return tuple(entries)


def new_store(work: Path, out: Path, datasets: Sequence[RankedDataset], fill: Callable[[Path], Manifest]) -> Manifest:
    """Make a store of data sets.

    Args:
        work: the work folder.
        out: path of the new store.
        datasets: its data sets.
        fill: writes the files of the store's root into a directory and returns the manifest.

    Raises:
        DataError: the store exists already, or cannot be written.
    """
    folder = work / _STORE
    try:
        folder.mkdir()
        manifest = fill(folder)
        for one in datasets:
            one.folder.rename(folder / one.name)
        manifest.save(folder)
        # Flush before the rename: the store must be complete even after a power cut.
        for path in [*folder.rglob("*"), folder]:
            flush(path)
        refuse_existing(out)
        folder.rename(out)
        flush(out.absolute().parent)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}): make room, and start again") from error
    return manifest


def add_to_store(out: Path, datasets: Sequence[RankedDataset], manifest: Manifest) -> None:
    """Move data sets into a store, then replace its manifest by one that names them.

    Args:
        out: the store.
        datasets: the data sets to move.
        manifest: the new manifest, which names old and new data sets.

    Raises:
        DataError: the store cannot be written.
    """
    try:
        for one in datasets:
            for path in [*one.folder.rglob("*"), one.folder]:
                flush(path)
            one.folder.rename(out / one.name)
        flush(out)
        manifest.save(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}): make room, and start again") from error


def build_store(
    out: Path,
    plan: StorePlan,
    donor_keys: Mapping[str, str | None],
    splits: SplitOptions,
    earlier: Earlier,
    rank: Callable[[Sequence[Path]], Sequence[RankedDataset]],
    say: Say,
) -> Manifest:
    """Make a store, or add to one. If it is killed, the next start continues from the work folder.

    Args:
        out: the store.
        plan: what its cells are ranked with.
        donor_keys: name of each new data set, in order -> its column of donors in obs, or None.
        splits: which cells are held out.
        earlier: splits that the store's present data sets fix.
        rank: makes the data sets, given the work folder of each.
        say: called with each line of the report.

    Raises:
        DataError: another process changed the store, it cannot be written, or `rank` failed.
    """
    identity = {"schema": SCHEMA, "tokenizer": plan.tokenizer.hash, "values": plan.values, "layout": LAYOUT}
    with work_folder(out, identity, say) as work:
        if plan.store is not None and Manifest.load(out).hash != plan.store.hash:
            raise DataError(f"{out}: another --add has changed it meanwhile: start again")
        go_on(work, None if plan.store is None else out, list(donor_keys), plan.names, say)
        datasets = rank([dataset_work(work, name) for name in donor_keys])
        entries = finish_datasets(datasets, donor_keys, splits, earlier, say)
        if plan.store is not None:
            manifest = plan.manifest(entries, plan.store.files)
            add_to_store(out, datasets, manifest)
        else:

            def fill(folder: Path) -> Manifest:
                plan.tokenizer.save(folder)
                return plan.manifest(entries, hash_files(folder, [*FILES, GENE_TABLE_FILE]))

            manifest = new_store(work, out, datasets, fill)
    say(
        f"{out}: {manifest.n_cells:,} cells, {manifest.n_tokens:,} tokens of {manifest.n_genes:,} genes, "
        f"blocks of {manifest.block_cells} cells"
    )
    return manifest
