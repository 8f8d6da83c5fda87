"""Run the Triton kernels of the gated norm on the CPU; `python -m tests.support.norm_on_cpu` prints their errors.

`test_norm_kernels.py` starts this in its own process: TRITON_INTERPRET must be set before anything imports triton.
"""

import json

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.model import norm_kernels
from gm_train.model.norm import GatedRMSNorm
from tests.support import oracle
from tests.support.small_models import relative_error
from tests.support.triton_on_cpu import patch

#: Shapes, with odd lengths and widths: (batch, length, width).
SHAPES = ((2, 37, 48), (1, 53, 200), (3, 1, 5))
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


def check_registration() -> None:
    """Raise if PyTorch finds that an operation's fake kernel, autograd or schema does not fit what it does."""

    def value(*shape: int) -> Tensor:
        return torch.randn(shape, requires_grad=True)

    for n in (1, 2):
        torch.library.opcheck(
            norm_kernels.gated_norm, (value(2, 5, 12), [value(2, 5, 12) for _ in range(n)], value(12), 1e-5)
        )


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
    print(json.dumps({"errors": measured, "compiled": compiled_error()}))
