"""Whether a computation is done by what was made for CPUs."""

from torch import Tensor


def on_cpu(*tensors: Tensor) -> bool:
    """Whether tensors are a CPU's. Called as `cpu.on_cpu`, since a count of what a GPU would do replaces it."""
    return all(tensor.device.type == "cpu" for tensor in tensors)
