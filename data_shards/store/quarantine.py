"""Token chunks whose checksum fails: which they are, and how many a reader puts up with."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from data_shards.store.arrays import StoredArray


class DamagedChunk(NamedTuple):
    """A chunk of the tokens of one data set.

    Attributes:
        data_set: its name.
        shard: the file, below the data set's folder of tokens.
        chunk: number within that file.
        start, stop: elements of `tokens` that are lost.
    """

    data_set: str
    shard: str
    chunk: int
    start: int
    stop: int

    @classmethod
    def of(cls, tokens: StoredArray, number: int) -> "DamagedChunk":
        """Chunk `number` of an array of tokens."""
        start = number * tokens.chunk
        shard, within = divmod(start, tokens.shard)
        stop = min(start + tokens.chunk, tokens.size)
        return cls(tokens.path.parent.name, f"c/{shard}", within // tokens.chunk, start, stop)

    def __str__(self) -> str:
        return f"{self.data_set}/tokens/{self.shard}, chunk {self.chunk} (elements {self.start:,} to {self.stop:,})"


class Quarantine:
    """The damaged chunks that a reader has met.

    Args:
        budget: damaged chunks that may be.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._chunks: dict[str, list[DamagedChunk]] = {}
        self._untold: list[DamagedChunk] = []

    def __contains__(self, chunk: DamagedChunk) -> bool:
        return chunk in self._chunks.get(chunk.data_set, ())

    def add(self, chunk: DamagedChunk, error: DataError) -> None:
        """Take in a chunk.

        Raises:
            DataError: it is one too many.
        """
        self._chunks.setdefault(chunk.data_set, []).append(chunk)
        self._untold.append(chunk)
        if sum(map(len, self._chunks.values())) > self._budget:
            raise DataError(
                f"{error}; with {chunk} there are too many: no more than {self._budget} damaged chunks are passed over"
            ) from error

    def take_new(self) -> tuple[DamagedChunk, ...]:
        """Chunks that were met since the last call."""
        untold, self._untold = tuple(self._untold), []
        return untold

    def lost(self, tokens: StoredArray, indptr: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """Which of some cells have lost tokens.

        Args:
            tokens: the array that they are in.
            indptr: int64 (n_cells + 1,), where each begins in it.

        Returns:
            bool (n_cells,); None if none has.
        """
        if not self._chunks:
            return None
        lost = np.zeros(len(indptr) - 1, bool)
        for chunk in self._chunks.get(tokens.path.parent.name, ()):
            lost |= (indptr[:-1] < chunk.stop) & (chunk.start < indptr[1:])
        return lost if lost.any() else None
