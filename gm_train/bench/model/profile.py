"""Profile a step with torch.profiler: assign each operation to the part of the model that ran it.

A forward operation belongs to the innermost named range around it. Autograd gives each backward operation the sequence
number of the forward operation whose gradient it computes; the backward operation belongs to the same part.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from gm_train.bench.model.contenders import Contender
from gm_train.bench.model.model_runner import ModelRunner
from gm_train.bench.model.workload import Workload
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.norm import GatedRMSNorm

_MARK = "part: "
#: Operations outside of all named ranges: residual sums, norms, the embedding, masks of cells.
REST = "other"
_OPTIMIZER = "optimizer"
#: How the names of kernels begin that belong to a part, whatever operation starts them.
_KERNELS = {"_conv_": "convolution", "_gated_norm_": "norm and gate"}
_STEPS = 3  # profiled steps; few, since the profiler keeps every operation


def profile_step(runner: ModelRunner, steps: int) -> dict[str, float]:
    """Return the device seconds of a step by part. The model must not be compiled.

    Args:
        runner: the model, warmed up on its workload.
        steps: number of profiled steps, over which times are averaged.
    """
    on_gpu = runner.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with _ranges(runner.model), profile(activities=activities) as profiler:
        # Not `runner.steps`, which takes one more step on a GPU.
        for _ in range(steps):
            runner.step()
    seconds: dict[str, float] = defaultdict(float)
    events = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
    part_of_number = _parts_of_forward(events)
    for event in events:
        for part, own in _times(event, on_gpu, part_of_number):
            seconds[part] += own / 1e6 / steps
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _times(event: Any, on_gpu: bool, part_of_number: dict[int, str]) -> Iterator[tuple[str, float]]:
    """Part and microseconds of what an operation itself takes: on a GPU, of each kernel that it starts."""
    if not on_gpu:
        if event.self_cpu_time_total:
            yield _part(event, part_of_number), event.self_cpu_time_total
        return
    for kernel in event.kernels:
        named = next((part for start, part in _KERNELS.items() if kernel.name.startswith(start)), None)
        yield named or _part(event, part_of_number), kernel.duration


class ProfileRunner:
    """A contender and its batches, profiled in a worker process.

    Args:
        contender: the model, not compiled.
        workload: its batches.
        device: cpu or cuda.
        warmup: steps before the profiled ones.
    """

    def __init__(self, contender: Contender, workload: Workload, device: str, warmup: int) -> None:
        self._runner = ModelRunner(contender, [workload], device)
        self._runner.use(0, warmup)

    def run(self) -> dict[str, float]:
        """Return the seconds of a step by part."""
        return profile_step(self._runner, _STEPS)


def _named(event: Any) -> str | None:
    name: str = event.name
    if name.startswith(_MARK):
        return name.removeprefix(_MARK)
    return _OPTIMIZER if name.startswith("Optimizer.step") else None


def _ancestors(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _parts_of_forward(events: list[Any]) -> dict[int, str]:
    """Part by sequence number. Of operations with the same number, the last one created the autograd node."""
    parts: dict[int, str] = {}
    for event in sorted(events, key=lambda event: event.time_range.start):
        if event.sequence_nr >= 0 and not event.name.startswith("autograd::"):
            part = next((name for above in _ancestors(event) if (name := _named(above))), None)
            if part is not None:
                parts[event.sequence_nr] = part
    return parts


def _part(event: Any, part_of_number: dict[int, str]) -> str:
    for above in _ancestors(event):
        if name := _named(above):
            return name
        if above.name.startswith("autograd::engine::evaluate_function"):
            return part_of_number.get(above.sequence_nr, REST)
    return REST


@contextmanager
def _ranges(model: nn.Module) -> Iterator[None]:
    """Name the parts of a model while the block runs."""
    handles = []
    open_ranges: list[Any] = []

    def enter(part: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            open_ranges.append(record_function(_MARK + part))
            open_ranges[-1].__enter__()

        return hook

    def leave(*_: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    for name, module in model.named_modules():
        part = _part_of_module(name, module)
        if part is not None:
            handles += [module.register_forward_pre_hook(enter(part)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _part_of_module(name: str, module: nn.Module) -> str | None:
    last = name.rsplit(".", 1)[-1]
    if isinstance(module, Mamba2Mixer):
        return "scan"  # what its submodules leave: the scan, step sizes, the gate's SiLU
    if isinstance(module, GatedRMSNorm):
        return "norm and gate"
    if name.startswith("stack.aggregations."):
        return "aggregation"  # with the products of a gate
    if isinstance(module, nn.Linear):
        return "matmul"
    if last == "conv1d":
        return "convolution"
    if last == "attention":
        return "attention"
    return "loss" if name == "output" else None
