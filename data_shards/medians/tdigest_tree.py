"""The digests of one data set, through a tree of flat merges whose shape only the number of partitions decides.

Parts are named LEVEL-NUMBER: 0-00000012 is the partition 12, 1-00000000 joins the partitions 0 to 15. What an earlier
start has made is not made again; up to sixteen partitions for each worker lie on disk at a time, before they are
merged: up to a quarter of a gigabyte each.
"""

import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from data_shards.medians.tdigest import Partition
from data_shards.medians.tdigest_parts import DigestTask, make_digests, merge_digests, merge_tasks
from data_shards.workers.progress import Progress
from data_shards.workers.workers import Call, Steps, Workers

FAN_IN = 16
_RESULT = "digests"


def digested_part(folder: Path) -> Path:
    """Where the digests of a data set are in its folder, once they are all there."""
    return folder / _RESULT


def digest_dataset(partitions: Sequence[Partition], folder: Path, workers: Workers, progress: Progress) -> Steps:
    """What digests and merges the partitions of a data set, a job for `Workers.run`.

    Args:
        partitions: ranges of its cells, in their order.
        folder: an existing folder for its parts.
        workers: what runs the job; how many these are says how many parts are made before some are merged.
        progress: counts cells, here those of parts that are there; others when their task is done.
    """
    tree = _Tree(folder, progress)
    waiting = iter(partitions)
    while wave := list(islice(waiting, FAN_IN * workers.at_once)):
        yield from tree.add(wave)
    yield from tree.finish()


class _Tree:
    """What is there of the parts, and how many of each level are complete."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress
        # Asked once: a network file system may go on for a while to say that a part is not there.
        self._present = {found.name for found in folder.iterdir()}
        self._complete = [0]

    def add(self, partitions: list[Partition]) -> Steps:
        """Digest the next partitions, and merge what is complete."""
        calls: list[Call] = []
        for number, partition in enumerate(partitions, self._complete[0]):
            if self._is_needed(0, number):
                calls.append((make_digests, DigestTask(partition, self._path(0, number))))
            else:
                self._progress.update(partition.stop - partition.start)
        yield calls
        self._present.update(task.out.name for _, task in calls)
        self._complete[0] += len(partitions)
        level = 1
        while self._complete[level - 1] >= FAN_IN:
            if level == len(self._complete):
                self._complete.append(0)
            numbers = range(self._complete[level], self._complete[level - 1] // FAN_IN)
            yield from self._merge(level, [number for number in numbers if self._is_needed(level, number)])
            self._complete[level] = numbers.stop
            level += 1

    def finish(self) -> Steps:
        """Merge what has no sixteen of its kind."""
        above = [*self._complete[1:], 0]
        rest = tuple(
            self._path(level, number)
            for level, complete in enumerate(self._complete)
            for number in range(above[level] * FAN_IN, complete)
        )
        result = digested_part(self._folder)
        if len(rest) == 1:
            rest[0].rename(result)
        else:
            yield from self._run([(rest, result)])

    def _merge(self, level: int, numbers: list[int]) -> Steps:
        merges = []
        for number in numbers:
            children = range(number * FAN_IN, (number + 1) * FAN_IN)
            merges.append((tuple(self._path(level - 1, child) for child in children), self._path(level, number)))
        return self._run(merges)

    def _run(self, merges: list[tuple[tuple[Path, ...], Path]]) -> Steps:
        """Merge parts into others, by ranges of genes; what they were made of goes when they are whole."""
        unfinished = {out: out.with_name(f"{out.name}.merging") for _, out in merges}
        for folder in unfinished.values():
            folder.mkdir(exist_ok=True)
        yield [(merge_digests, task) for parts, out in merges for task in merge_tasks(parts, unfinished[out])]
        for parts, out in merges:
            unfinished[out].rename(out)
            self._present.add(out.name)
            for part in parts:
                shutil.rmtree(part, ignore_errors=True)

    def _is_needed(self, level: int, number: int) -> bool:
        """Whether neither a part nor one that it went into is there; what is left of such a part is removed."""
        if _name(level, number) not in self._present:
            return not self._is_merged(level, number)
        if self._is_merged(level, number):
            shutil.rmtree(self._path(level, number), ignore_errors=True)
        return False

    def _is_merged(self, level: int, number: int) -> bool:
        while number or level < 8:
            level, number = level + 1, number // FAN_IN
            if _name(level, number) in self._present:
                return True
        return False

    def _path(self, level: int, number: int) -> Path:
        return self._folder / _name(level, number)


def _name(level: int, number: int) -> str:
    return f"{level}-{number:08d}"
