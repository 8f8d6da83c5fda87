"""The scan of `ssd.py` as compiled loops for a CPU, in float32.

Both passes go through the chunks for what each chunk adds to the states, then for the states from chunk to chunk, and
then for the rest. A thread works on one chunk at a time, and what lies between its products stays in the cache of
its core. x, B and C are read where the convolution left them, and their gradient is one array. The operations are
registered with PyTorch, so that a compiled graph does not break at them. `chunk_scan.py` has the formulas.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.model.loops import cpu, products, scan_outputs, scan_states
from gm_train.model.loops.tensor_memory import copy_of, memory_of
from gm_train.model.loops.threads import in_threads

#: Rows * columns * inner size of the largest product. Above, OpenBLAS, which compiled code calls in SciPy's build,
#: divides a product among threads of its own, and threads that call it at the same time wait for each other.
LARGEST_PRODUCT = 64**3
#: Number of the cell of positions that fill a row up; -1 stands for what lies outside of rows.
_NO_CELL = -2


def takes(xBC: Tensor, dt: Tensor, chunk: int, d_state: int) -> bool:
    """Whether the loops can scan these arrays; see `scan_loops` for their shapes."""
    width = (xBC.shape[2] - 2 * d_state) // dt.shape[2]
    small = chunk * max(chunk * max(width, d_state), d_state * width) <= LARGEST_PRODUCT
    return (
        products.CAN_MULTIPLY
        and cpu.on_cpu(xBC)
        and xBC.dtype == dt.dtype == torch.float32
        and small
        and xBC.numel() > 0
    )


def scan(
    xBC: Tensor, dt: Tensor, A: Tensor, D: Tensor, runs: Tensor, d_state: int, chunk: int, reverse: bool
) -> Tensor:
    """Scan packed rows of any length; see `scan_loops` for the arguments. Returns y.

    Rows are filled up to whole chunks. Then all products have one size, and no cell depends on its row's length.
    """
    length = xBC.shape[1]
    fill = -length % chunk
    if fill:
        xBC, dt = F.pad(xBC, (0, 0, 0, fill)), F.pad(dt, (0, 0, 0, fill))
        runs = F.pad(runs, (0, fill), value=_NO_CELL)
    y: Tensor = scan_loops(xBC, dt, A, D, runs, d_state, chunk, reverse)[0]
    return y[:, :length]


@torch.library.custom_op("gm_train::scan_loops", mutates_args=(), device_types="cpu")
def scan_loops(
    xBC: Tensor, dt: Tensor, A: Tensor, D: Tensor, runs: Tensor, d_state: int, chunk: int, reverse: bool
) -> list[Tensor]:
    """Scan packed rows of whole chunks.

    Args:
        xBC: float32 (batch, length, heads * head_dim + 2 * d_state): x, B and C; chunk divides length.
        dt: float32 (batch, length, heads), positive step sizes.
        A: float32 (heads,), negative.
        D: float32 (heads,), weight of the skip connection.
        runs: int32 (batch, length), each cell's number within its row.
        d_state: size of B and C.
        chunk: positions that are scanned at once.
        reverse: read from the right.

    Returns:
        y (batch, length, heads, head_dim). For the gradient: the exponents by row and column
        (batch, n_chunks, heads, chunk) and of whole chunks (batch, n_chunks, heads), and the states that enter the
        chunks (batch, n_chunks, heads, d_state, head_dim).

    Raises:
        ValueError: the rows are not whole chunks.
    """
    if xBC.shape[1] % chunk:
        raise ValueError(f"rows of {xBC.shape[1]} tokens are not whole chunks of {chunk}")
    y, *kept = _empty(xBC, dt, d_state, chunk)
    x, strides = memory_of(xBC)
    row, column, total, states = (value.numpy() for value in kept)
    of_runs, of_dt, of_D = runs.numpy(), _contiguous(dt), copy_of(D)
    of_A, zero = copy_of(A), torch.zeros_like(kept[2]).numpy()
    batch, n_chunks, heads = total.shape
    units, inner = batch * n_chunks, y.shape[2] * y.shape[3]
    in_threads(lambda i, j: scan_states.exponents(of_dt, of_A, of_runs, reverse, row, column, total, i, j), units)
    written = (x, strides, x, inner, strides, column, zero if reverse else total, of_runs, True, reverse, states)
    in_threads(lambda i, j: scan_states.added(*written, i, j), units)
    in_threads(lambda i, j: scan_states.entering(total, of_runs, chunk, reverse, states, i, j), batch * heads)
    given = (x, strides, row, column, total, of_D, of_runs, reverse, states, y.view(-1).numpy())
    in_threads(lambda i, j: scan_outputs.outputs(*given, i, j), units)
    return [y, *kept]


@torch.library.custom_op("gm_train::scan_loops_backward", mutates_args=(), device_types="cpu")
def scan_loops_backward(
    grad: Tensor, xBC: Tensor, dt: Tensor, A: Tensor, D: Tensor, runs: Tensor, kept: list[Tensor], reverse: bool
) -> list[Tensor]:
    """Gradients of `scan_loops`.

    Args:
        grad: by y.
        xBC, dt, A, D, runs, reverse: as in `scan_loops`.
        kept: its further outputs.

    Returns:
        The gradients by xBC and dt, contiguous, and those by A and D in parts that the caller adds up: (parts, heads).
    """
    row, column, total, states = (value.numpy() for value in kept)
    (batch, n_chunks, heads), (d_state, width), chunk = total.shape, states.shape[3:], row.shape[3]
    units, inner, length = batch * n_chunks, heads * width, xBC.shape[1]
    d_xBC, d_dt, d_A, d_D = _empty_gradients(xBC, dt, units)
    x, strides = memory_of(xBC)
    by_y, of_y = memory_of(grad.reshape(batch, length, inner).contiguous())
    of_runs, of_dt = runs.numpy(), _contiguous(dt)
    of_A, of_D = copy_of(A), copy_of(D)
    of_states, by_total = torch.empty(states.shape).numpy(), torch.empty(total.shape).numpy()
    zero = torch.zeros(total.shape).numpy()
    read = (
        by_y, of_y, x, inner + d_state, strides, row, total if reverse else zero, of_runs, False, reverse, of_states,
    )  # fmt: skip
    in_threads(lambda i, j: scan_states.added(*read, i, j), units)
    left = (total, of_runs, chunk, reverse, states, of_states, by_total)
    in_threads(lambda i, j: scan_states.of_leaving(*left, i, j), batch * heads)
    given = (
        x, strides, by_y, row, column, total, of_D, of_dt, of_A, of_runs, reverse, states, of_states, by_total,
        d_xBC.view(-1).numpy(), d_dt.numpy(), d_A.numpy(), d_D.numpy(),
    )  # fmt: skip
    in_threads(lambda i, j: scan_outputs.gradients(*given, i, j), units)
    return [d_xBC, d_dt, d_A, d_D]


def _contiguous(value: Tensor) -> Any:
    return value.detach().contiguous().numpy()


def _empty(xBC: Tensor, dt: Tensor, d_state: int, chunk: int) -> list[Tensor]:
    batch, length, heads = dt.shape
    n_chunks, width = length // chunk, (xBC.shape[2] - 2 * d_state) // heads
    exponents = (batch, n_chunks, heads, chunk)
    shapes = ((batch, length, heads, width), exponents, exponents, exponents[:3], (*exponents[:3], d_state, width))
    return [xBC.new_empty(shape) for shape in shapes]


def _empty_gradients(xBC: Tensor, dt: Tensor, parts: int) -> list[Tensor]:
    return [xBC.new_empty(shape) for shape in (xBC.shape, dt.shape, (parts, dt.shape[2]), (parts, dt.shape[2]))]


@scan_loops.register_fake
def _(
    xBC: Tensor, dt: Tensor, A: Tensor, D: Tensor, runs: Tensor, d_state: int, chunk: int, reverse: bool
) -> list[Tensor]:
    return _empty(xBC, dt, d_state, chunk)


@scan_loops_backward.register_fake
def _(
    grad: Tensor, xBC: Tensor, dt: Tensor, A: Tensor, D: Tensor, runs: Tensor, kept: list[Tensor], reverse: bool
) -> list[Tensor]:
    return _empty_gradients(xBC, dt, kept[2].shape[0] * kept[2].shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    xBC, dt, A, D, runs, _, _, reverse = inputs
    ctx.save_for_backward(xBC, dt, A, D, runs, *output[1:])
    ctx.reverse = reverse
    ctx.set_materialize_grads(False)  # nothing depends on the states that are kept: no zeros for their gradients


def _backward_of(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    grad = grads[0]
    if grad is None:
        return (None,) * 8
    xBC, dt, A, D, runs, *kept = ctx.saved_tensors
    d_xBC, d_dt, d_A, d_D = scan_loops_backward(grad, xBC, dt, A, D, runs, kept, ctx.reverse)
    return d_xBC, d_dt, d_A.sum(0), d_D.sum(0), None, None, None, None


scan_loops.register_autograd(_backward_of, setup_context=_keep)
