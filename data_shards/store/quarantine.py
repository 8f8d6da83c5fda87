"""Token chunks whose checksum fails, and the budget of them that a reader tolerates."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from data_shards.store.arrays import StoredArray


class DamagedChunk(NamedTuple):
    """A chunk of the tokens of one data set.

    Attributes:
        data_set: name of the data set.
        shard: path of the file, relative to the data set's `tokens` folder.
        chunk: number of the chunk within that file.
        start, stop: the lost elements [start, stop) of `tokens`.
    """

    data_set: str
    shard: str
    chunk: int
    start: int
    stop: int

    @classmethod
    def of(cls, tokens: StoredArray, number: int) -> "DamagedChunk":
        """Describe chunk `number` of an array of tokens."""
        start = number * tokens.chunk
        shard, within = divmod(start, tokens.shard)
        stop = min(start + tokens.chunk, tokens.size)
        return cls(tokens.path.parent.name, f"c/{shard}", within // tokens.chunk, start, stop)

    def __str__(self) -> str:
        return f"{self.data_set}/tokens/{self.shard}, chunk {self.chunk} (elements {self.start:,} to {self.stop:,})"


class Quarantine:
    """The damaged chunks that a reader has found.

    Args:
        budget: most damaged chunks allowed.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._chunks: dict[str, list[DamagedChunk]] = {}
        self._unreported: list[DamagedChunk] = []

    def __contains__(self, chunk: DamagedChunk) -> bool:
        return chunk in self._chunks.get(chunk.data_set, ())

    def add(self, chunk: DamagedChunk, error: DataError) -> None:
        """Add a chunk that was read with `error`.

        Raises:
            DataError: the budget of damaged chunks is exceeded.
        """
        self._chunks.setdefault(chunk.data_set, []).append(chunk)
        self._unreported.append(chunk)
        if sum(map(len, self._chunks.values())) > self._budget:
            raise DataError(
                f"{error}; {chunk} exceeds the limit: no more than {self._budget} damaged chunks are tolerated"
            ) from error

    def take_new(self) -> tuple[DamagedChunk, ...]:
        """Return the chunks found since the last call."""
        unreported, self._unreported = tuple(self._unreported), []
        return unreported

    def lost(self, tokens: StoredArray, indptr: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """Find the cells that have lost tokens.

        Args:
            tokens: the array of their tokens.
            indptr: int64 (n_cells + 1,), where each cell begins in it.

        Returns:
            bool (n_cells,), True for cells with lost tokens; None if there are none.
        """
        if not self._chunks:
            return None
        lost = np.zeros(len(indptr) - 1, bool)
        for chunk in self._chunks.get(tokens.path.parent.name, ()):
            lost |= (indptr[:-1] < chunk.stop) & (chunk.start < indptr[1:])
        return lost if lost.any() else None
