"""The boundaries between the cells of packed rows, in the forms that convolution and scan need."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Direction:
    """Boundaries for the scan in one direction; `n` is batch * number of chunks."""

    seq_idx: Tensor  # int32 (batch, length), each cell's number within its row, in the order of reading
    within: Tensor  # (n, 1, chunk, chunk), 0 where output i may read input j, -inf elsewhere
    into: Tensor  # (n, chunk, 1), 0 where a position reaches the state that leaves its chunk, -inf elsewhere
    out: Tensor  # (n, chunk, 1), 0 where a position reads the state that enters its chunk, -inf elsewhere
    carry: Tensor  # (batch, n_chunks, 1) bool: the entering state also leaves


@dataclass(frozen=True)
class Segments:
    """Boundaries of a batch of packed rows: made once for each forward pass, read by every layer."""

    cells: Tensor  # int32 (2 * batch, length), `seq_idx` of the forward direction, then that of the reverse one
    same: tuple[Tensor, ...]  # same[k - 1]: (batch, length - k, 1) bool, positions t and t + k are in one cell
    reach: Tensor  # int8 (2, batch, length), tokens of a cell before and after each position, at most taps - 1
    forward: Direction
    reverse: Direction
    sums: Tensor  # float64 (n, chunk, chunk), sums @ values: running sums in a chunk that restart at each cell
    chunk: int  # positions in a chunk of the scan


def make_segments(segment: Tensor, chunk: int, taps: int, dtype: torch.dtype = torch.float32) -> Segments:
    """Prepare the boundaries of packed rows.

    Args:
        segment: integer (batch, length); each cell is a contiguous run of one number, and so is the unused tail.
        chunk: positions in a chunk of the scan.
        taps: width of the depthwise convolution.
        dtype: type of the decay, at least float32.
    """
    batch, length = segment.shape
    # Runs are numbered anew, so that two positions have the same number only if all between them have it as well.
    change = torch.ones_like(segment, dtype=torch.bool)
    change[:, 1:] = segment[:, 1:] != segment[:, :-1]
    run = change.cumsum(1)
    same = tuple((run[:, k:] == run[:, :-k])[..., None] for k in range(1, min(taps, length)))

    reach = torch.zeros(2, batch, length, dtype=torch.int8, device=segment.device)
    for k, mask in enumerate(same, start=1):
        reach[0, :, k:] += mask[..., 0]
        reach[1, :, :-k] += mask[..., 0]

    n_chunks = -(-length // chunk)
    filled = torch.nn.functional.pad(run, (0, n_chunks * chunk - length)).view(batch, n_chunks, chunk)
    pair = filled[..., :, None] == filled[..., None, :]
    first, last = filled[..., :1], filled[..., -1:]
    outside = torch.full_like(first[:, :1], -1)  # the number of no cell: beyond either end of the row
    before = torch.cat([outside, last[:, :-1]], dim=1)
    after = torch.cat([first[:, 1:], outside], dim=1)

    def log_mask(allowed: Tensor, *shape: int) -> Tensor:
        zeros = torch.zeros(allowed.shape, dtype=dtype, device=segment.device)
        return zeros.masked_fill_(~allowed, -torch.inf).view(-1, *shape)

    def direction(seq_idx: Tensor, readable: Tensor, exit_run: Tensor, entry_run: Tensor) -> Direction:
        return Direction(
            seq_idx=seq_idx,
            within=log_mask(readable, 1, chunk, chunk),
            into=log_mask(filled == exit_run, chunk, 1),
            out=log_mask(filled == entry_run, chunk, 1),
            carry=entry_run == exit_run,
        )

    cells = torch.cat([run, run.flip(1)]).int()
    return Segments(
        cells=cells,
        same=same,
        reach=reach,
        forward=direction(cells[:batch], pair.tril(), last, before),
        reverse=direction(cells[batch:], pair.triu(), first, after),
        sums=pair.tril().view(-1, chunk, chunk).to(torch.float64),
        chunk=chunk,
    )
