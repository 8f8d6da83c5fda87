"""How data sets that are ranked become a store, or a part of one, in one moment.

Until the manifest names it, a data set is not there: a kill at any moment leaves the store as it was.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from data_shards.counts.gene_ids import GENE_TABLE_FILE
from data_shards.errors import DataError
from data_shards.files.atomic import flush, refuse_existing
from data_shards.files.work_folder import work_folder
from data_shards.prepare.rank_datasets import RankedDataset, finished_place
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
    """Bring a work folder to where its data sets are ranked at most, whatever moment an earlier start was killed at.

    Args:
        work: the work folder.
        store: the store that is added to, if any.
        names: data sets of this start, none of which the store has; what others have left is removed.
        kept: data sets that the store's manifest names.
        say: takes lines of the report.

    Raises:
        DataError: files cannot be moved or removed.
    """
    target = store or work / _STORE
    kept = set(kept)
    try:
        for folder in sorted((work / _DATASETS).glob("*")):
            place = finished_place(folder)
            moved = target / folder.name
            if folder.name not in names:
                say(f"{folder.name}: was ranked by an earlier start that was not finished; this is removed")
                shutil.rmtree(folder)
            elif place.exists() and not (place / folder.name).exists():
                if moved.exists():
                    moved.rename(place / folder.name)
                else:
                    shutil.rmtree(folder)
        shutil.rmtree(work / _STORE, ignore_errors=True)
        for folder in store.iterdir() if store is not None else ():
            # In a store, only what an --add was killed over is a group that the manifest does not name.
            if folder.name not in kept and (folder / "zarr.json").is_file() and (folder / "indptr").is_dir():
                say(f"{folder}: was left by an --add that was not finished; it is removed")
                shutil.rmtree(folder)
    except OSError as error:
        raise DataError(f"{work}: cannot be cleared ({error}): see to the disk, and start again") from error


def finish_datasets(
    datasets: Sequence[RankedDataset],
    donor_keys: Mapping[str, str | None],
    splits: SplitOptions,
    earlier: Earlier,
    say: Say,
) -> tuple[DatasetEntry, ...]:
    """Draw and write the splits; what the manifest says of each data set."""
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
                **one.described,
            )
        )
    return tuple(entries)


def new_store(work: Path, out: Path, datasets: Sequence[RankedDataset], fill: Callable[[Path], Manifest]) -> Manifest:
    """Make a store of data sets.

    Args:
        work: the work folder.
        out: the store.
        datasets: its data sets.
        fill: writes the files of the root into a directory and returns the manifest.

    Raises:
        DataError: it is there already, or cannot be written.
    """
    folder = work / _STORE
    try:
        folder.mkdir()
        manifest = fill(folder)
        for one in datasets:
            one.folder.rename(folder / one.name)
        manifest.save(folder)
        # What has the store's name must be whole after a power cut too.
        for found in [*folder.rglob("*"), folder]:
            flush(found)
        refuse_existing(out)
        folder.rename(out)
        flush(out.absolute().parent)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}): make room, and start again") from error
    return manifest


def add_to_store(out: Path, datasets: Sequence[RankedDataset], manifest: Manifest) -> None:
    """Move data sets into a store, then make the manifest that names them its own.

    Raises:
        DataError: it cannot be written.
    """
    try:
        for one in datasets:
            for found in [*one.folder.rglob("*"), one.folder]:
                flush(found)
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
    """Make a store, or add to one, in a work folder that a killed start leaves to the next one.

    Args:
        out: the store.
        plan: what its cells are ranked with.
        donor_keys: the data sets, in order, and the column of donors of each, if any.
        splits: which cells are held out.
        earlier: what the data sets that the store has already fix.
        rank: makes the data sets, given the work folder of each.
        say: takes lines of the report.

    Raises:
        DataError: the store changes meanwhile or cannot be written, or whatever `rank` raises.
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
