"""Run a small scan on a device, forward and backward, and compare it with `ssd.py`.

A package that can be imported may still fail at its first kernel: Triton then builds a launcher with a C compiler and
Python's headers, which slim nodes lack.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from gm_train.model.segments import make_segments
from gm_train.model.ssd import ssd

#: Scans packed rows from the left: x, dt, A, B, C, D and seq_idx as `package_ssd` takes them.
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

#: Largest relative errors of the result and of each gradient. They find wrong results, not inaccurate ones.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class ScanSizes:
    """Sizes of a layer's scan."""

    heads: int
    head_dim: int
    d_state: int


def scan_problem(
    scan: Scan, sizes: ScanSizes, length: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> str | None:
    """Why a scan cannot be used on a device, in one line, or None if it can.

    x, B and C are parts of one array, as in a layer, so that Triton compiles the kernels that the layer runs.

    Args:
        scan: what is tried.
        sizes: of the layer.
        length: tokens of the two rows that are scanned.
        device: where the scan runs. What it is compared with is computed on the CPU.
        dtype: float32 or bfloat16, of x, B and C.
    """
    # The model may be built without memory, or under a default device.
    with _disable_current_modes(), torch.enable_grad(), torch.inference_mode(False):
        try:
            errors = _errors(scan, sizes, length, device, dtype)
        except Exception as error:
            return f"cannot run here ({_one_line(error)})"
    wrong = [f"{what} by {error:.1g}" for what, error in errors.items() if not error < _TOLERANCES[dtype]]
    return f"computes other numbers than PyTorch here ({', '.join(wrong)})" if wrong else None


def _errors(scan: Scan, sizes: ScanSizes, length: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of y and of the gradient by each input."""
    generator = torch.Generator().manual_seed(0)
    heads, width, d_state = sizes.heads, sizes.head_dim, sizes.d_state

    def uniform(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return torch.empty(shape, device="cpu").uniform_(low, high, generator=generator)

    inputs = {
        "xBC": uniform(2, length, heads * width + 2 * d_state).to(dtype).float(),
        "dt": uniform(2, length, heads, low=1e-3, high=1e-1),
        "A": uniform(heads, low=-2.0, high=-1.0),
        "D": uniform(heads),
    }
    weights = uniform(2, length, heads, width, low=0.0, high=2.0).to(dtype).float()
    # Three cells in each row; the second one crosses the middle, where a chunk of the scan ends.
    position = torch.arange(length, device="cpu")
    segment = (1 + (position >= length // 3).int() + (position >= 2 * length // 3).int()).repeat(2, 1)

    def run(place: torch.device, narrow: torch.dtype, wide: torch.dtype, compute: Scan) -> list[Tensor]:
        types = {"xBC": narrow}
        leaves = [v.detach().to(place, types.get(name, wide)).requires_grad_() for name, v in inputs.items()]
        xBC, dt, A, D = leaves
        x, B, C = torch.split(xBC, [heads * width, d_state, d_state], dim=-1)
        with torch.autocast(place.type, enabled=False):
            y = compute(x.view(*x.shape[:2], heads, width), dt, A, B, C, D, segment.to(place))
        gradients = torch.autograd.grad(y, leaves, weights.to(place, y.dtype))
        return [value.detach().to("cpu", torch.float64) for value in (y, *gradients)]

    def reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segment: Tensor) -> Tensor:
        return ssd(x, dt, A, B, C, D, make_segments(segment, 64, 1, torch.float64))

    found = run(device, dtype, torch.float32, scan)
    wanted = run(torch.device("cpu"), torch.float64, torch.float64, reference)
    names = ("y", *(f"d{name}" for name in inputs))
    return {
        name: float((value - right).abs().max() / right.abs().max())
        for name, value, right in zip(names, found, wanted, strict=True)
    }


def _one_line(error: Exception) -> str:
    """The type and the first line of an error, with what usually helps."""
    lines = str(error).splitlines()
    text = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    if isinstance(error, subprocess.CalledProcessError) or "C compiler" in text:
        text += "; Triton needs gcc and Python's headers, such as python3-dev, on every node"
    return text
