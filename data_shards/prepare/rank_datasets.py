"""Data sets of a store that is being made: ranges ranked in parallel, and one writer that takes them in order.

The work folder of each holds `identity.json`, the parts that are there in `parts-HASH` and, in the end, `finished`:
the data set as it lies in a store, without its splits, and `written.json`. Each is whole or not there, so that a start
goes on from what an earlier one left.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards.counts.count_file import CountSource, open_counts
from data_shards.errors import DataError
from data_shards.files.atomic import flush, hash_path
from data_shards.files.fingerprint import Fingerprint
from data_shards.files.work_folder import IDENTITY, new_part, parts_folder, save_identity
from data_shards.prepare.rank_range import Range, RangeSummary, RankPlan, rank_range, read_range_obs, read_range_tokens
from data_shards.prepare.store_source import Source
from data_shards.store.obs_parquet import ObsWriter
from data_shards.store.writer import ArrayHashes, DatasetWriter
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.workers.progress import Progress
from data_shards.workers.workers import Workers

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
    summary: RangeSummary
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
        hashes, summary = ArrayHashes(**content["hashes"]), RangeSummary(**content["summary"])
        return cls(name, place, hashes, summary, content["described"])


def finished_place(work: Path) -> Path:
    """Where the finished data set of a work folder is, under its name."""
    return work / "finished"


@dataclass(frozen=True, eq=False)
class Ranking:
    """A file that becomes a data set.

    Attributes:
        work: its work folder, which all workers see.
        source: the file.
        file: its fingerprint.
        tokenizer: the store's.
        values: whether values are kept.
    """

    work: Path
    source: Source
    file: Fingerprint
    tokenizer: Tokenizer
    values: bool

    def begin(self) -> None:
        """Clear the work folder of what is not of this file and these options."""
        identity = {
            "tokenizer": self.tokenizer.hash,
            "values": self.values,
            "source_hash": self.file.sha256,
            "part_cells": PART_CELLS,
            **self.source.record(),
        }
        _begin(self.work, identity)

    def is_finished(self) -> bool:
        return _is_finished(self.work)

    def calls(self) -> list[tuple[RankPlan, Range]]:
        """What makes its parts, in the order of its cells, and a copy by cell where its counts are stored by gene."""
        source = self.source
        with _writable(self.work), open_counts(source.path, source.options.counts, self.work / _BY_CELL) as counts:
            ranges = list(_ranges(parts_folder(self.work), counts.source, self.file, counts.n_cells))
            _require_unchanged(self.work, self.file)
        plan = RankPlan(self.tokenizer.ranker, source.columns.numbers, source.cells, source.obs_columns, self.values)
        return [(plan, one) for one in ranges]


def rank_datasets(rankings: Sequence[Ranking], workers: Workers, say: Say) -> list[RankedDataset]:
    """Rank the cells of files, or take what an earlier start has done of them; the next file begins beside the last.

    Args:
        rankings: the files.
        workers: rank.
        say: takes lines of the report.

    Raises:
        DataError: bad counts, no cell is left of a file, one changes, or a work folder cannot be written.
    """
    datasets: list[RankedDataset] = []
    with ExitStack() as stack:
        stack.callback(_say_ranked, datasets, say)  # not into the bar
        for one in rankings:
            stack.callback(_tidy, one.work)
            with _writable(one.work):
                one.begin()
        missing = [one for one in rankings if not one.is_finished()]
        running: deque[Range] = deque()
        problems: list[DataError] = []

        def calls() -> Iterator[tuple[RankPlan, Range]]:
            for one in missing:
                try:
                    found = one.calls()
                except DataError as error:
                    problems.append(error)  # to be raised when the data sets ahead are written
                    return
                for plan, task in found:
                    running.append(task)
                    yield plan, task

        n_cells = sum(one.source.n_cells for one in missing)
        progress = stack.enter_context(Progress(total=n_cells, desc="tokens", unit=" cells"))
        # Before folders are cleared, what runs has ended.
        summaries = stack.enter_context(closing(workers.map_in_order(_rank, calls())))
        for one in rankings:
            with _writable(one.work):
                if one in missing:
                    _write(one, running, summaries, problems, progress)
                datasets.append(_finished(one.work, one.source.name))
    return datasets


def _rank(call: tuple[RankPlan, Range]) -> RangeSummary:
    return rank_range(*call)


def _say_ranked(datasets: Sequence[RankedDataset], say: Say) -> None:
    for dataset in datasets:
        summary = dataset.summary
        say(
            f"{dataset.name}: {summary.n_cells:,} cells kept, {summary.filtered:,} filtered, {summary.empty:,} without "
            f"a token left out; {summary.n_tokens:,} tokens; of {summary.detected:,} non-zero counts "
            f"{summary.in_vocabulary / summary.detected:.1%} are in the vocabulary and "
            f"{summary.n_tokens / summary.detected:.1%} became tokens"
        )


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
    try:
        with _writable(work):
            _begin(work, identity)
            if not _is_finished(work):
                write(finished_place(work))
            return _finished(work, name)
    finally:
        _tidy(work)


@contextmanager
def _writable(work: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{work}: cannot be written ({error}): make room, or choose another --out") from error


def _is_finished(work: Path) -> bool:
    return (finished_place(work) / _WRITTEN).exists()


def _finished(work: Path, name: str) -> RankedDataset:
    _drop_parts(work)
    return RankedDataset.load(name, finished_place(work))


def _tidy(work: Path) -> None:
    """Remove a work folder that holds nothing to go on from."""
    kept = (f"{folder}/[!.]*" for folder in ("parts-*", _BY_CELL))
    if not finished_place(work).exists() and not any(found for pattern in kept for found in work.glob(pattern)):
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
    one: Ranking,
    running: deque[Range],
    summaries: Iterator[RangeSummary],
    problems: Sequence[DataError],
    progress: Progress,
) -> None:
    """Write a data set, whose summaries, and ranges, come next, or raise why they do not."""
    source, total = one.source, RangeSummary()
    with new_part(finished_place(one.work)) as folder:
        writer = DatasetWriter(folder, source.name, one.values)
        obs = ObsWriter(writer.folder / "obs.parquet")
        for _ in range(0, source.n_cells, PART_CELLS):
            summary = next(summaries, None)
            if summary is None:
                raise problems[0]
            task = running.popleft()
            for tokens, indptr, kept_values in read_range_tokens(task.folder, one.values):
                writer.append(tokens, indptr, kept_values)
            if summary.n_cells:
                obs.append(read_range_obs(task.folder))
            total += summary
            progress.update(task.stop - task.start)
        obs.close()
        _refuse_empty(one.work, source, total)
        report = asdict(source.columns.report)
        described = {
            **source.options.record(),
            "source_file": source.path.name,
            "source_hash": one.file.sha256,
            "source_cells": source.n_cells,
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


def _refuse_empty(work: Path, source: Source, total: RangeSummary) -> None:
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
