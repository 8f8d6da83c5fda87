"""Run our Triton kernels on the CPU; `python -m tests.support.kernels_on_cpu` prints their errors.

`test_triton_kernels.py` starts this in its own process: TRITON_INTERPRET must be set before anything imports triton.
"""

import json

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.model.conv import DepthwiseConv
from gm_train.model.kernels import conv_kernels, norm_kernels
from gm_train.model.norm import GatedRMSNorm
from gm_train.model.segments import make_segments
from tests.support import oracle
from tests.support.small_models import pack, random_cells, relative_error
from tests.support.triton_on_cpu import patch

#: Shapes, with odd lengths and widths: (batch, length, width).
SHAPES = ((2, 37, 48), (1, 53, 200), (3, 1, 5))
Rows = tuple[tuple[int, ...], ...]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def norm_errors(shape: tuple[int, int, int], directions: int, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of the outputs and of all gradients against float64.

    Args:
        shape: (batch, length, width).
        directions: how many y share one z.
        dtype: of y and z.
    """
    torch.manual_seed(0)
    columns = torch.randn(*shape[:-1], 2 * shape[-1] + 3).to(dtype)
    z = columns[..., 3 : 3 + shape[-1]].requires_grad_()  # a slice, as of the input projection
    ys = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(directions)]
    # The mean is not zero, so that no gradient that is a sum over all tokens is close to zero by accident.
    grads = [(1 + torch.randn(shape)).to(dtype) for _ in ys]
    norm = GatedRMSNorm(shape[-1], fused_on=("cpu",))
    torch.nn.init.normal_(norm.weight)
    outs = norm(z, *ys)
    found = torch.autograd.grad(outs, [z, *ys, norm.weight], grads)

    exact = [value.detach().double().requires_grad_() for value in (z, *ys, norm.weight)]
    gate = oracle.silu(exact[0])
    wanted_outs = [oracle.rms_norm(y * gate, exact[-1]) for y in exact[1:-1]]
    wanted = torch.autograd.grad(wanted_outs, exact, [grad.double() for grad in grads])
    names = ["dz", *(f"dy{i}" for i in range(directions)), "dweight"]
    errors = {f"y{i}": relative_error(a, b) for i, (a, b) in enumerate(zip(outs, wanted_outs, strict=True))}
    return errors | {name: relative_error(a, b) for name, a, b in zip(names, found, wanted, strict=True)}


#: Cells of each row, and channels and taps.
CONVOLUTIONS = (
    (((9, 1, 20, 2), (16, 17)), 72, 4),
    (((1, 1, 40), (50, 3)), 5, 3),
    (((2,), (1,)), 66, 4),
)


def conv_errors(rows: Rows, channels: int, taps: int, bidirectional: bool, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of the outputs and of all gradients against float64.

    Args:
        rows: lengths of the cells of each row; rows end with unused tokens.
        channels, taps: sizes.
        bidirectional: whether to compute the mirrored form as well.
        dtype: of x.
    """
    _, segment = pack([random_cells(list(row), 0) for row in rows], tail=3)
    torch.manual_seed(0)
    columns = torch.randn(*segment.shape, channels + 11).to(dtype)
    x = columns[..., 5 : 5 + channels].requires_grad_()  # a slice, as of the input projection
    conv = DepthwiseConv(channels, taps)
    segments = make_segments(segment, 16, taps)
    conv.on_package = False
    outs = conv(x, segments, bidirectional, as_read=True)
    grads = [(1 + torch.randn(x.shape)).to(dtype) for _ in outs]
    leaves = [x, conv.weight, conv.bias]
    found = torch.autograd.grad(outs, leaves, grads)

    exact = [value.detach().double().requires_grad_() for value in leaves]
    wanted_outs = [torch.zeros(x.shape, dtype=torch.float64) for _ in outs]
    for row, numbers in enumerate(segment):
        for number in numbers.unique():
            at = (numbers == number).nonzero()[:, 0]
            wanted_outs[0][row, at] = oracle.silu(oracle.convolve(exact[0][row, at], *exact[1:]))
            if bidirectional:
                at = at.flip(0)
                mirrored = oracle.silu(oracle.convolve(exact[0][row, at], *exact[1:]))
                wanted_outs[1][row, x.shape[1] - 1 - at] = mirrored
    wanted = torch.autograd.grad(wanted_outs, exact, [grad.double() for grad in grads])
    errors = {f"y{i}": relative_error(a, b) for i, (a, b) in enumerate(zip(outs, wanted_outs, strict=True))}
    names = ("dx", "dweight", "dbias")
    return errors | {name: relative_error(a, b) for name, a, b in zip(names, found, wanted, strict=True)}


def check_registration() -> None:
    """Raise if PyTorch finds that an operation's fake kernel, autograd or schema does not fit what it does."""

    def value(*shape: int) -> Tensor:
        return torch.randn(shape, requires_grad=True)

    for n in (1, 2):
        ys = [value(2, 5, 12) for _ in range(n)]
        torch.library.opcheck(norm_kernels.gated_norm, (value(2, 5, 12), ys, value(12), 1e-5))
        cells = torch.tensor([[1, 1, 2, 2, 2], [1, 2, 3, 3, 3]], dtype=torch.int32)
        torch.library.opcheck(conv_kernels.conv_silu, (value(2, 5, 12), cells, value(12, 4), value(12), n == 2))


def compiled_error() -> float:
    """Relative error of a compiled norm, as one graph, beside the same one that is not compiled."""
    norm = GatedRMSNorm(24, fused_on=("cpu",))
    z, y = torch.randn(2, 9, 24, requires_grad=True), torch.randn(2, 9, 24, requires_grad=True)

    def run(z: Tensor, y: Tensor) -> Tensor:
        (out,) = norm(F.relu(z), y + 1)
        return out * 2

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    results = [[out, *torch.autograd.grad(out.sin().sum(), [z, y])] for out in (run(z, y), compiled(z, y))]
    return max(relative_error(a, b) for a, b in zip(*results, strict=True))


if __name__ == "__main__":
    patch()
    norm_kernels._PROGRAMS = 8  # so that a program of the backward kernel has several rows, and the last one fewer
    check_registration()
    measured = {
        f"{shape}, {directions} y, {name}": norm_errors(shape, directions, dtype)
        for shape in SHAPES
        for directions in (1, 2)
        for name, dtype in DTYPES.items()
    }
    measured |= {
        f"{rows}, {channels} x {taps}, {'both' if bidirectional else 'one'}, {name}": conv_errors(
            rows, channels, taps, bidirectional, dtype
        )
        for rows, channels, taps in CONVOLUTIONS
        for bidirectional in (False, True)
        for name, dtype in DTYPES.items()
    }
    print(json.dumps({"errors": measured, "compiled": compiled_error()}))
