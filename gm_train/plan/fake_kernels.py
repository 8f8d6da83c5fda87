"""Let a model on fake tensors compute as on a GPU: the kernels are called, and nothing is launched."""

import contextlib
import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from gm_train.model.genemamba import GeneMamba
from gm_train.model.kernels.scan_kernels import package_problem

#: What the wrappers of kernels ask of a device: an H200's number of multiprocessors.
_DEVICE = SimpleNamespace(multi_processor_count=132)
#: Attributes of a model's parts: the types of device on which they use kernels.
_ON_KERNELS = ("package_devices", "kernels_on")


def kernels_are_known() -> bool:
    """Whether the kernels of a GPU can be called here, since their packages are installed; no GPU is needed."""
    return package_problem() is None


def use_kernels(model: GeneMamba) -> None:
    """Let a model on the CPU call the kernels that it calls on a GPU.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        for name in _ON_KERNELS:
            if hasattr(module, name):
                setattr(module, name, ("cpu",))


@contextlib.contextmanager
def without_launches() -> Iterator[None]:
    """Launch no Triton kernel inside the block: it could not read fake tensors, and what it writes exists already."""
    if importlib.util.find_spec("triton") is None:
        yield  # nothing can launch a kernel
        return
    from triton.runtime.autotuner import Autotuner, Heuristics
    from triton.runtime.jit import JITFunction

    def launch(kernel: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(kernel, Autotuner):  # its callers ask which configuration was chosen
            kernel.best_config = kernel.configs[0]

    with (
        _replaced(JITFunction, "run", launch),
        _replaced(Autotuner, "run", launch),
        _replaced(Heuristics, "run", launch),
        # A fake tensor on the CPU has no index of a device.
        _replaced(torch.cuda, "device", contextlib.nullcontext),
        _replaced(torch.cuda, "get_device_properties", lambda device: _DEVICE),
    ):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
