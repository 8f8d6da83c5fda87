"""Time each kernel of a training step alone, at the model's shapes, against its roofline.

Operations and bytes are those of `gm_train.plan.kernel_costs`. A kernel that is faster than its roofline has found data
in a cache.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from data_shards.errors import DataError
from data_shards.tokens.vocabulary import Vocabulary
from gm_train.bench.measure.clock import Clock
from gm_train.bench.model.contenders import Contender
from gm_train.bench.model.kernel_parts import kernel_parts
from gm_train.bench.model.workload import Workload, make_batches
from gm_train.model.aggregation import Gate
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.segments import make_segments
from gm_train.objective.loss import computing_in
from gm_train.objective.pathway import pathway_loss_sum
from gm_train.optim import build_optimizer
from gm_train.plan.flops import TRAINING, as_computed
from gm_train.plan.kernel_costs import WIDE, Cost, costs

#: Kernels that work on given gradients; the others compute them.
_OF_GRADIENTS = ("clipping", "optimizer")


class KernelRunner:
    """Times the kernels of a contender in a worker process, without compilation.

    Args:
        contender: a Bi-Mamba or a Mamba.
        workload: gives the shapes.
        device: cpu or cuda.
        repeats: timed runs of each kernel.
    """

    def __init__(self, contender: Contender, workload: Workload, device: str, repeats: int) -> None:
        config = contender.config
        if config.model.arch == "transformer":
            raise DataError("kernels are timed for model.arch=bimamba or mamba")
        self._config, self._device, self._repeats = config, torch.device(device), repeats
        batches, _ = make_batches(workload, config.objective, False, False)
        self._batch = move_data_to_device(batches[0], self._device)
        self._vocabulary_size = Vocabulary.load(workload.store / "vocabulary.json").size
        self._model = contender.build(self._vocabulary_size, self._device)
        self._clock = Clock(self._device)
        self._leaves: list[Tensor] = []

    def run(self) -> list[dict[str, Any]]:
        """Return for each kernel: name, runs per step, FLOPs and bytes of a run, and the seconds of each timed run."""
        slots, n_targets = self._batch.input_ids.numel(), len(self._batch.targets)
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        narrow = 2 if self._config.trainer.precision == "bf16" else 4
        works = self._works(torch.bfloat16 if narrow == 2 else torch.float32)
        model = as_computed(self._config.model, self._device)
        needed = costs(model, self._vocabulary_size, slots, n_targets, parameters, narrow)
        if "pathway loss" in works:
            cells, genes = self._batch.drawn.shape
            products, vectors = 2.0 * cells * genes**2 * model.d_model, WIDE * cells * genes * model.d_model
            needed.append(Cost("pathway loss", 1, TRAINING * products, 5.0 * vectors))
        return [
            {
                "name": cost.name,
                "count": cost.count,
                "flops": cost.flops,
                "bytes": cost.n_bytes,
                "seconds": self._time(works[cost.name], cost.name in _OF_GRADIENTS),
            }
            for cost in needed
        ]

    def _time(self, work: Callable[[], None], of_gradients: bool) -> list[float]:
        seconds = []
        for _ in range(self._repeats + 2):  # two to warm up
            # As in most of a step, gradients are written, not added to existing ones.
            for leaf in self._leaves:
                leaf.grad = torch.full_like(leaf, 1e-3) if of_gradients else None
            self._clock.start()
            work()
            seconds.append(self._clock.stop())
        return seconds[2:]

    def _works(self, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
        """The call of each kernel, on random inputs of the dtype that it gets in a step."""
        model, config, batch = self._model, self._config, self._batch
        layer, bidirectional = model.stack.layers[0], config.model.arch == "bimamba"
        mixer = layer.mixer
        assert isinstance(mixer, Mamba2Mixer)
        segments = make_segments(batch.segment, config.model.chunk, config.model.d_conv)
        rows = batch.input_ids.shape
        outputs = 1 if mixer.head_gate or not bidirectional else 2

        def inputs(*widths: int, of: torch.dtype = dtype) -> list[Tensor]:
            made = [torch.randn(*rows, width, device=self._device, dtype=of).requires_grad_() for width in widths]
            self._leaves += made
            return made

        channels = mixer.d_inner + 2 * mixer.d_state
        (x,) = inputs(config.model.d_model, of=torch.float32)
        f, b = inputs(*[config.model.d_model] * 2)
        xBC, *ys = inputs(channels, *[mixer.d_inner] * (outputs + 1))
        z = ys.pop()
        dt = torch.rand(*rows, mixer.n_heads, device=self._device).requires_grad_()
        mixed = inputs(*[channels] * (2 if bidirectional else 1))
        by_kernels = self._device.type in mixer.package_devices
        directions = [f, b]
        if by_kernels and bidirectional and isinstance(model.stack.aggregations[0], Gate):
            directions = [torch.stack([f, b]).detach().requires_grad_()]
            self._leaves += directions
        states = torch.randn(len(batch.targets), config.model.d_model, device=self._device).requires_grad_()

        def scan() -> Sequence[Tensor]:
            A = -mixer.A_log.exp()
            return [mixer._scan(m, dt, A, segments, reverse=i == 1) for i, m in enumerate(mixed)]

        forwards: dict[str, Callable[[], Sequence[Tensor]]] = {
            "projections": lambda: [mixer.in_proj(x), *(mixer.out_proj(y) for y in ys)],
            "convolution": lambda: mixer.conv1d(xBC, segments, bidirectional),
            "scan": scan,
            "gate and norm": lambda: mixer.norm(z, *ys),
            "aggregation": lambda: [model.stack.aggregations[0](x, *directions)],
            "embedding": lambda: [model.embedding(batch.input_ids)],
            "output layer and loss": lambda: [model.language_loss(states, batch.targets)],
        }
        if batch.drawn.shape[1]:
            (whole,) = inputs(config.model.d_model, of=torch.float32)
            temperature = config.objective.temperature
            forwards["pathway loss"] = lambda: [
                pathway_loss_sum(whole.flatten(0, 1), batch.drawn, batch.positive, temperature)
            ]
        works = {name: self._both_ways(forward) for name, forward in forwards.items()}
        if by_kernels:
            columns = mixer.in_proj(x).detach().to(dtype)
            cells = segments.cells if bidirectional else segments.forward.seq_idx
            works |= kernel_parts(mixer, columns, cells)
        parameters = list(model.parameters())
        optimizer = build_optimizer(model, config.optim)
        self._leaves += [*parameters, dt, states]

        def clip() -> None:
            torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip)

        def update() -> None:
            optimizer.step()

        return works | {"clipping": clip, "optimizer": update}

    def _both_ways(self, forward: Callable[[], Sequence[Tensor]]) -> Callable[[], None]:
        gradients: list[Tensor] = []

        def run() -> None:
            with computing_in(self._config.trainer.precision, self._device):
                outputs = forward()
            if not gradients:
                gradients.extend(torch.randn_like(output) for output in outputs)
            torch.autograd.backward(outputs, gradients)

        return run
