"""The states of the scan's loops: what each chunk adds to them, and how they go from chunk to chunk."""

import math
from typing import Any

import numpy as np

from data_shards.compiled import compiled
from gm_train.model.loops.powers import VECTORS, dot
from gm_train.model.loops.products import arguments, multiply_transposed_a
from gm_train.model.loops.scan_steps import borders, decay, powers, scaled
from gm_train.model.scan_limits import DT_FLOOR

_LN_2 = math.log(2)
_ZERO = np.float32(0)


@compiled(**VECTORS)
def exponents(
    dt: Any, A: Any, runs: Any, reverse: bool, row: Any, column: Any, total: Any, first: int, last: int
) -> None:
    """Exponents of a chunk, for each head; see `ChunkScan` for their names."""
    n, heads, chunk = row.shape[1:]
    for unit in range(first, last):
        b, c = unit // n, unit % n
        begin = c * chunk
        for h in range(heads):
            running = 0.0
            for t in range(chunk):
                step = dt[b, begin + t, h]
                here = step * A[h] / _LN_2
                if t == 0 or runs[b, begin + t] != runs[b, begin + t - 1]:
                    running = 0.0
                running += here
                level = np.float32(here - running) if reverse else np.float32(running)
                row[b, c, h, t] = level
                column[b, c, h, t] = np.float32(math.log2(max(step, DT_FLOOR))) - level
            total[b, c, h] = np.float32(running)


@compiled(**VECTORS)
def added(
    values: Any, strides: Any, factors: Any, of_factor: int, factor_strides: Any, exponent: Any, more: Any, runs: Any,
    leaving: bool, reverse: bool, states: Any, first: int, last: int,
) -> None:  # fmt: skip
    """What each chunk adds to the states of its heads: factor' (2^(exponent + more) values).

    The values of positions count that reach the state that leaves the chunk, or else that read the one that enters.
    """
    n, heads, d_state, width = states.shape[1:]
    chunk, scratch = exponent.shape[3], arguments()
    power, buffer = np.empty(chunk, np.float32), np.empty((chunk, width), np.float32)
    value, state = buffer.reshape(-1), states.reshape(-1)
    for unit in range(first, last):
        b, c = unit // n, unit % n
        begin, of_runs = c * chunk, runs[b, c * chunk : (c + 1) * chunk]
        enters, leaves = borders(runs[b], begin, begin + chunk, reverse)
        factor = factors, b * factor_strides[0] + begin * factor_strides[1] + of_factor, factor_strides[1]
        for h in range(heads):
            powers(exponent[b, c, h], more[b, c, h], of_runs, leaves if leaving else enters, power)
            scaled(values, b * strides[0] + begin * strides[1] + h * width, strides[1], power, buffer)
            out = state, (unit * heads + h) * d_state * width, width
            multiply_transposed_a(scratch, d_state, width, chunk, factor, (value, 0, width), out, False)


@compiled(**VECTORS)
def _keep(runs: Any, c: int, chunk: int, reverse: bool, total: Any) -> Any:
    """What the entering state is multiplied by to leave."""
    enters, leaves = borders(runs, c * chunk, (c + 1) * chunk, reverse)
    return decay(total) if enters == leaves else _ZERO


@compiled(**VECTORS)
def entering(total: Any, runs: Any, chunk: int, reverse: bool, states: Any, first: int, last: int) -> None:
    """Put the state that enters each chunk in place of what the chunk adds."""
    n, heads, d_state, width = states.shape[1:]
    state = np.empty((d_state, width), np.float32)
    for unit in range(first, last):
        b, h = unit // heads, unit % heads
        state[:] = _ZERO
        for k in range(n):
            c = n - 1 - k if reverse else k
            keep, here = _keep(runs[b], c, chunk, reverse, total[b, c, h]), states[b, c, h]
            for i in range(d_state):
                for p in range(width):
                    leaves = here[i, p] + keep * state[i, p]
                    here[i, p] = state[i, p]
                    state[i, p] = leaves


@compiled(**VECTORS)
def of_leaving(
    total: Any, runs: Any, chunk: int, reverse: bool, states: Any, grads: Any, by_total: Any, first: int, last: int
) -> None:
    """Put the gradient by the state that leaves each chunk in place of the chunk's own part of that by what enters.

    `by_total` gets the gradient by the natural logarithm of the factor 2^total, which is the product of a state and its
    gradient: of the state that enters, in reverse, otherwise of the one that leaves.
    """
    n, heads, d_state, width = states.shape[1:]
    grad = np.empty((d_state, width), np.float32)
    for unit in range(first, last):
        b, h = unit // heads, unit % heads
        grad[:] = _ZERO
        product = _ZERO
        for k in range(n):
            c = k if reverse else n - 1 - k
            keep, here = _keep(runs[b], c, chunk, reverse, total[b, c, h]), grads[b, c, h]
            if not reverse:
                by_total[b, c, h] = product  # of the chunk after this one
            product = _ZERO
            for i in range(d_state):
                for p in range(width):
                    enters = here[i, p] + keep * grad[i, p]
                    here[i, p] = grad[i, p]
                    grad[i, p] = enters
                product += dot(grad[i], states[b, c, h, i])
            if reverse:
                by_total[b, c, h] = product
