"""Blocks of a token store, read as slices through TensorStore."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from data_shards.files.location import Url, location_of, open_context
from data_shards.store.arrays import ChunkDamaged, Reading, StoredArray, open_array
from data_shards.store.manifest import Manifest
from data_shards.store.quarantine import DamagedChunk, Quarantine
from data_shards.tokens.vocabulary import PAD

_INDEX_SHARE = 1 / 8  # of `cache_bytes`, in addition to it, for chunks of `indptr`; as many chunks of `split`

U16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Block:
    """Consecutive cells of one data set.

    Attributes:
        tokens: uint16 (n_tokens,), cells one after another, best-ranked gene first; `<pad>` throughout a damaged cell.
        indptr: int64 (n_cells + 1,), where each cell begins in `tokens`.
        split: uint8 (n_cells,), 0 training, 1 validation, 2 test.
        damaged: bool (n_cells,), cells whose tokens are lost; None if there are none.
    """

    tokens: U16
    indptr: npt.NDArray[np.int64]
    split: npt.NDArray[np.uint8]
    damaged: npt.NDArray[np.bool_] | None = None


class _RecentChunks:
    """Cache of the last chunks of an array; reads are slices of whole chunks.

    For a few cells, a read through TensorStore takes many times as long as a slice of an array in memory.
    """

    def __init__(self, array: StoredArray, max_chunks: int) -> None:
        self._array, self._max_chunks = array, max_chunks
        self._chunks: OrderedDict[int, Reading] = OrderedDict()

    def begin(self, start: int, stop: int) -> "_Stretch":
        """Begin to read elements [start, stop)."""
        size = self._array.chunk
        parts = []
        for number in range(start // size, (stop - 1) // size + 1):
            first = number * size
            parts.append((self._chunk(number), slice(max(0, start - first), min(size, stop - first))))
        return _Stretch(parts)

    def _chunk(self, number: int) -> Reading:
        chunk = self._chunks.get(number)
        if chunk is None:
            first = number * self._array.chunk
            chunk = self._array.begin(first, min(first + self._array.chunk, self._array.size))
            self._chunks[number] = chunk
            if len(self._chunks) > self._max_chunks:
                self._chunks.popitem(last=False)
        return chunk


@dataclass(frozen=True)
class _Stretch:
    """Elements that are being read: slices of chunks."""

    parts: list[tuple[Reading, slice]]

    def done(self) -> bool:
        """Whether calling this object would return without waiting."""
        return all(chunk.done() for chunk, _ in self.parts)

    def __call__(self) -> npt.NDArray[Any]:
        """The elements. Raises DataError if a chunk is missing or damaged."""
        slices = [chunk()[part] for chunk, part in self.parts]
        return slices[0] if len(slices) == 1 else np.concatenate(slices)


class _PendingBlock:
    def __init__(self, indptr: _Stretch, split: _Stretch, tokens: StoredArray, quarantine: Quarantine) -> None:
        self._pending_indptr, self._pending_split = indptr, split
        self._array, self._quarantine = tokens, quarantine
        self._indptr: npt.NDArray[np.int64]
        self._split: npt.NDArray[np.uint8]
        self._tokens: Reading

    def is_located(self) -> bool:
        """Whether `locate` would return without waiting."""
        return self._pending_indptr.done() and self._pending_split.done()

    def locate(self) -> int:
        """Wait for `indptr` and `split`. Returns the block's number of tokens."""
        self._indptr, self._split = self._pending_indptr(), self._pending_split()
        if (self._indptr[1:] < self._indptr[:-1]).any():
            path = self._array.path.parent / "indptr"
            raise DataError(f"{path}: decreases, so it is damaged; build the store again")
        return int(self._indptr[-1] - self._indptr[0])

    def begin_tokens(self, out: U16) -> None:
        """Begin to read the tokens into `out`."""
        self._tokens = self._array.begin(int(self._indptr[0]), int(self._indptr[-1]), out=out)

    def has_let_go(self) -> bool:
        """Whether nothing will write into the memory of the tokens any more."""
        return self._tokens.has_let_go()

    def wait(self) -> Block:
        """Wait for the tokens. Returns the block, with damaged cells set to `<pad>`."""
        start, stop = int(self._indptr[0]), int(self._indptr[-1])
        damaged = self._quarantine.lost(self._array, self._indptr)
        try:
            tokens: U16 = self._tokens() if damaged is None else self._undamaged_tokens(start, stop)
        except ChunkDamaged:
            tokens = self._undamaged_tokens(start, stop)
            damaged = self._quarantine.lost(self._array, self._indptr)
        indptr = self._indptr - start
        if damaged is not None:
            tokens[np.repeat(damaged, np.diff(indptr))] = PAD
        return Block(tokens, indptr, self._split, damaged)

    def _undamaged_tokens(self, start: int, stop: int) -> U16:
        """Tokens [start, stop), read chunk by chunk; `<pad>` for a damaged chunk, which is put into quarantine."""
        array = self._array
        tokens = np.full(stop - start, PAD, np.uint16)
        for number in range(start // array.chunk, -(-stop // array.chunk)):
            first, last = max(start, number * array.chunk), min(stop, (number + 1) * array.chunk)
            chunk = DamagedChunk.of(array, number)
            if chunk in self._quarantine:
                continue
            try:
                tokens[first - start : last - start] = array.read(first, last)
            except ChunkDamaged as error:
                self._quarantine.add(chunk, error)
        return tokens


class PendingBlocks:
    """Blocks that are being read, in two rounds: first `indptr` and `split`, then the tokens."""

    def __init__(self, blocks: list[_PendingBlock], spare: list[U16]) -> None:
        self._blocks, self._spare = blocks, spare
        self._buffer: U16 | None = None

    def advance(self) -> bool:
        """Begin the second round if that needs no waiting. Returns whether it has begun.

        Raises:
            DataError: `indptr` or `split` is damaged.
        """
        if self._buffer is None and all(block.is_located() for block in self._blocks):
            self._begin_tokens()
        return self._buffer is not None

    def wait(self) -> list[Block]:
        """Wait for the blocks, and return them.

        Raises:
            DataError: a chunk cannot be read, or more than `max_damaged` chunks are damaged.
        """
        if self._buffer is None:
            self._begin_tokens()
        return [block.wait() for block in self._blocks]

    def release(self) -> None:
        """Allow reuse of the memory of the blocks' tokens. The caller must not read them afterwards."""
        assert self._buffer is not None
        # A block with a damaged chunk does not wait for its first read, which may still write into this memory.
        if all(block.has_let_go() for block in self._blocks):
            self._spare.append(self._buffer)

    def _begin_tokens(self) -> None:
        sizes = [block.locate() for block in self._blocks]
        total = sum(sizes)
        self._buffer = self._spare.pop() if self._spare else np.empty(total, np.uint16)
        if len(self._buffer) < total:
            self._buffer = np.empty(total + total // 4, np.uint16)
        start = 0
        for block, size in zip(self._blocks, sizes, strict=True):
            block.begin_tokens(self._buffer[start : start + size])
            start += size


class StoreReader:
    """Read blocks by number, counted across all data sets of a store in the order of its manifest.

    Only chunks that a block touches are read, through one bounded cache; neither `indptr` nor `split` is ever held
    whole. Cells of a token chunk whose checksum fails are marked as damaged, for at most `max_damaged` such chunks.

    Args:
        path: the store: a folder, or a URL.
        cache_bytes: limit of the chunk cache.
        max_damaged: number of token chunks that may be damaged before a read fails.
        as_of: hash that the store had when the run started: data sets that were added later are not read. None reads
            the store as it is.

    Attributes:
        path: location of the store.
        manifest: its manifest, or what it was `as_of`.
        quarantine: the damaged chunks found so far.

    Raises:
        DataError: there is no store, it is damaged, or it is not the one that it was `as_of`.
    """

    def __init__(
        self,
        path: str | Path | Url,
        cache_bytes: int = 256 << 20,
        max_damaged: int = 0,
        as_of: str | None = None,
    ) -> None:
        self.path = location_of(path)
        manifest = Manifest.load(self.path)
        if as_of is not None and manifest.hash != as_of:
            earlier = manifest.before_adding(as_of)
            if earlier is None:
                raise DataError(f"{path}: has been replaced by another store since this run started: put it back")
            manifest = earlier
        self.manifest = manifest
        self.quarantine = Quarantine(max_damaged)
        self._context = open_context(cache_bytes)
        self._index_bytes = int(cache_bytes * _INDEX_SHARE) // max(1, len(self.manifest.datasets))
        self._spare: list[U16] = []
        self._opened: dict[str, tuple[_RecentChunks, _RecentChunks, StoredArray]] = {}
        self._first_block = [0, *itertools.accumulate(self.manifest.n_blocks)]

    def _open(self, data_set: str) -> tuple[_RecentChunks, _RecentChunks, StoredArray]:
        """`indptr`, `split` and `tokens` of a data set."""
        if data_set not in self._opened:
            indptr, split, tokens = (
                open_array(self.path, data_set, name, self._context) for name in ("indptr", "split", "tokens")
            )
            self._opened[data_set] = (
                _RecentChunks(indptr, max(1, self._index_bytes // (8 * indptr.chunk))),
                _RecentChunks(split, max(1, self._index_bytes // (8 * split.chunk))),
                tokens,
            )
        return self._opened[data_set]

    def begin(self, blocks: Sequence[int]) -> PendingBlocks:
        """Begin to read blocks, all at once."""
        per_block = self.manifest.block_cells
        pending = []
        sets = (np.searchsorted(self._first_block, blocks, side="right") - 1).tolist()
        for number, which in zip(blocks, sets, strict=True):
            data_set = self.manifest.datasets[which]
            start = (number - self._first_block[which]) * per_block
            stop = min(start + per_block, data_set.n_cells)
            indptr, split, tokens = self._open(data_set.name)
            pending.append(
                _PendingBlock(indptr.begin(start, stop + 1), split.begin(start, stop), tokens, self.quarantine)
            )
        return PendingBlocks(pending, self._spare)

    def read(self, blocks: Sequence[int]) -> list[Block]:
        """Read blocks.

        Raises:
            DataError: a chunk cannot be read, or more than `max_damaged` token chunks are damaged.
        """
        return self.begin(blocks).wait()
