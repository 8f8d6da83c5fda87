"""`gm-train bench model --traffic`: bytes and launches of one layer, forward and backward, counted on any machine.

The layer runs on fake tensors: shapes, types and operations are those of a training step, and nothing is computed. The
counts say what a layer asks of a GPU's memory and of its launches; they are not times.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gm_train.bench.traffic.launch_counter import Launch, LaunchCounter
from gm_train.config.parts import load_part
from gm_train.config.schema import ModelConfig
from gm_train.model.kernels import scan_kernels
from gm_train.model.kernels.fake_gpu import use_kernels
from gm_train.model.layers import MambaLayer
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.segments import make_segments
from gm_train.objective.loss import computing_in

#: Parts of a layer, in the order of a table.
PARTS = ("projections", "convolution", "scan", "gated norm", "gate", "norm", "flips and joins", "sums of gradients")
ROW = 2048  # tokens in a row

#: How the names of kernels begin that are not of the scan.
_KERNELS = {"_conv_": "convolution", "_gated_norm_": "gated norm"}

_CPU = torch.device("cpu")  # of the fake tensors, so that autograd needs no GPU


@dataclass(frozen=True)
class PartTraffic:
    """What one part of a layer moves in a step.

    Attributes:
        part: one of `PARTS`.
        forward_launches, backward_launches: kernels.
        forward_bytes, backward_bytes: bytes that they read and write.
    """

    part: str
    forward_launches: int
    forward_bytes: int
    backward_launches: int
    backward_bytes: int

    @property
    def launches(self) -> int:
        """Kernels of both passes."""
        return self.forward_launches + self.backward_launches

    @property
    def n_bytes(self) -> int:
        """Bytes of both passes."""
        return self.forward_bytes + self.backward_bytes


def rows_of(tokens: int) -> tuple[int, int]:
    """Rows and their length for a number of tokens, rounded down to whole rows."""
    return max(1, tokens // ROW), min(tokens, ROW)


def kernels_to_count() -> tuple[str, ...]:
    """The kernels of the scan that can be counted here: mamba_ssm's only where the package is installed."""
    return ("torch", "mamba_ssm") if scan_kernels.package_problem() is None else ("torch",)


def layer_traffic(model: ModelConfig, tokens: int, precision: str, kernel: str) -> list[PartTraffic]:
    """Count what one layer moves by part, forward and backward.

    Args:
        model: sizes and variants; `arch` is bimamba or mamba.
        tokens: of a micro-batch, in rows of 2,048.
        precision: `trainer.precision`.
        kernel: "torch" for plain PyTorch, or "mamba_ssm" for the package's kernels of the scan with ours around them.

    Returns:
        The parts that launch anything, in the order of `PARTS`.
    """
    by_part: dict[str, list[Launch]] = defaultdict(list)
    for launch in layer_launches(model, tokens, precision, kernel):
        by_part[launch.part].append(launch)
    return [_sum(part, by_part[part]) for part in PARTS if part in by_part]


def layer_launches(model: ModelConfig, tokens: int, precision: str, kernel: str) -> list[Launch]:
    """Record the launches of one layer, as `layer_traffic` counts them."""
    rows, length = rows_of(tokens)
    with FakeTensorMode():
        layer = MambaLayer(model)
        aggregation = load_part("model.aggregation", model.aggregation)(model.d_model) if layer.bidirectional else None
        mixer = layer.mixer
        assert isinstance(mixer, Mamba2Mixer)
        use_kernels(layer, kernel == "mamba_ssm")
        x = torch.empty(rows, length, model.d_model, requires_grad=True)
        segments = make_segments(torch.ones(rows, length, dtype=torch.int64), model.chunk, model.d_conv)
        counter = LaunchCounter()
        parts = _Parts(counter, _modules(layer, mixer, aggregation))
        with counter, counter.as_on_a_gpu():
            with computing_in(precision, _CPU), parts:
                out = layer(x, segments, aggregation)
            parts.claim(out, "gate")  # the residual connection of a layer without aggregation
            with counter.in_backward(parts.nodes.items(), "sums of gradients"):
                out.backward(torch.empty_like(out))
    return list(_named(counter.launches))


class _Parts:
    """Knows which part of the layer an operation belongs to, in the forward pass and in the backward one.

    Attributes:
        nodes: the part of each autograd node: that of the innermost module which created it.
    """

    def __init__(self, counter: LaunchCounter, modules: list[tuple[nn.Module, str]]) -> None:
        self.nodes: dict[Any, str] = {}
        self._counter, self._modules = counter, modules
        self._open: list[tuple[str, set[Any]]] = []

    def __enter__(self) -> None:
        self._counter.part = "gate"
        self._handles = []
        for module, part in self._modules:
            self._handles += [module.register_forward_pre_hook(self._enter(part))]
            self._handles += [module.register_forward_hook(self._leave)]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            given = {value.grad_fn for value in args if isinstance(value, Tensor)}
            self._open.append((self._counter.part, given))
            self._counter.part = part

        return hook

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        before, given = self._open.pop()
        for value in out if isinstance(out, tuple) else (out,):
            self.claim(value, self._counter.part, given)
        self._counter.part = before

    def claim(self, out: Tensor, part: str, given: frozenset[Any] | set[Any] = frozenset()) -> None:
        """Give a part the nodes behind `out` that no part has, except those behind its inputs `given`."""
        left, seen = [out.grad_fn], set(given)
        while left:
            node = left.pop()
            if node is not None and node not in seen:
                seen.add(node)
                self.nodes.setdefault(node, part)
                left += [following for following, _ in node.next_functions]


def _modules(layer: MambaLayer, mixer: Mamba2Mixer, aggregation: nn.Module | None) -> list[tuple[nn.Module, str]]:
    named: list[tuple[nn.Module, str]] = [
        (layer.norm, "norm"),
        (mixer, "scan"),  # what its submodules leave: the scan and its step sizes
        (mixer.in_proj, "projections"),
        (mixer.out_proj, "projections"),
        (mixer.conv1d, "convolution"),
        (mixer.norm, "gated norm"),
    ]
    return named + ([] if aggregation is None else [(aggregation, "gate")])


def _named(launches: Iterable[Launch]) -> Iterator[Launch]:
    """Give a part to launches that no module stands for."""
    part = ""
    for launch in launches:
        # What follows a kernel within an operation of ours, such as a sum of its parts, belongs to the kernel.
        if launch.operation == "gm_train::mix" or launch.operation == "gm_train::mix_backward":
            if launch.name.endswith("_kernel"):
                part = next((name for start, name in _KERNELS.items() if launch.name.startswith(start)), "scan")
            yield replace(launch, part=part)
        # The gradients of what the input projection is split into are joined again.
        elif launch.name in ("flip", "cat") and launch.part in ("scan", "convolution"):
            yield replace(launch, part="flips and joins")
        else:
            yield launch


def _sum(part: str, launches: list[Launch]) -> PartTraffic:
    passes = [[launch for launch in launches if launch.backward == backward] for backward in (False, True)]
    (forward, forward_bytes), (backward, backward_bytes) = (
        (len(some), sum(launch.n_bytes for launch in some)) for some in passes
    )
    return PartTraffic(part, forward, forward_bytes, backward, backward_bytes)
