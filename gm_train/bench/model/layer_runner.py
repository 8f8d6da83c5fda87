"""A sanity check: time one Mamba-2 layer of the package `transformers` and one of ours, forward and backward."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import torch

from gm_train.bench.measure.clock import Clock
from gm_train.bench.measure.peak_memory import PeakMemory
from gm_train.config.schema import ModelConfig
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.segments import make_segments
from gm_train.objective.loss import computing_in
from gm_train.ranks.allocator import keep_freed_memory

#: Default chunk size of the package's scan, in tokens.
THEIR_CHUNK = 256


def is_installed() -> bool:
    """Return whether `transformers` is installed, which the extra `bench` includes."""
    return importlib.util.find_spec("transformers") is not None


class LayerRunner:
    """One layer in one direction, over rows of one cell each, timed in a worker process.

    Args:
        model: sizes.
        theirs: use the layer of `transformers` instead of ours.
        chunk: chunk size of the scan, in tokens.
        rows: rows of the input.
        length: tokens per row.
        precision: `trainer.precision`.
        device: cpu or cuda.
    """

    def __init__(
        self, model: ModelConfig, theirs: bool, chunk: int, rows: int, length: int, precision: str, device: str
    ) -> None:
        self._device, self._precision = torch.device(device), precision
        keep_freed_memory(self._device)  # as a training does
        torch.manual_seed(0)
        self._x = torch.randn(rows, length, model.d_model, device=self._device).requires_grad_()
        self._memory = PeakMemory(self._device)
        self._clock = Clock(self._device)
        self._layer = _theirs(model, chunk) if theirs else Mamba2Mixer(model)
        self._layer.to(self._device)
        ones = torch.ones(rows, length, dtype=torch.int64, device=self._device)
        self._segments = None if theirs else make_segments(ones, chunk, model.d_conv)

    def use(self, warmup: int) -> None:
        """Take untimed steps, then reset the peak memory."""
        self.steps(warmup)
        self._memory.reset()

    def steps(self, n: int) -> list[float]:
        """Run forward and backward n times and return the seconds of each time."""
        return [self._step() for _ in range(n)]

    def _step(self) -> float:
        self._clock.start()
        with computing_in(self._precision, self._device):
            out = self._layer(self._x) if self._segments is None else self._layer(self._x, self._segments, False)[0]
        torch.autograd.backward(out.float().sum())
        return self._clock.stop()

    def facts(self) -> dict[str, Any]:
        """Return the peak memory in bytes and the number of parameters."""
        parameters = sum(parameter.numel() for parameter in self._layer.parameters())
        return {"peak_memory": self._memory.added(), "parameters": parameters}


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let imports inside the block find that a package is missing."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before


def _theirs(model: ModelConfig, chunk: int) -> torch.nn.Module:
    # Imported late: the package is optional.
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.utils import logging

    # Where mamba_ssm has been imported before, it would call a fused kernel that asks for causal-conv1d too.
    with _hidden("mamba_ssm"):
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as Theirs

    # Silence the warning that its compiled kernels are missing; the report names what runs.
    be_quiet: Any = logging.set_verbosity_error
    be_quiet()
    inner = model.expand * model.d_model
    config = Mamba2Config(
        hidden_size=model.d_model,
        state_size=model.d_state,
        conv_kernel=model.d_conv,
        expand=model.expand,
        head_dim=model.head_dim,
        num_heads=inner // model.head_dim,
        n_groups=1,
        num_hidden_layers=1,
        chunk_size=chunk,
        use_bias=False,
    )
    layer: torch.nn.Module = Theirs(config, layer_idx=0)
    return layer
