"""Digest one data set through a tree of flat merges; its shape depends only on the number of partitions.

Parts are named LEVEL-NUMBER: 0-00000012 is partition 12, 1-00000000 joins partitions 0 to 15. Parts that an earlier run
finished are not made again. Up to sixteen digested partitions per worker are on disk at a time, until they are merged:
up to a quarter of a gigabyte each.
"""

import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from data_shards.medians.tdigest import Partition
from data_shards.medians.tdigest_parts import DigestTask, make_digests, merge_digests, merge_tasks
from data_shards.workers.progress import Progress
from data_shards.workers.workers import Call, Steps, Workers

#: Parts joined in one merge.
FAN_IN = 16
_RESULT = "digests"


def digested_part(folder: Path) -> Path:
    """Path of the final digests in the folder of a data set; it exists only once they are complete."""
    return folder / _RESULT


def digest_dataset(partitions: Sequence[Partition], folder: Path, workers: Workers, progress: Progress) -> Steps:
    """Yield the steps that digest and merge the partitions of a data set: a job for `Workers.run`.

    Args:
        partitions: ranges of its cells, in their order.
        folder: an existing folder for its parts.
        workers: run the job; their number decides how many partitions are digested before the next merge.
        progress: counts cells. Only cells of parts that exist already are counted here; the caller counts the others
            when their task is done.
    """
    tree = _Tree(folder, progress)
    waiting = iter(partitions)
    while wave := list(islice(waiting, FAN_IN * workers.at_once)):
        yield from tree.add(wave)
    yield from tree.finish()


class _Tree:
    """The parts that exist, and the number of complete parts of each level."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress
        # The folder is listed only once: NFS may report a new part as missing for a while.
        self._present = {part.name for part in folder.iterdir()}
        self._complete = [0]

    def add(self, partitions: list[Partition]) -> Steps:
        """Digest the next partitions, and merge each complete group of sixteen parts."""
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
        """Merge the parts left over, those that form no group of sixteen, into the result."""
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
        """Merge parts into others, by ranges of genes, then remove the parts they were made of."""
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
        """Whether a part must be made: neither it nor a part that includes it exists. Remove it if it is included."""
        if _name(level, number) not in self._present:
            return not self._is_merged(level, number)
        if self._is_merged(level, number):
            shutil.rmtree(self._path(level, number), ignore_errors=True)
        return False

    def _is_merged(self, level: int, number: int) -> bool:
        """Whether a part of a higher level that includes this one exists."""
        while number or level < 8:
            level, number = level + 1, number // FAN_IN
            if _name(level, number) in self._present:
                return True
        return False

    def _path(self, level: int, number: int) -> Path:
        return self._folder / _name(level, number)


def _name(level: int, number: int) -> str:
    return f"{level}-{number:08d}"
