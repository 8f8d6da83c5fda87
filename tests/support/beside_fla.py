"""Each kernel beside flash-linear-attention's: `python -m tests.support.beside_fla` prints the errors as JSON.

Convolution and scan, of both directions, with all gradients, on the same inputs; fla's run on flipped rows for the
reverse direction. To run with TRITON_INTERPRET=1, in a process of its own.
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from gm_train.model.kernels import scan_kernels
from gm_train.model.kernels.conv_kernels import conv_backward, conv_forward
from gm_train.model.segments import make_segments
from tests.support import parity
from tests.support.small_models import pack, random_cells, relative_error

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = ((9, 1, 20, 2), (16, 17))
#: Neither head_dim nor d_state is a power of two.
SIZE = parity.Size(ROWS, tail=5, chunk=16, heads=2, head_dim=48, d_state=24)


def errors_of(names: Sequence[str], found: Sequence[Tensor], wanted: Sequence[Tensor]) -> dict[str, float]:
    """Relative errors by name."""
    return {name: relative_error(a, b) for name, a, b in zip(names, found, wanted, strict=True)}


def conv_errors(channels: int, taps: int, dtype: torch.dtype) -> dict[str, float]:
    """The convolution of both directions, with its gradients by x, taps and bias."""
    _, segment = pack([random_cells(list(row), 0) for row in ROWS], tail=3)
    torch.manual_seed(0)
    x = torch.randn(*segment.shape, channels).to(dtype)
    weight, bias = torch.randn(channels, taps), torch.randn(channels)
    out = conv_forward(x, make_segments(segment, 16, taps).cells, weight, bias)
    grad = (1 + torch.randn(out.shape)).to(dtype)
    d_columns = torch.zeros(*segment.shape, channels + 1).to(dtype)  # with a column for step sizes
    d_steps = torch.zeros(2 * len(segment), segment.shape[1], 1)
    of_parameters = conv_backward(grad, x, make_segments(segment, 16, taps).cells, weight, bias, d_steps, d_columns)
    found = (out, d_columns[..., :channels], of_parameters[:-1].T, of_parameters[-1])

    from tests.support import fla_on_cpu  # after Triton's interpreter is prepared

    leaves = [value.clone().requires_grad_() for value in (x, weight[:, None], bias)]
    ways = [fla_on_cpu.convolved(*leaves, segment)]
    ways.append(fla_on_cpu.convolved(leaves[0].flip(1), *leaves[1:], segment.flip(1)))
    wanted_out = torch.cat(ways)
    # The gradients of both directions are added in float32, as ours are.
    one, other = (torch.autograd.grad(way, leaves, part) for way, part in zip(ways, grad.chunk(2), strict=True))
    d_x, d_weight, d_bias = (a.float() + b.float() for a, b in zip(one, other, strict=True))
    return errors_of(("out", "dx", "dweight", "dbias"), found, (wanted_out.detach(), d_x, d_weight[:, 0], d_bias))


def scan_errors(reverse: bool, dtype: str) -> dict[str, float]:
    """The scan of one direction, with its gradients by all inputs."""
    from tests.support import fla_on_cpu

    inputs, segment, weights, _, _ = parity.expected(SIZE, reverse)

    def leaves() -> dict[str, Tensor]:
        wide = torch.float32
        return {n: v.to(DTYPES[dtype] if n in "xBC" else wide).requires_grad_() for n, v in inputs.items()}

    ours, theirs = leaves(), leaves()
    y = parity.package_ssd(**ours, segments=make_segments(segment, SIZE.chunk, 4), reverse=reverse)
    turned = {n: v.flip(1) if reverse and v.dim() > 1 else v for n, v in theirs.items()}
    out = fla_on_cpu.scanned(**turned, segment=segment.flip(1) if reverse else segment)
    out = out.flip(1) if reverse else out
    results = []
    for value, given in ((y, ours), (out, theirs)):
        gradients = torch.autograd.grad((value.double() * weights).sum(), list(given.values()))
        results.append([(value * (segment > 0)[:, :, None, None]).detach(), *gradients])
    return errors_of(("y", *(f"d{name}" for name in ours)), *results)


if __name__ == "__main__":
    from tests.support.triton_on_cpu import patch

    patch()
    scan_kernels.CHUNK = SIZE.chunk  # the package's default would put all tokens in one chunk
    measured = {
        f"convolution of {channels} channels, {taps} taps, {name}": conv_errors(channels, taps, dtype)
        for channels, taps in ((72, 4), (64, 3))
        for name, dtype in DTYPES.items()
    }
    measured |= {
        f"scan, {'reverse' if reverse else 'forward'}, {name}": scan_errors(reverse, name)
        for reverse in (False, True)
        for name in DTYPES
    }
    print(json.dumps(measured))
