"""Run the kernels of a mixer on a few tokens, forward and backward, and compare them with PyTorch.

A package that can be imported may still fail at its first kernel: Triton then builds a launcher with a C compiler and
Python's headers, which slim nodes lack.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from gm_train.model.conv import DepthwiseConv
from gm_train.model.norm import GatedRMSNorm
from gm_train.model.segments import make_segments
from gm_train.model.ssd import ssd

#: What a mixer computes between its projections: takes what `mixer_op.mix` takes, up to d_state; returns its results.
Mix = Callable[..., Tensor]

#: Largest relative errors of the result and of each gradient. They find wrong results, not inaccurate ones.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
_EPS = 1e-5


@dataclass(frozen=True)
class ScanSizes:
    """Sizes of what a mixer computes between its projections."""

    heads: int
    head_dim: int
    d_state: int
    taps: int = 4
    directions: int = 2
    head_gate: bool = False


def scan_problem(
    kernels: Callable[[], Mix],
    sizes: ScanSizes,
    length: int,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> str | None:
    """Why kernels cannot be used on a device, in one line, or None if they can.

    Args:
        kernels: imports and returns what is tried.
        sizes: of the layer.
        length: tokens of the two rows that are scanned.
        device: where the kernels run. What they are compared with is computed on the CPU.
        dtype: float32 or bfloat16, of the columns of the input projection.
    """
    # The model may be built without memory, or under a default device.
    with _disable_current_modes(), torch.enable_grad(), torch.inference_mode(False), torch.device("cpu"):
        try:
            errors = _errors(kernels(), sizes, length, device, dtype)
        except Exception as error:
            return f"cannot run here ({_one_line(error)})"
    wrong = [f"{what} by {error:.1g}" for what, error in errors.items() if not error < _TOLERANCES[dtype]]
    return f"computes other numbers than PyTorch here ({', '.join(wrong)})" if wrong else None


def _errors(mix: Mix, sizes: ScanSizes, length: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of the result and of the gradient by each input."""
    generator = torch.Generator().manual_seed(0)
    heads, inner = sizes.heads, sizes.heads * sizes.head_dim
    channels = inner + 2 * sizes.d_state

    def uniform(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return torch.empty(shape).uniform_(low, high, generator=generator)

    widths = inner + channels, heads, heads * sizes.head_gate
    columns = torch.cat([uniform(2, length, width) - 3 * (i == 1) for i, width in enumerate(widths)], dim=-1)
    inputs = {
        "columns": columns.to(dtype).float(),
        "taps": uniform(channels, 1, sizes.taps),
        "conv_bias": uniform(channels),
        "dt_bias": uniform(heads),
        "A_log": uniform(heads, low=0.0),
        "D": uniform(heads),
        "weight": uniform(inner, low=0.5, high=1.5),
    }
    results = 1 if sizes.head_gate else sizes.directions
    weights = uniform(results, 2, length, inner, low=0.0, high=2.0).to(dtype).float()
    # Three cells in each row; the second one crosses the middle, where a chunk of the scan ends.
    position = torch.arange(length)
    segment = (1 + (position >= length // 3).int() + (position >= 2 * length // 3).int()).repeat(2, 1)
    cells = make_segments(segment, length, 1).cells[: 2 * sizes.directions]

    def run(place: torch.device, narrow: torch.dtype, wide: torch.dtype, compute: Mix) -> list[Tensor]:
        types = {"columns": narrow}
        leaves = [v.detach().to(place, types.get(name, wide)).requires_grad_() for name, v in inputs.items()]
        with torch.autocast(place.type, enabled=False):
            y = compute(leaves[0], cells.to(place), *leaves[1:], _EPS, sizes.d_state)
        gradients = torch.autograd.grad(y, leaves, weights.to(place, y.dtype))
        return [value.detach().to("cpu", torch.float64) for value in (y, *gradients)]

    found = run(device, dtype, torch.float32, mix)
    wanted = run(torch.device("cpu"), torch.float64, torch.float64, mix_in_pytorch)
    names = ("y", *(f"d{name}" for name in inputs))
    return {
        name: float((value - right).abs().max() / right.abs().max())
        for name, value, right in zip(names, found, wanted, strict=True)
    }


def mix_in_pytorch(
    columns: Tensor, cells: Tensor, taps: Tensor, conv_bias: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor,
    weight: Tensor, eps: float, d_state: int,
) -> Tensor:  # fmt: skip
    """Compute what `mixer_op.mix` does as the mixer does without kernels, in the type of the parameters."""
    inner, channels, heads = len(weight), len(conv_bias), len(A_log)
    both = len(cells) > len(columns)
    segments = make_segments(cells[: len(columns)], 64, taps.shape[-1], weight.dtype)
    z, xBC, raw, g = torch.split(
        columns, [inner, channels, heads, columns.shape[-1] - inner - channels - heads], dim=-1
    )
    with torch.device("meta"):  # their own weights are not used, and no random numbers are drawn
        conv, norm = DepthwiseConv(channels, taps.shape[-1]), GatedRMSNorm(inner, eps)
    dt = F.softplus(raw.to(dt_bias.dtype) + dt_bias)
    ys = []
    for i, mixed in enumerate(functional_call(conv, {"weight": taps, "bias": conv_bias}, (xBC, segments, both))):
        x, B, C = torch.split(mixed, [inner, d_state, d_state], dim=-1)
        ys.append(ssd(x.view(*x.shape[:-1], heads, -1), dt, -A_log.exp(), B, C, D, segments, reverse=i == 1))
    if g.shape[-1]:
        ys = [torch.lerp(ys[1], ys[0], torch.sigmoid(g)[..., None])]
    normed = functional_call(norm, {"weight": weight}, (z, *(y.flatten(-2) for y in ys)))
    return torch.stack(cast(tuple[Tensor, ...], normed))


def _one_line(error: Exception) -> str:
    """The type and the first line of an error, with what usually helps."""
    lines = str(error).splitlines()
    text = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    if isinstance(error, subprocess.CalledProcessError) or "C compiler" in text:
        text += "; Triton needs gcc and Python's headers, such as python3-dev, on every node"
    return text
