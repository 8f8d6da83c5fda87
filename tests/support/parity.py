"""Errors of each kernel against the recurrence; `python -m tests.support.parity` prints the tables for the docs.

The recurrence is that of `oracle.py`, a loop over tokens in float64, cell by cell; the reverse direction is the same
loop over flipped cells. An error is the largest deviation divided by the largest expected magnitude. It is given for
the output, and for the gradient of a random weighting of the output by each input or parameter.
"""

import functools
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.config.schema import ModelConfig
from gm_train.model.kernels import scan_kernels
from gm_train.model.segments import Segments, make_segments
from gm_train.model.ssd import ssd
from tests.support import oracle
from tests.support.small_models import pack, random_cells, random_model, relative_error

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Architecture, aggregation, norm, head_dim and d_state of small models. Not all sizes are powers of two.
VARIANTS = (
    ("bimamba", "gate", "pre", 16, 8),
    ("bimamba", "gate", "none", 24, 24),
    ("bimamba", "head_gate", "none", 16, 8),
    ("bimamba", "head_gate", "pre", 48, 8),
    ("mamba", "gate", "none", 16, 8),
)


@dataclass(frozen=True)
class Size:
    """Sizes of a scan.

    Attributes:
        rows: lengths of the cells of each row.
        tail: unused tokens at the end of a row.
        chunk: tokens in a chunk of the scan.
        heads, head_dim, d_state: sizes of a layer.
    """

    rows: tuple[tuple[int, ...], ...]
    tail: int
    chunk: int
    heads: int
    head_dim: int
    d_state: int


#: Cells of odd lengths, some ending at bounds of chunks and some not, and an unused tail.
SMALL = Size(((9, 1, 20, 2), (16, 17)), tail=5, chunk=16, heads=2, head_dim=16, d_state=8)
#: A row of 2,049 tokens, at the default sizes of a layer.
FULL = Size(((700, 1, 650, 63, 500),), tail=135, chunk=64, heads=16, head_dim=64, d_state=64)


@functools.cache
def expected(size: Size, reverse: bool) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Inputs of a scan, and the result of the recurrence for them in float64.

    Inputs that the scan may get in bfloat16 are exact in it.

    Returns:
        The inputs, the segments of the rows, the weights of the output, the output and the gradients by the inputs.
    """
    torch.manual_seed(0)
    _, segment = pack([random_cells(list(row), 0) for row in size.rows], size.tail)
    shape = segment.shape
    # Distributed as after initialisation and SiLU.
    inputs = {
        "x": F.silu(torch.randn(*shape, size.heads, size.head_dim)).bfloat16().float(),
        "dt": torch.empty(*shape, size.heads).uniform_(math.log(1e-3), math.log(1e-1)).exp(),
        "A": -torch.empty(size.heads).uniform_(1, 16),
        "B": F.silu(torch.randn(*shape, size.d_state)).bfloat16().float(),
        "C": F.silu(torch.randn(*shape, size.d_state)).bfloat16().float(),
        "D": torch.randn(size.heads),
    }
    # The mean is not zero, so that no gradient that is a sum over all tokens is close to zero by accident.
    weights = 1 + torch.randn(*shape, size.heads, size.head_dim, dtype=torch.float64)
    weights[segment == 0] = 0
    exact = {name: value.double().requires_grad_() for name, value in inputs.items()}
    y = torch.zeros_like(weights)
    for r in range(segment.shape[0]):
        for number in range(1, int(segment[r].max()) + 1):
            at = (segment[r] == number).nonzero()[:, 0]
            at = at.flip(0) if reverse else at
            # Four heads at a time, since autograd keeps the state of every step.
            for head in range(0, size.heads, 4):
                h = slice(head, head + 4)
                x, dt, B, C = exact["x"][r, at, h], exact["dt"][r, at, h], exact["B"][r, at], exact["C"][r, at]
                out = oracle.scan(x, dt, exact["A"][h], B, C, exact["D"][h])
                (out * weights[r, at, h]).sum().backward()
                y[r, at, h] = out.detach()
    gradients = {name: value.grad for name, value in exact.items() if value.grad is not None}
    return inputs, segment, weights, y, gradients


def scan_errors(kernel: str, size: Size, reverse: bool, dtype: str) -> dict[str, float]:
    """Relative errors of y and of the gradient by each input.

    Args:
        kernel: "torch" or "mamba_ssm".
        size: of the scan.
        reverse: whether to scan backwards.
        dtype: "fp32", or "bf16" for x, B and C, the inputs that autocast converts.
    """
    inputs, segment, weights, wanted_y, wanted = expected(size, reverse)
    leaves = {
        name: value.to(DTYPES[dtype] if name in "xBC" else torch.float32).requires_grad_()
        for name, value in inputs.items()
    }
    segments = make_segments(segment, size.chunk, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        y = (ssd if kernel == "torch" else package_ssd)(**leaves, segments=segments, reverse=reverse)
    gradients = torch.autograd.grad((y.double() * weights).sum(), list(leaves.values()))
    used = (segment > 0)[:, :, None, None]
    errors = {"y": relative_error(y * used, wanted_y)}
    return errors | {f"d{n}": relative_error(g, wanted[n]) for n, g in zip(leaves, gradients, strict=True)}


def package_ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segments: Segments, reverse: bool
) -> Tensor:
    """One of both directions, which the kernels scan in one call."""
    mixed = torch.cat([x.flatten(-2), B, C], dim=-1)
    raw = dt.double().expm1().log().to(dt.dtype)  # the inverse of softplus
    both: Tensor = _BothScans.apply(  # type: ignore[no-untyped-call]
        torch.cat([mixed, mixed.flip(1)]), raw, (-A).log(), D, segments.cells, B.shape[-1]
    )
    return both[len(x) :].flip(1) if reverse else both[: len(x)]


class _BothScans(torch.autograd.Function):
    """The kernels of step sizes and scan, and their gradients."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, raw: Tensor, A_log: Tensor, D: Tensor, cells: Tensor, d_state: int) -> Tensor:
        # Imported late: Triton is not installed everywhere.
        from gm_train.model.kernels.package_scan import scan_forward
        from gm_train.model.kernels.step_kernels import steps_forward

        dt, decay = steps_forward(raw, torch.zeros_like(A_log), A_log, 2, scan_kernels.CHUNK)
        y, states = scan_forward(mixed, dt, decay, D, cells, d_state)
        ctx.save_for_backward(mixed, raw, A_log, D, cells, dt, decay, states)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from gm_train.model.kernels.package_scan import scan_backward
        from gm_train.model.kernels.step_kernels import steps_backward

        mixed, raw, A_log, D, cells, dt, decay, states = ctx.saved_tensors
        d_mixed, parts = scan_backward(grads[0].contiguous(), mixed, dt, decay, D, cells, states)
        d_raw, (d_A_log, _, d_D) = steps_backward(raw, torch.zeros_like(A_log), A_log, dt, parts)
        forward, reverse = d_raw.chunk(2)
        return d_mixed, forward + reverse.flip(1), d_A_log, d_D, None, None


def model_errors(
    kernel: str, arch: str, aggregation: str, norm: str, head_dim: int, d_state: int, dtype: str
) -> dict[str, float]:
    """Relative errors of two layers over a packed row.

    Args:
        kernel: "torch" or "mamba_ssm".
        arch: of the model.
        aggregation: of the model.
        norm: of the model.
        head_dim: of the model.
        d_state: of the model.
        dtype: "fp32", or "bf16" for autocast with float32 parameters.

    Returns:
        The errors of the states (`y`), of the gradient by the embedding (`input`), of all gradients as one vector in
        the Euclidean norm (`all`), and the largest error of a single parameter (`worst`). The last one says little in
        bf16: a gradient may be a small difference of large sums.
    """
    config = ModelConfig(
        arch=arch, aggregation=aggregation, norm=norm, d_model=head_dim, n_layers=2, d_state=d_state,
        head_dim=head_dim, chunk=16, kernel=kernel,
    )  # fmt: skip
    model = random_model(config, seed=0, dtype=torch.float32)
    cells = random_cells([9, 1, 20, 3], 0)
    input_ids, segment = pack([cells], tail=4)
    weights = torch.randn(33, config.d_model, dtype=torch.float64)
    parameters = {name: value for name, value in model.named_parameters() if not name.startswith("output.")}
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        states = model(input_ids, segment)[segment > 0]
    gradients = torch.autograd.grad((states.double() * weights).sum(), list(parameters.values()))

    exact = {name: value.detach().double().requires_grad_() for name, value in parameters.items()}
    wanted_states = torch.cat([oracle.states(cell, exact, config) for cell in cells])
    wanted = torch.autograd.grad((wanted_states * weights).sum(), list(exact.values()))
    single = {n: relative_error(g, w) for n, g, w in zip(exact, gradients, wanted, strict=True)}
    whole, wanted_whole = (torch.cat([g.flatten().double() for g in each]) for each in (gradients, wanted))
    return {
        "y": relative_error(states, wanted_states),
        "input": single["embedding.weight"],
        "all": ((whole - wanted_whole).norm() / wanted_whole.norm()).item(),
        "worst": max(single.values()),
    }


def cases(kernel: str) -> dict[str, Callable[[], dict[str, float]]]:
    """The comparisons, by name; only the small ones for `mamba_ssm`, which is interpreted and therefore slow."""
    comparisons: dict[str, Callable[[], dict[str, float]]] = {}
    for size, what in ((SMALL, "2 x 37"), (FULL, "1 x 2,049"))[: None if kernel == "torch" else 1]:
        for reverse, dtype in itertools.product((False, True), DTYPES):
            name = f"scan of {what} tokens, {'reverse' if reverse else 'forward'}, {dtype}"
            comparisons[name] = functools.partial(scan_errors, kernel, size, reverse, dtype)
    for variant, dtype in itertools.product(VARIANTS, DTYPES):
        comparisons[f"model, {' '.join(map(str, variant))}, {dtype}"] = functools.partial(
            model_errors, kernel, *variant, dtype
        )
    return comparisons


def measure(kernel: str) -> dict[str, dict[str, float]]:
    """Run all `cases` of a kernel: errors by the name of the case."""
    return {name: errors() for name, errors in cases(kernel).items()}


def measure_interpreted() -> dict[str, dict[str, float]]:
    """`measure("mamba_ssm")` under Triton's interpreter, which needs a separate process.

    Raises:
        RuntimeError: the process failed; its error output is the message.
    """
    command = [sys.executable, "-m", "tests.support.triton_on_cpu"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    errors: dict[str, dict[str, float]] = json.loads(done.stdout)
    return errors


def markdown(measured: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format the results of `measure`, by kernel, as two tables."""
    lines = []
    for kind in ("scan", "model"):
        rows = [(k, n, e) for k, errors in measured.items() for n, e in errors.items() if n.startswith(kind)]
        names = list(rows[0][2])
        lines += ["", f"| kernel | what | {' | '.join(names)} |", "|" + "---|" * (2 + len(names))]
        lines += [f"| {k} | {n} | {' | '.join(f'{e[name]:.1e}' for name in names)} |" for k, n, e in rows]
    return "\n".join(lines[1:])


if __name__ == "__main__":
    print(markdown({"torch": measure("torch"), "mamba_ssm": measure_interpreted()}))
