"""Let a model on fake tensors of the CPU compute as on a GPU: kernels are called, and nothing is launched."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gm_train.model.loops import cpu

#: What the wrappers of kernels ask of a device: an H200's number of multiprocessors.
_DEVICE = SimpleNamespace(multi_processor_count=132)
#: Attributes of a model's parts: the types of device on which they use kernels.
_ON_KERNELS = ("package_devices", "kernels_on")


def use_kernels(model: nn.Module, use: bool = True) -> None:
    """Let a model on the CPU call the kernels that it calls on a GPU, or let it call none.

    Args:
        model: changed in place.
        use: whether to call them.
    """
    for module in model.modules():
        for name in _ON_KERNELS:
            if hasattr(module, name):
                setattr(module, name, ("cpu",) if use else ())


def _nothing(name: str, arrays: list[Tensor]) -> None:
    pass


@contextlib.contextmanager
def as_on_a_gpu(launched: Callable[[str, list[Tensor]], None] = _nothing) -> Iterator[None]:
    """Compute as on a GPU inside the block: without the CPU's loops, and without launching a Triton kernel.

    A kernel could not read fake tensors, and what it writes exists already. One that is tuned takes its first
    configuration.

    Args:
        launched: called with a kernel's name and its arrays instead of each launch.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(cpu, "on_cpu", lambda tensor: False))
        # A fake tensor stands for one on a GPU, whose index the wrappers of kernels pass on.
        stack.enter_context(_replaced(torch.cuda, "device", contextlib.nullcontext))
        stack.enter_context(_replaced(torch.cuda, "get_device_properties", lambda device: _DEVICE))
        if importlib.util.find_spec("triton") is not None:
            from triton.runtime.autotuner import Autotuner, Heuristics
            from triton.runtime.jit import JITFunction

            def launch(kernel: Any, *args: Any, **kwargs: Any) -> None:
                values = dict(zip(tuple(kernel.arg_names), args, strict=False)) | kwargs
                if isinstance(kernel, Autotuner):  # its callers ask which configuration was chosen
                    kernel.best_config = kernel.configs[0]
                    if kernel.best_config.pre_hook is not None:
                        kernel.best_config.pre_hook(values)
                arrays = {id(array): array for array in values.values() if isinstance(array, Tensor)}
                launched(getattr(kernel.fn, "__name__", "kernel"), list(arrays.values()))

            for owner in (JITFunction, Autotuner, Heuristics):
                stack.enter_context(_replaced(owner, "run", launch))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
