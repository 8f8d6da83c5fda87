"""Outputs and gradients of the scan's loops, from the states that `scan_states.py` computes."""

from typing import Any

import numpy as np

from data_shards.compiled import compiled
from gm_train.model.loops.powers import VECTORS, dot
from gm_train.model.loops.scan_steps import (
    add_rows,
    borders,
    decay,
    plus_scaled,
    powers,
    readable,
    rows,
    scaled_rows,
    transposed,
)
from gm_train.model.scan_limits import DT_FLOOR

_ZERO = np.float32(0)


@compiled(**VECTORS)
def outputs(
    flat: Any, strides: Any, row: Any, column: Any, total: Any, D: Any, runs: Any, reverse: bool, states: Any, y: Any,
    first: int, last: int,
) -> None:  # fmt: skip
    """The scan's outputs; `states` are those that enter the chunks."""
    n, heads, d_state, width = states.shape[1:]
    chunk, length, inner = row.shape[3], runs.shape[1], heads * width
    narrow, square = np.empty((2, chunk, d_state), np.float32), np.empty((2, chunk, chunk), np.float32)
    wide, read = np.empty((3, chunk, width), np.float32), np.empty(chunk, np.float32)
    B, C, products, scores = narrow[0], narrow[1], square[0], square[1]
    x, of_x, of_state = wide[0], wide[1], wide[2]
    low, high = np.empty(chunk, np.int64), np.empty(chunk, np.int64)
    for unit in range(first, last):
        b, c = unit // n, unit % n
        begin, m = c * chunk, min(chunk, length - c * chunk)
        of_runs = runs[b, begin : begin + m]
        enters, _ = borders(runs[b], begin, begin + m, reverse)
        readable(of_runs, reverse, low, high)
        start = b * strides[0] + begin * strides[1]
        rows(flat, start + inner, strides[1], m, B)
        rows(flat, start + inner + d_state, strides[1], m, C)
        np.dot(C, B.T, products)
        scores[m:] = _ZERO
        for h in range(heads):
            levels = column[b, c, h]
            for i in range(m):
                score, product, level = scores[i], products[i], row[b, c, h, i]
                score[:] = _ZERO
                for j in range(low[i], high[i]):
                    score[j] = product[j] * decay(level + levels[j])
                score[i] += D[h]
            rows(flat, start + h * width, strides[1], m, x)
            np.dot(scores, x, of_x)
            powers(row[b, c, h], total[b, c, h] if reverse else _ZERO, of_runs, enters, read)
            np.dot(C, states[b, c, h], of_state)
            plus_scaled(of_x, of_state, read, m, y, (b * length + begin) * inner + h * width, inner)


@compiled(**VECTORS)
def _through_states(
    values: Any, exponent: Any, state: Any, factor: Any, m: int, buffer: Any, turned: Any, of_factor: Any,
    d_factor: Any, by_exponent: Any,
) -> None:  # fmt: skip
    """Add the gradients of a product with states by its factor, B or C, and by its exponents.

    Args:
        values: x or the gradient by y, (chunk, width).
        exponent: 2^exponent, (chunk,).
        state: the gradient by the leaving state, or the entering state, (d_state, width).
        factor: B or C, (chunk, d_state).
        m: positions in the chunk.
        buffer, turned, of_factor: written over; (chunk, width), (width, d_state) and (chunk, d_state).
        d_factor: (chunk, d_state).
        by_exponent: (chunk,), in units of the natural logarithm.
    """
    scaled_rows(values.reshape(-1), 0, values.shape[1], m, exponent, buffer)
    transposed(state, turned)
    np.dot(buffer, turned, of_factor)
    add_rows(of_factor, m, d_factor)
    for t in range(m):
        by_exponent[t] += dot(of_factor[t], factor[t])


@compiled(**VECTORS)
def _through_exponents(
    by_row: Any, by_column: Any, by_total: float, dt: Any, A: float, runs: Any, reverse: bool, d_dt: Any
) -> Any:
    """Write the gradient by dt and return that by A, of one head in a chunk.

    The gradient of a running sum is a sum from the right; both are of one cell.
    """
    running, of_A, m = 0.0, 0.0, len(runs)
    for t in range(m - 1, -1, -1):
        of_level = by_row[t] - by_column[t]
        if t == m - 1:
            running = by_total
        elif runs[t] != runs[t + 1]:
            running = 0.0
        running += -of_level if reverse else of_level
        of_decay = running + of_level if reverse else running
        of_A += of_decay * dt[t]
        d_dt[t] = of_decay * A + (by_column[t] / dt[t] if dt[t] > DT_FLOOR else 0.0)
    return of_A


@compiled(**VECTORS)
def gradients(
    flat: Any, strides: Any, grad: Any, row: Any, column: Any, total: Any, D: Any, dt: Any, A: Any, runs: Any,
    reverse: bool, states: Any, of_states: Any, by_total: Any, d_flat: Any, d_dt: Any, d_A: Any, d_D: Any, first: int,
    last: int,
) -> None:  # fmt: skip
    """The scan's gradients; `of_states` are those by the states that leave the chunks."""
    n, heads, d_state, width = states.shape[1:]
    chunk, length, inner = row.shape[3], runs.shape[1], heads * width
    narrow, square = np.empty((5, chunk, d_state), np.float32), np.empty((4, chunk, chunk), np.float32)
    B, C, d_B, d_C, of_factor = narrow[0], narrow[1], narrow[2], narrow[3], narrow[4]
    products, d_products, scores, of_scores = square[0], square[1], square[2], square[3]
    wide, single = np.empty((5, chunk, width), np.float32), np.empty((4, chunk), np.float32)
    x, g, buffer, of_x, of_state = wide[0], wide[1], wide[2], wide[3], wide[4]
    read, write, by_row, by_column = single[0], single[1], single[2], single[3]
    ones = np.ones(chunk, np.float32)
    x_turned, turned = np.empty((width, chunk), np.float32), np.empty((width, d_state), np.float32)
    low, high = np.empty(chunk, np.int64), np.empty(chunk, np.int64)
    for unit in range(first, last):
        b, c = unit // n, unit % n
        begin, m = c * chunk, min(chunk, length - c * chunk)
        of_runs = runs[b, begin : begin + m]
        enters, leaves = borders(runs[b], begin, begin + m, reverse)
        readable(of_runs, reverse, low, high)
        start = b * strides[0] + begin * strides[1]
        rows(flat, start + inner, strides[1], m, B)
        rows(flat, start + inner + d_state, strides[1], m, C)
        np.dot(C, B.T, products)
        d_products[:], d_B[:], d_C[:], scores[:] = _ZERO, _ZERO, _ZERO, _ZERO
        of_token = inner + 2 * d_state
        d_start = (b * length + begin) * of_token
        for h in range(heads):
            rows(flat, start + h * width, strides[1], m, x)
            rows(grad, (b * length + begin) * inner + h * width, inner, m, g)
            transposed(x, x_turned)
            np.dot(g, x_turned, of_scores)
            levels = column[b, c, h]
            by_column[:] = _ZERO
            of_D = _ZERO
            for i in range(m):
                score, product, of_score, level = scores[i], products[i], of_scores[i], row[b, c, h, i]
                of_product = d_products[i]
                of_D += of_score[i]
                score[:] = _ZERO
                # Each loop names few arrays: LLVM makes vectors only where it can prove that arrays do not overlap.
                for j in range(low[i], high[i]):
                    score[j] = decay(level + levels[j])
                for j in range(low[i], high[i]):
                    of_product[j] += of_score[j] * score[j]
                for j in range(low[i], high[i]):
                    score[j] *= product[j]
                for j in range(low[i], high[i]):
                    by_column[j] += of_score[j] * score[j]
                by_row[i] = dot(of_score, score)
                score[i] += D[h]
            d_D[unit, h] = of_D
            np.dot(scores.T, g, of_x)
            powers(row[b, c, h], total[b, c, h] if reverse else _ZERO, of_runs, enters, read)
            _through_states(g, read, states[b, c, h], C, m, buffer, turned, of_factor, d_C, by_row)
            powers(column[b, c, h], _ZERO if reverse else total[b, c, h], of_runs, leaves, write)
            _through_states(x, write, of_states[b, c, h], B, m, buffer, turned, of_factor, d_B, by_column)
            np.dot(B, of_states[b, c, h], of_state)
            plus_scaled(of_x, of_state, write, m, d_flat, d_start + h * width, of_token)
            tokens = slice(begin, begin + m)
            d_A[unit, h] = _through_exponents(
                by_row, by_column, by_total[b, c, h], dt[b, tokens, h], A[h], of_runs, reverse, d_dt[b, tokens, h]
            )
        np.dot(d_products.T, C, of_factor)
        plus_scaled(of_factor, d_B, ones, m, d_flat, d_start + inner, of_token)
        np.dot(d_products, B, of_factor)
        plus_scaled(of_factor, d_C, ones, m, d_flat, d_start + inner + d_state, of_token)
