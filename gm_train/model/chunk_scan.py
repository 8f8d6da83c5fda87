"""The products of a chunked scan, forward and backward, over as many chunks at a time as a core's cache can hold."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.model.loops import cpu
from gm_train.model.scan_limits import SMALLEST

#: Elements of an array of scores that is worked on at a time on a CPU: about a dozen such arrays are in use.
_SCORES_AT_A_TIME = 2**18

_Slices = tuple[slice, slice]


class ChunkScan(torch.autograd.Function):
    """Outputs of the scan from its exponents.

    With P = C B', scores S_ij = P_ij 2^(row_i + column_j + within_ij) plus D on the diagonal, E the state that enters a
    chunk, and all powers by head:

        y_i = sum over j of S_ij x_j + 2^(row_i + [total] + out_i) C_i E
        E of the next chunk = sum over j of 2^(column_j + [total] + into_j) B_j x_j + 2^total carry E

    where [total] belongs to the second line when reading forward, and to the first in reverse.

    The gradient is written by hand: scores are computed again and not kept, and both passes take a few chunks at a
    time, so that arrays of scores never leave the cache of a core.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, B: Tensor, C: Tensor, D: Tensor, row: Tensor, column: Tensor, total: Tensor,
        within: Tensor, into: Tensor, out: Tensor, carry: Tensor, reverse: bool,
    ) -> Tensor:  # fmt: skip
        """Compute y.

        Args:
            ctx: keeps what the gradient needs.
            x: (batch, n_chunks, chunk, heads, head_dim).
            B, C: (batch, n_chunks, chunk, d_state), in the type of x.
            D: (heads,).
            row, column: exponents (batch, n_chunks, heads, chunk), float32 or float64.
            total: exponents (batch, n_chunks, heads), in the type of `row`.
            within, into, out, carry: see `segments.Direction`.
            reverse: read from the right.

        Returns:
            (batch, n_chunks, chunk, heads, head_dim), in the type of x.
        """
        n_chunks = x.shape[1]
        y = x.new_empty(x.shape)
        entering = x.new_empty(*x.shape[:2], x.shape[3], B.shape[-1], x.shape[4]) if n_chunks > 1 else x.new_empty(0)
        kept = (x, B, C, D, row, column, total, within, into, out, carry)
        scan = _Scan(reverse, *kept)
        with torch.autocast(x.device.type, enabled=False):
            for at, first in scan.blocks(reverse):
                xs = _heads_first(x[at])
                products, decay = scan.factors(at)
                ys = scan.scores(products, decay).bmm(xs)
                if n_chunks > 1:
                    if first:
                        state = None
                    written, _ = scan.written(at)
                    added = written.flatten(0, 1).mT.bmm(xs).view(entering[at].shape).to(row.dtype)
                    keep = scan.keep(at)
                    for k in _order(added.shape[1], reverse):
                        state = torch.zeros_like(added[:, 0]) if state is None else state
                        entering[at][:, k] = state
                        state = torch.addcmul(added[:, k], state, keep[:, k])
                    read, _ = scan.read(at)
                    ys.baddbmm_(read.flatten(0, 1), entering[at].flatten(0, 2))
                y[at] = ys.view(y[at].transpose(2, 3).shape).transpose(2, 3)
        ctx.save_for_backward(*kept, entering)
        ctx.reverse = reverse
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients by x, B, C, D, row, column and total."""
        *kept, entering = ctx.saved_tensors
        x, B, C, D, row, column, total = kept[:7]
        scan = _Scan(ctx.reverse, *kept)
        (grad,) = grads
        d_x, d_B, d_C, d_row, d_column, d_entered = (v.new_empty(v.shape) for v in (x, B, C, row, column, total))
        d_D = torch.zeros_like(D)
        with torch.autocast(x.device.type, enabled=False):
            for at, first in scan.blocks(not ctx.reverse):
                xs, gs = _heads_first(x[at]), _heads_first(grad[at])
                Bs, Cs = B[at].flatten(0, 1), C[at].flatten(0, 1)
                products, decay = scan.factors(at)
                d_xs = scan.scores(products, decay).mT.bmm(gs)
                weighted = gs.bmm(xs.mT).view(decay.shape)
                d_D += weighted.diagonal(dim1=-2, dim2=-1).sum((0, 2), dtype=D.dtype)
                weighted = decay.mul_(weighted)
                d_products = weighted.sum(1).to(x.dtype)
                weighted *= products
                by_row, by_column = weighted.sum(-1), weighted.sum(-2)
                d_Bs, d_Cs = d_products.mT @ Cs, d_products @ Bs
                if x.shape[1] > 1:
                    if first:
                        d_state = None
                    read, power = scan.read(at)
                    states = entering[at].flatten(0, 2)
                    d_read = gs.bmm(states.mT).view(read.shape).to(row.dtype).mul_(power)
                    d_Cs += d_read.sum(1)
                    by_row += d_read.mul_(Cs[:, None]).sum(-1)
                    d_entering = read.flatten(0, 1).mT.bmm(gs).view(entering[at].shape).to(row.dtype)
                    d_leaving = torch.empty_like(d_entering)
                    keep = scan.keep(at)
                    for k in _order(d_entering.shape[1], not ctx.reverse):
                        d_state = torch.zeros_like(d_entering[:, 0]) if d_state is None else d_state
                        d_leaving[:, k] = d_state
                        d_state = d_entering[:, k].addcmul_(d_state, keep[:, k])
                    d_entered[at] = (d_entering * entering[at]).sum((-2, -1))
                    left = d_leaving.to(x.dtype).flatten(0, 2)
                    written, power = scan.written(at)
                    d_xs.baddbmm_(written.flatten(0, 1), left)
                    d_written = xs.bmm(left.mT).view(written.shape).to(row.dtype).mul_(power)
                    d_Bs += d_written.sum(1)
                    by_column += d_written.mul_(Bs[:, None]).sum(-1)
                d_row[at], d_column[at] = by_row.view(row[at].shape), by_column.view(column[at].shape)
                d_x[at] = d_xs.view(x[at].transpose(2, 3).shape).transpose(2, 3)
                d_B[at], d_C[at] = d_Bs.view(B[at].shape), d_Cs.view(C[at].shape)
        # The power 2^total scales the whole state that leaves (forward) or enters (reverse).
        if x.shape[1] == 1:
            d_total = None
        elif ctx.reverse:
            d_total = d_entered * math.log(2)
        else:
            d_total = F.pad(d_entered[:, 1:], (0, 0, 0, 1)) * math.log(2)
        of_exponents = d_row * math.log(2), d_column * math.log(2), d_total
        return d_x, d_B, d_C, d_D, *of_exponents, None, None, None, None, None


@dataclass(frozen=True)
class _Scan:
    """What both passes compute for some chunks, named by slices of rows and chunks; m is the number of chunks."""

    reverse: bool
    x: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    row: Tensor
    column: Tensor
    total: Tensor
    within: Tensor
    into: Tensor
    out: Tensor
    carry: Tensor

    def blocks(self, backwards: bool) -> Iterator[tuple[_Slices, bool]]:
        """Yield slices of rows and chunks, and whether they are the first of their rows, from the left or the right."""
        batch, n_chunks, heads, chunk = self.row.shape
        # A compiler would see each block anew.
        whole = not cpu.on_cpu(self.x) or torch.compiler.is_compiling()
        at_once = batch * n_chunks if whole else max(1, _SCORES_AT_A_TIME // (heads * chunk * chunk))
        n_rows, several = max(1, at_once // n_chunks), min(at_once, n_chunks)
        for r in range(0, batch, n_rows):
            starts = range(0, n_chunks, several)
            for i, c in enumerate(reversed(starts) if backwards else starts):
                yield (slice(r, r + n_rows), slice(c, min(c + several, n_chunks))), i == 0

    def factors(self, at: _Slices) -> tuple[Tensor, Tensor]:
        """Return C B' (m, 1, chunk, chunk) and the powers of 2 of the scores (m, heads, chunk, chunk)."""
        row, column = (value[at].flatten(0, 1) for value in (self.row, self.column))
        within = self.within.view(*self.row.shape[:2], *self.within.shape[1:])[at].flatten(0, 1)
        # The mask is added before the power: where i may not read j, the exponent is positive and could overflow.
        decay = _power((row[..., :, None] + column[..., None, :]).add_(within))
        return (self.C[at].flatten(0, 1) @ self.B[at].flatten(0, 1).mT)[:, None], decay

    def scores(self, products: Tensor, decay: Tensor) -> Tensor:
        """Return S (m * heads, chunk, chunk), in the type of x."""
        scores = products * decay
        scores.diagonal(dim1=-2, dim2=-1).add_(self.D[:, None])
        return scores.flatten(0, 1).to(self.x.dtype)

    def read(self, at: _Slices) -> tuple[Tensor, Tensor]:
        """Return what reads the states that enter, C times powers (m, heads, chunk, d_state), and the powers."""
        return self._times_powers(at, self.C, self.row, self.out, self.reverse)

    def written(self, at: _Slices) -> tuple[Tensor, Tensor]:
        """Return what adds to the states that leave, B times powers (m, heads, chunk, d_state), and the powers."""
        return self._times_powers(at, self.B, self.column, self.into, not self.reverse)

    def _times_powers(
        self, at: _Slices, value: Tensor, exponent: Tensor, mask: Tensor, whole: bool
    ) -> tuple[Tensor, Tensor]:
        exponent = exponent[at] + mask.view(*self.row.shape[:2], 1, -1)[at]
        if whole:
            exponent += self.total[at][..., None]
        power = _power(exponent).flatten(0, 1)[..., None]
        return (value[at].flatten(0, 1)[:, None] * power).to(value.dtype), power

    def keep(self, at: _Slices) -> Tensor:
        """Return what the states that enter are multiplied by to leave, (rows, chunks, heads, 1, 1)."""
        return (_power(self.total[at].clone()) * self.carry[at])[..., None, None]


def _heads_first(x: Tensor) -> Tensor:
    """Copy (rows, chunks, chunk, heads, head_dim) to (rows * chunks * heads, chunk, head_dim)."""
    return x.transpose(2, 3).reshape(-1, x.shape[2], x.shape[4])


def _power(exponent: Tensor) -> Tensor:
    """Compute powers of 2 in place of their exponents."""
    return F.threshold(exponent, SMALLEST, -math.inf, inplace=True).exp2_()


def _order(n: int, backwards: bool) -> range:
    return range(n - 1, -1, -1) if backwards else range(n)
