"""Whether the loops for CPUs apply."""

from torch import Tensor


def on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is on a CPU. Call it as `cpu.on_cpu`: `fake_gpu.py` replaces it in this module."""
    return tensor.device.type == "cpu"
