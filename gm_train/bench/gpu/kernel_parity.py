"""The part `parity`: each kernel on the device beside float64 on the CPU, with all gradients.

The scan is compared with its recurrence, one token after another; everything else with the same module in PyTorch. An
error is the largest deviation divided by the largest expected magnitude.
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
from gm_train.config.schema import ModelConfig
from gm_train.model.layers import MambaLayer
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.scan_kernels import choose_kernel, scan_sizes
from gm_train.model.segments import Segments, make_segments
from gm_train.objective.loss import computing_in

#: Largest errors of a single kernel and of a whole layer, whose products are rounded to bfloat16 several times. They
#: find wrong numbers; the page shows the errors themselves.
LIMITS = {("kernel", "fp32"): 1e-5, ("kernel", "bf16"): 2e-2, ("layer", "fp32"): 1e-5, ("layer", "bf16"): 3e-2}
#: Cells of two packed rows of 531 tokens, some longer than a chunk of the scan; three tokens of the first are unused.
ROWS = ((301, 1, 190, 2, 34), (7, 518, 1, 5))
ODD = ModelConfig(d_model=96, head_dim=48, d_state=24)

Call = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: on the page.
        kind: "kernel" or "layer"; chooses the limit.
        module: with the parameters, float32 on the CPU.
        call: returns the outputs of the module; called with it, the segments, and the inputs in order.
        inputs: float32 on the CPU, by name.
        wide: names of inputs that stay float32 under bf16.
        exact: what to compare with instead of `call`.
    """

    name: str
    kind: str
    module: nn.Module
    call: Call
    inputs: dict[str, Tensor]
    wide: tuple[str, ...] = ()
    exact: Call | None = None


def measure_parity(scene: Scene) -> None:
    """Keep the errors of every kernel, case by case."""
    device = torch.device(scene.device)
    sizes = {"presets": scene.config().model, "head_dim 48, d_state 24": ODD}
    results: Row = {"kernels": {}, "cases": [], "problems": []}
    for label, model in sizes.items():
        segment = packed_segments()
        # A layer of sizes that the package's scan does not take computes with PyTorch.
        kernel, why = choose_kernel(model.kernel, device, scan_sizes(model))
        results["kernels"][label] = kernel
        if device.type == "cuda" and kernel == "torch":
            results["problems"].append(f"{label}: computed by PyTorch: {why}")
        for case in cases(model, segment):
            for precision in ("fp32", "bf16"):
                errors = case_errors(case, model, segment, device, precision)
                row = {"sizes": label, "case": case.name, "precision": precision, "errors": errors}
                say(f"{label}: {case.name}, {precision}: largest error {max(errors.values()):.1e}")
                limit = LIMITS[case.kind, precision]
                wrong = {name: error for name, error in errors.items() if not error < limit}
                results["cases"].append(row | {"limit": limit})
                results["problems"] += [
                    f"{label}: {case.name}, {precision}: {name} is off by {error:.1e}" for name, error in wrong.items()
                ]
                scene.keep(results)


def packed_segments() -> Tensor:
    """Numbers of the cells of each row, 0 where unused: int64 (2, 531)."""
    length = max(map(sum, ROWS))
    segment = torch.zeros(len(ROWS), length, dtype=torch.int64)
    for row, lengths in zip(segment, ROWS, strict=True):
        numbers = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))
        row[: len(numbers)] = numbers
    return segment


def cases(model: ModelConfig, segment: Tensor) -> Iterator[Case]:
    """Yield the comparisons of a model of some sizes: convolution, scan, norm, gate, and whole layers."""
    torch.manual_seed(0)
    layer, gate = _layer(replace(model, aggregation="gate"))
    mixer = layer.mixer
    assert isinstance(mixer, Mamba2Mixer)
    shape = segment.shape

    def values(*width: int) -> Tensor:
        return torch.randn(*shape, *width)

    channels, width = mixer.d_inner + 2 * mixer.d_state, model.d_model
    yield Case("convolution, both directions", "kernel", mixer, _convolve, {"x": values(channels)})
    yield Case(
        "scan, beside the recurrence", "kernel", mixer, _scan,
        {"x": F.silu(values(channels)), "dt": torch.empty(*shape, mixer.n_heads).uniform_(1e-3, 1e-1)},
        wide=("dt",), exact=_recurrence,
    )  # fmt: skip
    ys = {"y": values(mixer.d_inner), "y reverse": values(mixer.d_inner)}
    yield Case("gated norm, both directions", "kernel", mixer, _norm, {"z": values(mixer.d_inner)} | ys)
    yield Case("gate", "kernel", gate, _gate, {"x": values(width), "f": values(width), "b": values(width)}, wide=("x",))
    yield Case("layer, gate", "layer", nn.ModuleList([layer, gate]), _whole, {"x": values(width)}, wide=("x",))
    joined = nn.ModuleList(_layer(replace(model, aggregation="head_gate", norm="pre")))
    yield Case("layer, head_gate", "layer", joined, _whole, {"x": values(width)}, wide=("x",))


def case_errors(case: Case, model: ModelConfig, segment: Tensor, device: torch.device, precision: str) -> Row:
    """Return the relative error of every output, and of every gradient by an input or a parameter."""
    narrow = torch.bfloat16 if precision == "bf16" else torch.float32
    rounded = {
        name: value.to(torch.float32 if name in case.wide else narrow).float() for name, value in case.inputs.items()
    }
    used = (segment > 0)[..., None]
    weights: list[Tensor] = []

    def run(place: torch.device, exact: bool) -> dict[str, Tensor]:
        module = copy.deepcopy(case.module).to(place, torch.float64 if exact else torch.float32)
        leaves = {
            name: value.to(
                place, torch.float64 if exact else torch.float32 if name in case.wide else narrow
            ).requires_grad_()
            for name, value in rounded.items()
        }
        segments = make_segments(
            segment.to(place), model.chunk, model.d_conv, torch.float64 if exact else torch.float32
        )
        call = case.exact if exact and case.exact is not None else case.call
        with computing_in("fp32" if exact else precision, place):
            outputs = [output.flatten(2) for output in call(module, segments, *leaves.values())]
        if not weights:
            # The mean is not zero, so that no gradient that is a sum over all tokens is close to zero by accident.
            weights.extend((1 + torch.randn(output.shape).bfloat16().double()) * used for output in outputs)
        parameters = dict(module.named_parameters())
        gradients = torch.autograd.grad(
            outputs,
            [*leaves.values(), *parameters.values()],
            [weight.to(place, output.dtype) for weight, output in zip(weights, outputs, strict=True)],
            allow_unused=True,
        )
        found = {f"output {i}": output * used.to(place) for i, output in enumerate(outputs, start=1)}
        by = dict(zip([*leaves, *parameters], gradients, strict=True))
        found |= {f"gradient by {name}": gradient for name, gradient in by.items() if gradient is not None}
        return {name: value.detach().to("cpu", torch.float64) for name, value in found.items()}

    wanted = run(torch.device("cpu"), exact=True)
    found = run(device, exact=False)
    return {
        name: float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-300))
        for name, value in wanted.items()
    }


def _layer(model: ModelConfig) -> tuple[MambaLayer, nn.Module]:
    """A layer and what joins its directions, with noise on parameters that begin as ones or zeros."""
    modules = MambaLayer(model), load_part("model.aggregation", model.aggregation)(model.d_model)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return modules


def _convolve(mixer: Any, segments: Segments, x: Tensor) -> tuple[Tensor, ...]:
    as_read = mixer._on_package(x)
    causal, mirrored = mixer.conv1d(x, segments, True, as_read=as_read)
    return causal, mirrored.flip(1) if as_read else mirrored


def _scan(mixer: Any, segments: Segments, x: Tensor, dt: Tensor) -> tuple[Tensor, ...]:
    return (mixer._scan(x, dt, -mixer.A_log.exp(), segments, reverse=False),)


def _recurrence(mixer: Any, segments: Segments, xBC: Tensor, dt: Tensor) -> tuple[Tensor, ...]:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t and y_t = C_t h_t + D x_t, where h is zero before each cell."""
    x, B, C = torch.split(xBC, [mixer.d_inner, mixer.d_state, mixer.d_state], dim=-1)
    x = x.reshape(*dt.shape, -1)
    cell = segments.forward.seq_idx
    same = torch.cat([torch.zeros_like(cell[:, :1]), cell[:, 1:] == cell[:, :-1]], dim=1).to(dt.dtype)
    decay = torch.exp(dt * -mixer.A_log.exp()) * same[..., None]
    state = torch.zeros(*x[:, 0].shape, mixer.d_state, dtype=x.dtype)
    ys = []
    for t in range(x.shape[1]):
        step = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        state = decay[:, t, :, None, None] * state + step
        ys.append((state * C[:, t, None, None]).sum(-1) + mixer.D[:, None] * x[:, t])
    return (torch.stack(ys, dim=1),)


def _norm(mixer: Any, segments: Segments, z: Tensor, *ys: Tensor) -> tuple[Tensor, ...]:
    return tuple(mixer.norm(z, *ys))


def _gate(gate: Any, segments: Segments, x: Tensor, f: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return (gate(x, f, b),)


def _whole(modules: Any, segments: Segments, x: Tensor) -> tuple[Tensor, ...]:
    layer, aggregation = modules
    return (layer(x, segments, aggregation),)
