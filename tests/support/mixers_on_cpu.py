"""Errors of a mixer between its projections: convolution, scan and gated norm, with all gradients.

`python -m tests.support.mixers_on_cpu` prints them as JSON, with TRITON_INTERPRET=1. The projections are left out, so
that the kernels' inputs are exact in bfloat16. What is expected comes from the recurrence of `oracle.py` in float64,
cell by cell. Where flash-linear-attention is installed, its kernels compute the same, and ours are compared with them.
"""

import functools
import importlib.util
import itertools
import json
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gm_train.config.schema import ModelConfig
from gm_train.model import mixer as mixers
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.segments import make_segments
from tests.support import oracle
from tests.support.small_models import pack, random_cells, relative_error

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VARIANTS = (("bimamba", "gate"), ("bimamba", "head_gate"), ("mamba", "gate"))
#: Lengths of the cells of each row: odd ones, some ending at bounds of chunks.
ROWS = ((9, 1, 20, 2), (16, 17))
CHUNK = 16
Results = dict[str, Tensor]


def sizes(arch: str, aggregation: str) -> ModelConfig:
    """Two heads of 48 and states of 24: neither is a power of two, nor what a tile holds."""
    return ModelConfig(arch=arch, aggregation=aggregation, d_model=48, head_dim=48, d_state=24, chunk=CHUNK)


def make_mixer(config: ModelConfig, kernel: str) -> Mamba2Mixer:
    """A mixer without projections: it maps their columns to the result of the norm. All seeds are the same."""
    torch.manual_seed(1)
    config.kernel = kernel
    mixer = Mamba2Mixer(config)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    mixer.in_proj = mixer.out_proj = nn.Identity()
    return mixer


@functools.cache
def inputs(config_of: tuple[str, str]) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of the input projection, exact in bfloat16, the segments, and the weights of the outputs."""
    config = sizes(*config_of)
    inner, heads = config.expand * config.d_model, 2
    width = 2 * inner + 2 * config.d_state + heads * (2 if config.aggregation == "head_gate" else 1)
    _, segment = pack([random_cells(list(row), 0) for row in ROWS], tail=5)
    torch.manual_seed(0)
    columns = torch.randn(*segment.shape, width).bfloat16().float()
    outputs = 2 if config.arch == "bimamba" and config.aggregation != "head_gate" else 1
    # The mean is not zero, so that no gradient that is a sum over all tokens is close to zero by accident.
    weights = 1 + torch.randn(outputs, *segment.shape, inner, dtype=torch.float64)
    weights[:, segment == 0] = 0
    return columns, segment, weights


@functools.cache
def expected(config_of: tuple[str, str]) -> Results:
    """The recurrence in float64."""
    config = sizes(*config_of)
    columns, segment, weights = inputs(config_of)
    exact = columns.double().requires_grad_()
    parameters = make_mixer(config, "torch").named_parameters()
    p = {name: value.detach().double().requires_grad_() for name, value in parameters}
    widths = {"in_proj.weight": columns.shape[-1], "out_proj.weight": weights.shape[-1]}
    eyes = {name: torch.eye(width, dtype=torch.float64) for name, width in widths.items()}
    outs = torch.zeros_like(weights)
    for row, numbers in enumerate(segment):
        for number in range(1, int(numbers.max()) + 1):
            at = (numbers == number).nonzero()[:, 0]
            if config.aggregation == "head_gate":
                found = [oracle.head_gated(exact[row, at], p | eyes, config)]
            else:
                ways = [at, at.flip(0)][: len(weights)]
                found = [oracle.mixer(exact[row, way], p | eyes, config) for way in ways]
                found[1:] = [out.flip(0) for out in found[1:]]
            for i, out in enumerate(found):
                outs = outs.index_put((torch.tensor(i), torch.tensor(row), at), out)
    return _results(outs, weights, exact, p)


def _results(outs: Tensor, weights: Tensor, columns: Tensor, p: Results) -> Results:
    gradients = torch.autograd.grad((outs.double() * weights).sum(), [columns, *p.values()])
    used = (weights != 0).any(-1, keepdim=True)
    return {"y": (outs * used).detach(), "columns": gradients[0], **dict(zip(p, gradients[1:], strict=True))}


def by_mixer(config_of: tuple[str, str], dtype: str, kernel: str) -> Results:
    """A mixer of ours."""
    config = sizes(*config_of)
    columns, segment, weights = inputs(config_of)
    mixer = make_mixer(config, kernel)
    leaf = columns.to(DTYPES[dtype]).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        outs = mixer(leaf, make_segments(segment, CHUNK, config.d_conv), config.arch == "bimamba")
    return _results(torch.stack(tuple(outs)), weights, leaf, dict(mixer.named_parameters()))


def by_fla(config_of: tuple[str, str], dtype: str) -> Results:
    """flash-linear-attention's convolution and scan, and a norm in float64."""
    from tests.support import fla_on_cpu

    config = sizes(*config_of)
    columns, segment, weights = inputs(config_of)
    mixer = make_mixer(config, "torch")
    p = dict(mixer.named_parameters())
    leaf = columns.to(DTYPES[dtype]).requires_grad_()
    heads, state = mixer.n_heads, config.d_state
    widths = [mixer.d_inner, mixer.d_inner + 2 * state, heads]
    z, xBC, raw, g = leaf.split([*widths, leaf.shape[-1] - sum(widths)], -1)
    dt = F.softplus(raw.float() + p["dt_bias"])

    def one_way(xBC: Tensor, dt: Tensor, segment: Tensor) -> Tensor:
        mixed = fla_on_cpu.convolved(xBC, p["conv1d.weight"], p["conv1d.bias"], segment)
        x, B, C = mixed.split([mixer.d_inner, state, state], -1)
        x = x.reshape(*x.shape[:-1], heads, -1)
        return fla_on_cpu.scanned(x, dt, -p["A_log"].exp(), B, C, p["D"], segment)

    ys = [one_way(xBC, dt, segment)]
    if config.arch == "bimamba":
        ys.append(one_way(xBC.flip(1), dt.flip(1), segment.flip(1)).flip(1))
    if config.aggregation == "head_gate":
        ys = [torch.lerp(ys[1], ys[0], torch.sigmoid(g.float()).to(ys[0].dtype)[..., None])]
    gate = oracle.silu(z.double())
    outs = [oracle.rms_norm(y.flatten(-2).double() * gate, p["norm.weight"].double()) for y in ys]
    return _results(torch.stack(outs), weights, leaf, p)


def errors(found: Results, wanted: Results) -> dict[str, float]:
    """Relative errors of the outputs, and of the gradients by the columns and by each parameter."""
    return {name: relative_error(found[name], wanted[name]) for name in wanted}


def cases() -> dict[str, Callable[[], dict[str, float]]]:
    """The comparisons, by name: what computes, beside what, variant and type."""
    found: dict[str, Callable[[], dict[str, float]]] = {}
    for variant, dtype in itertools.product(VARIANTS, DTYPES):
        for kernel in ("torch", "mamba_ssm"):
            ours = functools.cache(functools.partial(by_mixer, variant, dtype, kernel))
            found[f"{kernel} beside the recurrence, {' '.join(variant)}, {dtype}"] = functools.partial(
                lambda ours, variant: errors(ours(), expected(variant)), ours, variant
            )
            if importlib.util.find_spec("fla") is not None and variant == VARIANTS[0]:
                fla = functools.partial(by_fla, variant, dtype)
                found[f"{kernel} beside fla, {' '.join(variant)}, {dtype}"] = functools.partial(
                    lambda ours, fla: errors(ours(), fla()), ours, fla
                )
    return found


if __name__ == "__main__":
    from tests.support.triton_on_cpu import patch

    patch()
    mixers.scan_kernels.CHUNK = CHUNK  # the package's default would put all tokens in one chunk
    print(json.dumps({name: case() for name, case in cases().items()}))
