"""Cells of different lengths in one flat array, and the padded batches that a model takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.tokens.vocabulary import PAD

#: Rows of a batch are a multiple of this many tokens long.
_LENGTH_STEP = 32


def batch_tokens(device: torch.device) -> int:
    """Tokens of a padded batch, pads included: few enough for a CPU's caches, or enough to fill a GPU."""
    return 4_096 if device.type == "cpu" else 65_536


@dataclass(frozen=True)
class Ragged:
    """Token lists of cells, best-ranked gene first.

    Attributes:
        tokens: integers (n_tokens,), cells one after another.
        indptr: int64 (n_cells + 1,), where each cell starts.
    """

    tokens: npt.NDArray[np.integer]
    indptr: npt.NDArray[np.int64]

    @classmethod
    def concatenate(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """Concatenate the cells of several parts."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.tokens for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.indptr) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each cell: int64 (n_cells,)."""
        return np.diff(self.indptr)

    def cell(self, number: int) -> npt.NDArray[np.integer]:
        """The tokens of one cell: (length,)."""
        return self.tokens[self.indptr[number] : self.indptr[number + 1]]

    def take(self, cells: npt.NDArray[np.int64]) -> "Ragged":
        """The cells of these numbers, int64 (n,), in the order given."""
        lengths = self.lengths[cells]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], lengths)
        return Ragged(self.tokens[np.repeat(self.indptr[cells], lengths) + within], indptr)


def padded_batches(cells: Ragged, device: torch.device) -> Iterator[tuple[npt.NDArray[np.int64], Tensor, Tensor]]:
    """Yield batches of cells of similar length, one cell to a row.

    The shape of a batch follows from the length of its cells alone: that length is rounded up, and rows that no cell
    needs stay empty. Kernels may round differently for other shapes, and a cell's states must be the same in any batch.
    Fewer rows for a few cells, rounded up to a power of two, were measured in float32 with 4 layers of 64 and 256
    channels: on one thread of a CPU the vectors are equal, but on several they differ by up to 9e-7 of their largest
    value, and by 1.2e-6 with 100 channels, because threads divide the rows differently.

    The longest cells come first, so that memory runs out in the first batch or never. Cells without tokens are skipped.

    Args:
        cells: the cells.
        device: of the tensors.

    Yields:
        The cells' numbers, int64 (n,), n <= batch; tokens, int64 (batch, length), pads at the end; segments, int64
        (batch, length), 1 on the cell and 0 on pads. Row i is the i-th cell; rows from n on are empty.
    """
    budget = batch_tokens(device)  # at least one cell is taken, whatever its length
    lengths = cells.lengths
    padded = -(-lengths // _LENGTH_STEP) * _LENGTH_STEP
    order = np.argsort(-padded, kind="stable")
    order = order[lengths[order] > 0]
    start = 0
    while start < len(order):
        length = int(padded[order[start]])
        rows = max(1, budget // length)
        numbers = order[start : start + rows]
        numbers = numbers[padded[numbers] == length]
        start += len(numbers)
        real = np.zeros((rows, length), dtype=np.bool_)
        real[: len(numbers)] = np.arange(length) < lengths[numbers][:, None]
        input_ids = np.full(real.shape, PAD, dtype=np.int64)
        input_ids[real] = cells.take(numbers).tokens
        yield (
            numbers,
            torch.from_numpy(input_ids).to(device),
            torch.from_numpy(real.astype(np.int64)).to(device),
        )
