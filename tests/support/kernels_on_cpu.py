"""Run our Triton kernels on the CPU; `python -m tests.support.kernels_on_cpu` prints their errors.

`test_triton_kernels.py` starts this in its own process: TRITON_INTERPRET must be set before anything imports triton.
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from gm_train.config.schema import ModelConfig
from gm_train.model.aggregation import Gate
from gm_train.model.genemamba import GeneMamba
from gm_train.model.kernels import gate_kernels, mixer_op, norm_kernels, scan_kernels
from gm_train.model.kernels.conv_kernels import conv_backward, conv_forward
from gm_train.model.kernels.norm_kernels import norm_backward, norm_forward
from gm_train.model.segments import make_segments
from tests.support import oracle
from tests.support.small_models import pack, random_cells, random_model, relative_error
from tests.support.triton_on_cpu import patch

#: Shapes, with odd lengths and widths: (batch, length, heads, head_dim).
SHAPES = ((2, 37, 3, 16), (1, 53, 5, 40), (3, 1, 1, 5))
Rows = tuple[tuple[int, ...], ...]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
JOINS = ("one", "two", "joined")


def flipped(both: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of an array of both directions; the second one from its end."""
    forward, reverse = both.chunk(2)
    return forward, reverse.flip(1)


def errors_of(names: Sequence[str], found: Sequence[Tensor], wanted: Sequence[Tensor]) -> dict[str, float]:
    """Relative errors by name."""
    return {name: relative_error(a, b) for name, a, b in zip(names, found, wanted, strict=True)}


def norm_errors(shape: tuple[int, int, int, int], directions: str, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of the outputs and of all gradients against float64.

    Args:
        shape: (batch, length, heads, head_dim).
        directions: one of `JOINS`.
        dtype: of y and z.
    """
    torch.manual_seed(0)
    batch, length, heads, dim = shape
    width, n, joined = heads * dim, 1 + (directions != "one"), directions == "joined"
    columns = torch.randn(batch, length, width + 3 + heads).to(dtype)  # as of the input projection
    z, gates = columns[..., :width], columns[..., -heads:] if joined else None
    y = torch.randn(n * batch, length, heads, dim).to(dtype)
    weight = torch.randn(width)
    out = norm_forward(z, gates, y, weight, 1e-5)
    # The mean is not zero, so that no gradient that is a sum over all tokens is close to zero by accident.
    grad = (1 + torch.randn(out.shape)).to(dtype)
    d_columns = torch.zeros_like(columns)
    d_y, d_weight = norm_backward(grad, z, gates, y, weight, 1e-5, d_columns)

    exact = [value.double().requires_grad_() for value in (columns, y, weight)]
    share = torch.sigmoid(exact[0][..., -heads:, None])
    ys = flipped(exact[1]) if n == 2 else (exact[1],)
    if joined:
        ys = (share * ys[0] + (1 - share) * ys[1],)
    gate = oracle.silu(exact[0][..., :width])
    wanted_out = torch.stack([oracle.rms_norm(value.flatten(-2) * gate, exact[2]) for value in ys])
    wanted = torch.autograd.grad(wanted_out, exact, grad.double())
    return errors_of(
        ("out", "dcolumns", "dy", "dweight"), (out, d_columns, d_y, d_weight), (wanted_out.detach(), *wanted)
    )


#: Cells of each row, and channels and taps.
CONVOLUTIONS = (
    (((9, 1, 20, 2), (16, 17)), 72, 4),
    (((1, 1, 40), (50, 3)), 5, 3),
    (((2,), (1,)), 66, 4),
)


def conv_errors(rows: Rows, channels: int, taps: int, directions: int, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of the outputs and of all gradients against float64.

    Args:
        rows: lengths of the cells of each row; rows end with unused tokens.
        channels: of the convolution.
        taps: of the convolution.
        directions: 2 to compute the mirrored form as well.
        dtype: of x.
    """
    heads = 35
    _, segment = pack([random_cells(list(row), 0) for row in rows], tail=3)
    torch.manual_seed(0)
    batch = len(segment)
    columns = torch.randn(*segment.shape, 5 + channels + heads).to(dtype)  # as of the input projection
    x = columns[..., 5 : 5 + channels]
    weight, bias = torch.randn(channels, taps), torch.randn(channels)
    cells = make_segments(segment, 16, taps).cells[: directions * batch]
    out = conv_forward(x, cells, weight, bias)
    grad, d_steps = (1 + torch.randn(out.shape)).to(dtype), torch.randn(*cells.shape, heads)
    d_columns = torch.zeros_like(columns)
    of_parameters = conv_backward(grad, x, cells, weight, bias, d_steps, d_columns[..., 5:])

    exact = [value.double().requires_grad_() for value in (x, weight, bias)]
    wanted_out = torch.zeros(out.shape, dtype=torch.float64)
    for row, numbers in enumerate(segment):
        for number in numbers.unique():
            at = (numbers == number).nonzero()[:, 0]
            wanted_out[row, at] = oracle.silu(oracle.convolve(exact[0][row, at], exact[1][:, None], exact[2]))
            if directions == 2:
                at = at.flip(0)
                mirrored = oracle.silu(oracle.convolve(exact[0][row, at], exact[1][:, None], exact[2]))
                wanted_out[batch + row, x.shape[1] - 1 - at] = mirrored
    d_x, d_weight, d_bias = torch.autograd.grad(wanted_out, exact, grad.double())
    d_step = sum(flipped(d_steps.double())) if directions == 2 else d_steps.double()
    assert isinstance(d_step, Tensor)
    return errors_of(
        ("out", "dx", "dsteps", "dweight", "dbias"),
        (out, d_columns[..., 5 : 5 + channels], d_columns[..., -heads:], of_parameters[:-1].T, of_parameters[-1]),
        (wanted_out.detach(), d_x, d_step, d_weight, d_bias),
    )


def gate_errors(shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of the gate and of all gradients against float64.

    Args:
        shape: (batch, length, width) of x.
        dtype: of both directions; x is float32, as the residual stream is.
    """
    torch.manual_seed(0)
    width = shape[-1]
    gate = Gate(width)
    x, both = torch.randn(shape, requires_grad=True), torch.randn(2, *shape).to(dtype).requires_grad_()
    leaves = [x, both, *gate.parameters()]
    out = gate(x, both)
    grad = 1 + torch.randn(shape)
    found = torch.autograd.grad(out, leaves, grad)
    exact = [value.detach().double().requires_grad_() for value in leaves]
    # In bf16 the sums and the weight are rounded before their product, as autocast does.
    x_f, x_b = exact[0] + exact[1][0], exact[0] + exact[1][1]
    joined = torch.cat([x_f, x_b], dim=-1) @ exact[2].T + exact[3]
    share = torch.sigmoid(joined)
    wanted_out = share * x_f + (1 - share) * x_b
    wanted = torch.autograd.grad(wanted_out, exact, grad.double())
    return errors_of(("out", "dx", "dboth", "dweight", "dbias"), (out, *found), (wanted_out.detach(), *wanted))


def mix_inputs(join: bool, two: bool) -> tuple[Tensor | float | int, ...]:
    """Small inputs of `mixer_op.mix`."""
    heads, dim, d_state = 2, 8, 4
    inner, channels = heads * dim, heads * dim + 2 * d_state
    cells = torch.tensor([[1, 1, 2, 2, 2], [1, 2, 3, 3, 3]], dtype=torch.int32)

    def value(*shape: int) -> Tensor:
        return torch.randn(shape, requires_grad=True)

    columns = value(2, 5, inner + channels + heads * (1 + join))
    both = torch.cat([cells, 4 - cells.flip(1)]) if two else cells
    parameters = [value(channels, 1, 4), value(channels), value(heads), value(heads), value(heads), value(inner)]
    return columns, both, *parameters, 1e-5, d_state, 16


def check_registration() -> None:
    """Raise if PyTorch finds that an operation's fake kernel, autograd or schema does not fit what it does."""
    for join, two in ((False, False), (False, True), (True, True)):
        torch.library.opcheck(mixer_op.mix, mix_inputs(join, two))
    x, both = torch.randn(2, 5, 12, requires_grad=True), torch.randn(2, 2, 5, 12, requires_grad=True)
    weight, bias = torch.randn(12, 24, requires_grad=True), torch.randn(12, requires_grad=True)
    torch.library.opcheck(gate_kernels.gate, (x, both, weight, bias))


def compiled_errors(aggregation: str, dtype: str) -> dict[str, float]:
    """Errors of compiled blocks, each one graph, beside the same ones that are not compiled; and their graphs."""
    config = ModelConfig(
        d_model=16, n_layers=2, d_state=8, head_dim=16, chunk=16, aggregation=aggregation, kernel="mamba_ssm"
    )
    model = random_model(config, seed=0, dtype=torch.float32)
    input_ids, segment = pack([random_cells([9, 1, 7], 0)], tail=4)
    expected = states_and_gradients(model, input_ids, segment, dtype)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in model.stack.layers:
        block.forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True, dynamic=False)
    found = states_and_gradients(model, input_ids, segment, dtype)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return {
        "error": max(relative_error(a, b) for a, b in zip(found, expected, strict=True)),
        "graphs": graphs,
    }


def states_and_gradients(model: GeneMamba, input_ids: Tensor, segment: Tensor, dtype: str) -> list[Tensor]:
    """States and the gradients by all parameters of the stack."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        states = model(input_ids, segment)[segment > 0]
    return [states, *torch.autograd.grad(states.sin().sum(), list(model.stack.parameters()))]


if __name__ == "__main__":
    patch()
    norm_kernels._PROGRAMS = 8  # so that a program of the backward kernel has several tokens, and the last one fewer
    scan_kernels.CHUNK = 16
    check_registration()
    measured = {
        f"{shape}, {directions}, {name}": norm_errors(shape, directions, dtype)
        for shape in SHAPES
        for directions in JOINS
        for name, dtype in DTYPES.items()
    }
    measured |= {
        f"{rows}, {channels} x {taps}, {directions}, {name}": conv_errors(rows, channels, taps, directions, dtype)
        for rows, channels, taps in CONVOLUTIONS
        for directions in (1, 2)
        for name, dtype in DTYPES.items()
    }
    measured |= {
        f"gate {shape}, {name}": gate_errors(shape, dtype)
        for shape in ((2, 37, 24), (1, 53, 150))
        for name, dtype in DTYPES.items()
    }
    compiled = {
        f"{aggregation}, {dtype}": compiled_errors(aggregation, dtype)
        for aggregation, dtype in (("gate", "bf16"), ("head_gate", "fp32"))
    }
    print(json.dumps({"errors": measured, "compiled": compiled}))
