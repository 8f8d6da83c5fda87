"""Rank the data sets of a store: ranges of cells are ranked in parallel, and one writer takes them in order.

The work folder of a data set holds `identity.json`, finished parts in `parts-HASH` and, at the end, `finished`. This
folder holds the data set as in a store but without splits, and `written.json`. All of these appear only when they are
complete, so a new start can continue from what an earlier one left.
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
#: A copy, ordered by cell, of counts that a file stores by gene.
_BY_CELL = "by_cell"

Say = Callable[[str], None]


@dataclass(frozen=True)
class RankedDataset:
    """A data set whose cells are written and whose splits are not drawn yet.

    Attributes:
        name: its name.
        parent: the directory that holds the data set's folder.
        hashes: hashes of its arrays.
        summary: how many cells were kept, filtered or empty.
        described: further fields of its entry in the manifest.
    """

    name: str
    parent: Path
    hashes: ArrayHashes
    summary: RangeSummary
    described: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The data set's folder."""
        return self.parent / self.name

    def save(self) -> None:
        """Write `written.json` beside the data set's folder."""
        content = {"hashes": asdict(self.hashes), "summary": asdict(self.summary), "described": self.described}
        (self.parent / _WRITTEN).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, name: str, parent: Path) -> "RankedDataset":
        """Read what `save` wrote."""
        content = json.loads((parent / _WRITTEN).read_text())
        hashes, summary = ArrayHashes(**content["hashes"]), RangeSummary(**content["summary"])
        return cls(name, parent, hashes, summary, content["described"])


def finished_folder(work: Path) -> Path:
    """Parent folder of the finished data set in a work folder."""
    return work / "finished"


@dataclass(frozen=True, eq=False)
class Ranking:
    """A file that becomes a data set.

    Attributes:
        work: its work folder, on a file system that all workers share.
        source: the file.
        file: the file's fingerprint.
        tokenizer: the store's tokenizer.
        values: whether values are kept.
    """

    work: Path
    source: Source
    file: Fingerprint
    tokenizer: Tokenizer
    values: bool

    def begin(self) -> None:
        """Create the work folder, and remove what was made from another file or with other options."""
        identity = {
            "tokenizer": self.tokenizer.hash,
            "values": self.values,
            "source_hash": self.file.sha256,
            "part_cells": PART_CELLS,
            **self.source.record(),
        }
        _begin(self.work, identity)

    def is_finished(self) -> bool:
        """Whether the data set is completely ranked and written."""
        return _is_finished(self.work)

    def calls(self) -> list[tuple[RankPlan, Range]]:
        """Arguments of `rank_range` for each part, in the order of the cells.

        Makes a copy by cell first if the file stores its counts by gene.
        """
        source = self.source
        with _writable(self.work), open_counts(source.path, source.options.counts, self.work / _BY_CELL) as counts:
            ranges = list(_ranges(parts_folder(self.work), counts.source, self.file, counts.n_cells))
            _require_unchanged(self.work, self.file)
        plan = RankPlan(self.tokenizer.ranker, source.columns.numbers, source.cells, source.obs_columns, self.values)
        return [(plan, one) for one in ranges]


def rank_datasets(rankings: Sequence[Ranking], workers: Workers, say: Say) -> list[RankedDataset]:
    """Rank the cells of files, or load what an earlier start finished.

    The next file begins while the last parts of the one before are still being ranked.

    Args:
        rankings: the files.
        workers: the workers that rank.
        say: called with each line of the report.

    Raises:
        DataError: counts are bad, no cell of a file is left, a file changed, or a work folder cannot be written.
    """
    datasets: list[RankedDataset] = []
    with ExitStack() as stack:
        stack.callback(_say_ranked, datasets, say)  # after the progress bar has closed
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
                    own_calls = one.calls()
                except DataError as error:
                    problems.append(error)  # raised after the data sets ahead are written
                    return
                for plan, task in own_calls:
                    running.append(task)
                    yield plan, task

        n_cells = sum(one.source.n_cells for one in missing)
        progress = stack.enter_context(Progress(total=n_cells, desc="tokens", unit=" cells"))
        # Closed first, so that no worker still runs when the folders are cleaned up.
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
    """Make a data set with `write`, or load it if an earlier start finished it.

    Args:
        work: its work folder.
        name: the data set's name.
        identity: everything that determines the data set, as JSON; what another identity has left is removed.
        write: creates the directory whose path it is given; the directory does not exist yet.

    Raises:
        DataError: the work folder cannot be written.
    """
    try:
        with _writable(work):
            _begin(work, identity)
            if not _is_finished(work):
                write(finished_folder(work))
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
    return (finished_folder(work) / _WRITTEN).exists()


def _finished(work: Path, name: str) -> RankedDataset:
    _drop_parts(work)
    return RankedDataset.load(name, finished_folder(work))


def _tidy(work: Path) -> None:
    """Remove a work folder if it holds nothing that a next start could use."""
    kept = (f"{folder}/[!.]*" for folder in ("parts-*", _BY_CELL))
    if not finished_folder(work).exists() and not any(path for pattern in kept for path in work.glob(pattern)):
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):  # fails if other data sets have begun
            work.parent.rmdir()


def _begin(work: Path, identity: Mapping[str, Any]) -> None:
    """Create a work folder. If it was made from other input or options, remove its content."""
    content = json.dumps(identity, sort_keys=True, indent=1) + "\n"
    saved = work / IDENTITY
    if not (saved.exists() and saved.read_text() == content):
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
    """Write a data set from the next summaries and ranges. If they end too early, raise the first of `problems`."""
    source, total = one.source, RangeSummary()
    with new_part(finished_folder(one.work)) as folder:
        writer = DatasetWriter(folder, source.name, one.values, hashes=True)
        obs = ObsWriter(writer.folder / "obs.parquet")
        for _ in range(0, source.n_cells, PART_CELLS):
            summary = next(summaries, None)
            if summary is None:
                raise problems[0]
            task = running.popleft()
            for cells in read_range_tokens(task.folder, one.values):
                writer.append(cells.tokens, cells.indptr, cells.values, cells.hashes)
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
        for path in folder.rglob("*"):
            flush(path)


def _require_unchanged(work: Path, file: Fingerprint) -> None:
    """If the file changed, raise DataError and remove the copy by cell: it may hold other counts."""
    try:
        file.require_unchanged()
    except DataError:
        shutil.rmtree(work / _BY_CELL, ignore_errors=True)
        raise


def _refuse_empty(work: Path, source: Source, total: RangeSummary) -> None:
    """If no cell is left, raise DataError and remove the parts: the same command would fail again."""
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
    """The ranges of a file; they depend only on its number of cells."""
    for start in range(0, n_cells, PART_CELLS):
        yield Range(source, file, start, min(start + PART_CELLS, n_cells), parts / f"{start:012d}")
