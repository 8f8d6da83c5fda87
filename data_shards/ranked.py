"""One data set of a store that is being made: ranges ranked in parallel, and one writer that takes them in order.

Its work folder holds `identity.json`, the parts that are there in `parts-HASH` and, in the end, `finished`: the data
set as it lies in a store, without its splits, and `written.json`. Each is whole or not there, so that a start goes on
from what an earlier one left.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_shards.counts import CountSource, open_counts
from data_shards.errors import DataError
from data_shards.fingerprint import Fingerprint
from data_shards.obs_file import ObsWriter
from data_shards.output import flush, hash_path
from data_shards.parallel import Workers
from data_shards.parts import Range, RankPlan, Summary, rank_range, read_obs, read_tokens
from data_shards.ranker import Ranker
from data_shards.sources import Source
from data_shards.store import ArrayHashes, DatasetWriter
from data_shards.tokenizer import Tokenizer
from data_shards.work import IDENTITY, new_part, parts_folder, save_identity

#: Cells of a part.
PART_CELLS = 16_384
_WRITTEN = "written.json"
#: Counts that are stored by gene in a copy by cell.
_BY_CELL = "by_cell"

Say = Callable[[str], None]


@dataclass(frozen=True)
class RankedDataset:
    """A data set whose cells are written and whose splits are not drawn yet.

    Attributes:
        name: its name.
        place: the directory that holds it under its name.
        hashes: of its arrays.
        summary: what became of its cells.
        described: what the manifest says of it besides.
    """

    name: str
    place: Path
    hashes: ArrayHashes
    summary: Summary
    described: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.place / self.name

    def save(self) -> None:
        content = {"hashes": asdict(self.hashes), "summary": asdict(self.summary), "described": self.described}
        (self.place / _WRITTEN).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, name: str, place: Path) -> "RankedDataset":
        content = json.loads((place / _WRITTEN).read_text())
        hashes, summary = ArrayHashes(**content["hashes"]), Summary(**content["summary"])
        return cls(name, place, hashes, summary, content["described"])


def finished_place(work: Path) -> Path:
    """Where the finished data set of a work folder is, under its name."""
    return work / "finished"


def rank_dataset(
    work: Path, source: Source, file: Fingerprint, tokenizer: Tokenizer, values: bool, workers: Workers, say: Say
) -> RankedDataset:
    """Rank the cells of a file, or take what an earlier start has done of it.

    Args:
        work: its work folder, which all workers see.
        source: the file.
        file: its fingerprint.
        tokenizer: the store's.
        values: whether values are kept.
        workers: rank.
        say: takes lines of the report.

    Raises:
        DataError: bad counts, no cell is left, the file changes, or the work folder cannot be written.
    """
    identity = {
        "tokenizer": tokenizer.hash,
        "values": values,
        "source_hash": file.sha256,
        "part_cells": PART_CELLS,
        **source.record(),
    }
    dataset = finish_once(
        work, source.name, identity, lambda place: _write(work, place, source, file, tokenizer.ranker, values, workers)
    )
    summary = dataset.summary
    say(
        f"{source.name}: {summary.n_cells:,} cells kept, {summary.filtered:,} filtered, {summary.empty:,} without a "
        f"token left out; {summary.n_tokens:,} tokens; of {summary.detected:,} non-zero counts "
        f"{summary.in_vocabulary / summary.detected:.1%} are in the vocabulary and "
        f"{summary.n_tokens / summary.detected:.1%} became tokens"
    )
    return dataset


def finish_once(work: Path, name: str, identity: Mapping[str, Any], write: Callable[[Path], None]) -> RankedDataset:
    """A data set that `write` makes at its finished place, unless an earlier start has.

    Args:
        work: its work folder.
        name: the data set.
        identity: everything that decides it, as JSON; what another identity has left is removed.
        write: makes the directory that it is given, which is not there yet.

    Raises:
        DataError: the work folder cannot be written.
    """
    place = finished_place(work)
    try:
        _begin(work, identity)
        if not (place / _WRITTEN).exists():
            write(place)
        _drop_parts(work)
        return RankedDataset.load(name, place)
    except OSError as error:
        raise DataError(f"{work}: cannot be written ({error}): make room, or choose another --out") from error
    finally:
        if not place.exists() and not any(work.glob("parts-*/[!.]*")):
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # other data sets may have begun
                work.parent.rmdir()


def _begin(work: Path, identity: Mapping[str, Any]) -> None:
    """Clear what was left unfinished, and everything if it was made from other input or options."""
    content = json.dumps(identity, sort_keys=True, indent=1) + "\n"
    found = work / IDENTITY
    if not (found.exists() and found.read_text() == content):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        save_identity(work, content)
    for folder in (parts_folder(work), work / _BY_CELL):
        folder.mkdir(exist_ok=True)


def _write(
    work: Path, place: Path, source: Source, file: Fingerprint, ranker: Ranker, values: bool, workers: Workers
) -> None:
    plan = RankPlan(ranker, source.columns.numbers, source.cells, source.obs_columns, values)
    total = Summary()
    with open_counts(source.path, source.options.counts, work / _BY_CELL) as counts, new_part(place) as folder:
        writer = DatasetWriter(folder, source.name, values)
        obs = ObsWriter(writer.folder / "obs.parquet")
        ranges = list(_ranges(parts_folder(work), counts.source, file, counts.n_cells))
        _require_unchanged(work, file)
        progress = tqdm(total=counts.n_cells, desc=f"tokens {source.name}", unit=" cells", disable=None)
        with progress:
            for task, summary in zip(ranges, workers.map_in_order(partial(rank_range, plan), ranges), strict=True):
                for tokens, indptr, kept_values in read_tokens(task.folder, values):
                    writer.append(tokens, indptr, kept_values)
                if summary.n_cells:
                    obs.append(read_obs(task.folder))
                total += summary
                progress.update(task.stop - task.start)
        obs.close()
        _refuse_empty(work, source, total)
        report = asdict(source.columns.report)
        described = {
            **source.options.record(),
            "source_file": source.path.name,
            "source_hash": file.sha256,
            "source_cells": counts.n_cells,
            "obs_hash": hash_path(writer.folder / "obs.parquet"),
            "genes": {
                **report,
                "unknown_examples": list(report["unknown_examples"]),
                "in_vocabulary": source.columns.found,
            },
        }
        RankedDataset(source.name, folder, writer.close(), total, described).save()
        for found in folder.rglob("*"):
            flush(found)


def _require_unchanged(work: Path, file: Fingerprint) -> None:
    """Raise DataError, and remove the copy by cell, where it may have been made of something else."""
    try:
        file.require_unchanged()
    except DataError:
        shutil.rmtree(work / _BY_CELL, ignore_errors=True)
        raise


def _refuse_empty(work: Path, source: Source, total: Summary) -> None:
    """Raise DataError, and remove the parts, where no cell is left: the same command would end the same way."""
    if not total.n_cells:
        _drop_parts(work)
        raise DataError(
            f"{source.path}: no cell is left: {total.filtered:,} filtered, {total.empty:,} without a gene of the "
            "vocabulary: filter less, or leave the file out"
        )


def _drop_parts(work: Path) -> None:
    for folder in (*work.glob("parts-*"), work / _BY_CELL):
        shutil.rmtree(folder, ignore_errors=True)


def _ranges(parts: Path, source: CountSource, file: Fingerprint, n_cells: int) -> Iterator[Range]:
    """The ranges of a file, which its number of cells alone decides."""
    for start in range(0, n_cells, PART_CELLS):
        yield Range(source, file, start, min(start + PART_CELLS, n_cells), parts / f"{start:012d}")
