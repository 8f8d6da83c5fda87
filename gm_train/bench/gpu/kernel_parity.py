"""The part `parity`: what kernels compute on the device, beside float64 on the CPU, with all gradients.

A mixer has all kernels but the gate's: it is compared with the recurrence of Mamba-2, one token after another. A whole
layer, with its gate, is compared with the same module in PyTorch. An error is the largest deviation divided by the
largest expected magnitude.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gm_train.bench.gpu.scene import Row, Scene, say
from gm_train.config.parts import load_part
from gm_train.config.schema import Config, ModelConfig
from gm_train.model.kernels.scan_kernels import kernel_of
from gm_train.model.layers import MambaLayer
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.segments import Segments, make_segments
from gm_train.objective.loss import computing_in

#: Largest errors in each precision, of outputs and the gradient by the input, and of gradients by parameters. They find
#: wrong numbers; the page shows the errors themselves. In bf16, some of the latter are small differences of large sums.
LIMITS = {"fp32": (1e-5, 1e-4), "bf16": (3e-2, 2e-1)}
#: Cells of two packed rows of 291 tokens, one of them longer than a chunk of the scan; three tokens are unused.
ROWS = ((151, 1, 100, 2, 34), (7, 279, 1, 4))
#: Sizes that no tile divides.
ODD = ModelConfig(d_model=96, head_dim=48, d_state=24)

_INPUT = "input"

Call = Callable[[Any, Segments, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: on the page.
        module: with the parameters, float32 on the CPU.
        call: returns the outputs of the module; called with it, the segments, and the input (batch, length, d_model).
        exact: what computes the expected outputs in float64.
    """

    name: str
    module: nn.Module
    call: Call
    exact: Call


def measure_parity(scene: Scene) -> None:
    """Keep the errors case by case."""
    device, segment = torch.device(scene.device), packed_segments()
    sizes = {"presets": scene.config().model, "head_dim 48, d_state 24": ODD}
    results: Row = {"kernels": {}, "cases": [], "problems": []}
    for label, model in sizes.items():
        # A layer of sizes that the kernels do not take computes with PyTorch.
        kernel, why = kernel_of(Config(model=model), device)
        results["kernels"][label] = kernel
        if device.type == "cuda" and kernel == "torch":
            results["problems"].append(f"{label}: computed by PyTorch: {why}")
        for case in cases(model):
            for precision, errors in case_errors(case, model, segment, device).items():
                say(f"{label}: {case.name}, {precision}: largest error {max(errors.values()):.1e}")
                results["cases"].append({"sizes": label, "case": case.name, "precision": precision, "errors": errors})
                results["problems"] += [
                    f"{label}: {case.name}, {precision}: {name} is off by {errors[name]:.1e}"
                    for name in too_large(errors, precision)
                ]
            scene.keep(results)


def too_large(errors: dict[str, float], precision: str) -> list[str]:
    """Return the names of the errors beyond their limit."""
    return [
        name
        for name, error in errors.items()
        if not error < LIMITS[precision][name.startswith("gradient") and name != f"gradient by {_INPUT}"]
    ]


def packed_segments() -> Tensor:
    """Numbers of the cells of each row, 0 where unused: int64 (2, 291)."""
    length = max(map(sum, ROWS))
    segment = torch.zeros(len(ROWS), length, dtype=torch.int64)
    for row, lengths in zip(segment, ROWS, strict=True):
        numbers = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))
        row[: len(numbers)] = numbers
    return segment


def cases(model: ModelConfig) -> Iterator[Case]:
    """Yield the comparisons of a model of some sizes."""
    torch.manual_seed(0)
    gate, head_gate = (replace(model, aggregation=name) for name in ("gate", "head_gate"))
    yield Case("mixer, both directions", _layer(gate)[0].mixer, _mixed, _recurrence)
    yield Case("mixer, head_gate", _layer(head_gate)[0].mixer, _mixed, _recurrence)
    yield Case("mixer, one direction", _layer(replace(model, arch="mamba"))[0].mixer, _forward, _recurrence_forward)
    yield Case("layer with its gate", nn.ModuleList(_layer(gate)), _whole, _whole)
    yield Case("layer, head_gate, norm pre", nn.ModuleList(_layer(replace(head_gate, norm="pre"))), _whole, _whole)


def case_errors(case: Case, model: ModelConfig, segment: Tensor, device: torch.device) -> dict[str, dict[str, float]]:
    """Return by precision the relative error of every output, and of every gradient by the input or a parameter."""
    u = torch.randn(*segment.shape, model.d_model)
    used = (segment > 0)[..., None]
    weights: list[Tensor] = []

    def run(place: torch.device, precision: str) -> dict[str, Tensor]:
        dtype = torch.float64 if precision == "exact" else torch.float32
        module = copy.deepcopy(case.module).to(place, dtype)
        leaves = {_INPUT: u.to(place, dtype).requires_grad_()} | dict(module.named_parameters())
        segments = make_segments(segment.to(place), model.chunk, model.d_conv, dtype)
        with computing_in("bf16" if precision == "bf16" else "fp32", place):
            call = case.exact if precision == "exact" else case.call
            outputs = call(module, segments, leaves[_INPUT])
        if not weights:
            # The mean is not zero, so that no gradient that is a sum over all tokens is close to zero by accident.
            weights.extend((1 + torch.randn(output.shape).bfloat16().double()) * used for output in outputs)
        gradients = torch.autograd.grad(
            outputs,
            list(leaves.values()),
            [weight.to(place, output.dtype) for weight, output in zip(weights, outputs, strict=True)],
        )
        found = {f"output {i}": output * used.to(place) for i, output in enumerate(outputs, start=1)}
        found |= {f"gradient by {name}": value for name, value in zip(leaves, gradients, strict=True)}
        return {name: value.detach().to("cpu", torch.float64) for name, value in found.items()}

    wanted = run(torch.device("cpu"), "exact")
    errors = {}
    for precision in LIMITS:
        found = run(device, precision)
        errors[precision] = {
            name: float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-300))
            for name, value in wanted.items()
        }
    return errors


def _layer(model: ModelConfig) -> tuple[MambaLayer, nn.Module]:
    """A layer and what joins its directions, with noise on parameters that begin as ones or zeros."""
    modules = MambaLayer(model), load_part("model.aggregation", model.aggregation)(model.d_model)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return modules


def _mixed(mixer: Any, segments: Segments, u: Tensor) -> tuple[Tensor, ...]:
    return tuple(mixer(u, segments, True))


def _forward(mixer: Any, segments: Segments, u: Tensor) -> tuple[Tensor, ...]:
    return tuple(mixer(u, segments, False))


def _whole(modules: Any, segments: Segments, x: Tensor) -> tuple[Tensor, ...]:
    layer, aggregation = modules
    return (layer(x, segments, aggregation),)


def _recurrence_forward(mixer: Mamba2Mixer, segments: Segments, u: Tensor) -> tuple[Tensor, ...]:
    return _recurrence(mixer, segments, u, bidirectional=False)


def _recurrence(mixer: Mamba2Mixer, segments: Segments, u: Tensor, bidirectional: bool = True) -> tuple[Tensor, ...]:
    """What a mixer computes, from its equations: see `Mamba2Mixer`. The reverse direction reads flipped rows."""
    cell = segments.forward.seq_idx
    widths = [mixer.d_inner, mixer.d_inner + 2 * mixer.d_state, mixer.n_heads]
    columns = mixer.in_proj(u)
    z, xBC, dt, g = columns.split([*widths, columns.shape[-1] - sum(widths)], dim=-1)
    dt = F.softplus(dt + mixer.dt_bias)
    ys = [_read(mixer, xBC, dt, cell)]
    if bidirectional:
        ys.append(_read(mixer, xBC.flip(1), dt.flip(1), cell.flip(1)).flip(1))
    if mixer.head_gate:
        share = torch.sigmoid(g)[..., None]
        ys = [share * ys[0] + (1 - share) * ys[1]]
    outs = []
    for y in ys:
        gated = y.flatten(2) * F.silu(z)
        scale = (gated.square().mean(-1, keepdim=True) + mixer.norm.eps).rsqrt()
        outs.append(mixer.out_proj(gated * scale * mixer.norm.weight))
    return tuple(outs)


def _read(mixer: Mamba2Mixer, xBC: Tensor, dt: Tensor, cell: Tensor) -> Tensor:
    """Convolution, SiLU, then h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t and y_t = C_t h_t + D x_t, within each cell."""
    taps, length = mixer.conv1d.weight.shape[-1], xBC.shape[1]
    mixed = mixer.conv1d.bias + xBC * mixer.conv1d.weight[:, 0, -1]
    for k in range(1, min(taps, length)):
        same = (cell[:, k:] == cell[:, :-k])[..., None]
        mixed = mixed + F.pad(xBC[:, :-k] * same * mixer.conv1d.weight[:, 0, taps - 1 - k], (0, 0, k, 0))
    x, B, C = torch.split(F.silu(mixed), [mixer.d_inner, mixer.d_state, mixer.d_state], dim=-1)
    x = x.reshape(*dt.shape, -1)
    decay = torch.exp(dt * -mixer.A_log.exp())
    begins = F.pad(cell[:, 1:] != cell[:, :-1], (1, 0), value=True)
    state = torch.zeros(*x[:, 0].shape, mixer.d_state, dtype=x.dtype)
    ys = []
    for t in range(length):
        kept = decay[:, t] * ~begins[:, t, None]
        step = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        state = kept[..., None, None] * state + step
        ys.append((state * C[:, t, None, None]).sum(-1) + mixer.D[:, None] * x[:, t])
    return torch.stack(ys, dim=1)
