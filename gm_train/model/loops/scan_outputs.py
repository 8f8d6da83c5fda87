"""Outputs and gradients of the scan's loops, from the states that `scan_states.py` computes."""

from typing import Any

import numpy as np

from data_shards.compiled import compiled
from gm_train.model.loops.powers import VECTORS, dot
from gm_train.model.loops.products import arguments, multiply, multiply_transposed_a, multiply_transposed_b
from gm_train.model.loops.scan_steps import (
    add_rows,
    borders,
    decay,
    powers,
    readable,
    scaled,
    zero_rows,
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
    chunk, length, inner, scratch = row.shape[3], runs.shape[1], heads * width, arguments()
    products, scores = np.empty((chunk, chunk), np.float32), np.empty((chunk, chunk), np.float32)
    read, read_C = np.empty(chunk, np.float32), np.empty((chunk, d_state), np.float32)
    low, high = np.empty(chunk, np.int64), np.empty(chunk, np.int64)
    of_product, of_score = (products.reshape(-1), 0, chunk), (scores.reshape(-1), 0, chunk)
    of_read_C, all_states, step = (read_C.reshape(-1), 0, d_state), states.reshape(-1), strides[1]
    for unit in range(first, last):
        b, c = unit // n, unit % n
        begin, of_runs = c * chunk, runs[b, c * chunk : (c + 1) * chunk]
        enters, _ = borders(runs[b], begin, begin + chunk, reverse)
        readable(of_runs, reverse, low, high)
        start = b * strides[0] + begin * step
        B, C = (flat, start + inner, step), (flat, start + inner + d_state, step)
        multiply_transposed_b(scratch, chunk, chunk, d_state, C, B, of_product, False)
        for h in range(heads):
            levels = column[b, c, h]
            for i in range(chunk):
                score, product, level = scores[i], products[i], row[b, c, h, i]
                lowest, end = np.int32(low[i]), np.int32(high[i])
                # Whole rows, with zeros where nothing is read, become vectors; loops from low to high mostly do not.
                for j in range(chunk):
                    value = product[j] * decay(level + levels[j])
                    score[j] = value if (np.int32(j) >= lowest) & (np.int32(j) < end) else _ZERO
                score[i] += D[h]
            out = y, (b * length + begin) * inner + h * width, inner
            multiply(scratch, chunk, width, chunk, of_score, (flat, start + h * width, step), out, False)
            powers(row[b, c, h], total[b, c, h] if reverse else _ZERO, of_runs, enters, read)
            scaled(flat, C[1], step, read, read_C)
            state = all_states, (unit * heads + h) * d_state * width, width
            multiply(scratch, chunk, width, d_state, of_read_C, state, out, True)


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
    """The scan's gradients; `of_states` are those by the states that leave the chunks.

    The gradient by the exponent of a column of the scores is the sum of the column's products with their gradients: x
    times its gradient, without the part of D.
    """
    n, heads, d_state, width = states.shape[1:]
    chunk, length, inner, scratch = row.shape[3], runs.shape[1], heads * width, arguments()
    square, single = np.empty((4, chunk, chunk), np.float32), np.empty((4, chunk), np.float32)
    products, d_products, scores, d_scores = square[0], square[1], square[2], square[3]
    read, write, by_row, by_column = single[0], single[1], single[2], single[3]
    wide, narrow = np.empty((chunk, width), np.float32), np.empty((chunk, d_state), np.float32)
    low, high = np.empty(chunk, np.int64), np.empty(chunk, np.int64)
    all_products, all_d_products = (products.reshape(-1), 0, chunk), (d_products.reshape(-1), 0, chunk)
    all_scores, all_d_scores = (scores.reshape(-1), 0, chunk), (d_scores.reshape(-1), 0, chunk)
    all_wide, all_narrow = (wide.reshape(-1), 0, width), (narrow.reshape(-1), 0, d_state)
    step, of_token = strides[1], inner + 2 * d_state
    all_states, all_d_states = states.reshape(-1), of_states.reshape(-1)
    for unit in range(first, last):
        b, c = unit // n, unit % n
        begin, of_runs = c * chunk, runs[b, c * chunk : (c + 1) * chunk]
        enters, leaves = borders(runs[b], begin, begin + chunk, reverse)
        readable(of_runs, reverse, low, high)
        start, token = b * strides[0] + begin * step, b * length + begin
        B, C = (flat, start + inner, step), (flat, start + inner + d_state, step)
        d_B = d_flat, token * of_token + inner, of_token
        d_C = d_flat, token * of_token + inner + d_state, of_token
        multiply_transposed_b(scratch, chunk, chunk, d_state, C, B, all_products, False)
        d_products[:] = _ZERO
        zero_rows(d_flat, d_C[1], of_token, chunk, d_state)
        for h in range(heads):
            x, g = (flat, start + h * width, step), (grad, token * inner + h * width, inner)
            d_x = d_flat, token * of_token + h * width, of_token
            at = (unit * heads + h) * d_state * width
            state, by_state = (all_states, at, width), (all_d_states, at, width)

            multiply_transposed_b(scratch, chunk, chunk, width, g, x, all_d_scores, False)
            levels, of_D = column[b, c, h], _ZERO
            for i in range(chunk):
                score, product, d_score, level = scores[i], products[i], d_scores[i], row[b, c, h, i]
                d_product, lowest, end = d_products[i], np.int32(low[i]), np.int32(high[i])
                of_D += d_score[i]
                # Each loop names few arrays: LLVM makes vectors only where it can prove that arrays do not overlap.
                for j in range(chunk):
                    power = decay(level + levels[j])
                    score[j] = power if (np.int32(j) >= lowest) & (np.int32(j) < end) else _ZERO
                for j in range(chunk):
                    d_product[j] += d_score[j] * score[j]
                for j in range(chunk):
                    score[j] *= product[j]
                by_row[i] = dot(d_score, score)
            d_D[unit, h] = of_D

            multiply_transposed_a(scratch, chunk, width, chunk, all_scores, g, d_x, False)
            powers(column[b, c, h], _ZERO if reverse else total[b, c, h], of_runs, leaves, write)
            scaled(flat, B[1], step, write, narrow)
            multiply(scratch, chunk, width, d_state, all_narrow, by_state, d_x, True)
            for t in range(chunk):
                of_x = d_flat[d_x[1] + t * of_token : d_x[1] + t * of_token + width]
                by_column[t] = dot(flat[x[1] + t * step : x[1] + t * step + width], of_x)
                of_y = grad[g[1] + t * inner : g[1] + t * inner + width]
                for p in range(width):
                    of_x[p] += D[h] * of_y[p]
            scaled(flat, x[1], step, write, wide)
            multiply_transposed_b(scratch, chunk, d_state, width, all_wide, by_state, d_B, h > 0)

            powers(row[b, c, h], total[b, c, h] if reverse else _ZERO, of_runs, enters, read)
            scaled(grad, g[1], inner, read, wide)
            multiply_transposed_b(scratch, chunk, d_state, width, all_wide, state, all_narrow, False)
            add_rows(narrow, d_flat, d_C[1], of_token)
            for t in range(chunk):
                by_row[t] += dot(flat[C[1] + t * step : C[1] + t * step + d_state], narrow[t])
            tokens = slice(begin, begin + chunk)
            d_A[unit, h] = _through_exponents(
                by_row, by_column, by_total[b, c, h], dt[b, tokens, h], A[h], of_runs, reverse, d_dt[b, tokens, h]
            )
        multiply_transposed_a(scratch, chunk, d_state, chunk, all_d_products, C, d_B, True)
        multiply(scratch, chunk, d_state, chunk, all_d_products, B, d_C, True)
