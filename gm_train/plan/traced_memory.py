"""Memory of a forward and a backward pass, found by tracing one with tensors that have shapes and no data.

Nothing is computed and no memory is used: any machine can trace any size. Layers are alike, so two small models give
what each further layer adds.
"""

import contextlib
import functools
import json
from dataclasses import asdict, astuple, dataclass, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

from data_shards.errors import DataError
from gm_train.config.schema import Config, ModelConfig, TrainerConfig
from gm_train.model.compile import prepare_blocks
from gm_train.model.genemamba import GeneMamba
from gm_train.model.kernels import scan_kernels
from gm_train.model.kernels.fake_gpu import as_on_a_gpu, use_kernels
from gm_train.model.segments import make_segments
from gm_train.model.ssd import ssd
from gm_train.objective.loss import computing_in

_FEW_LAYERS = (1, 2)
#: Chunks of the traced rows: memory depends on the tokens alone, and short rows take fewer operations.
_CHUNKS = 4
#: Most rows that are traced on a CPU, where `ssd.py` scans them in blocks, each of many operations: thousands of rows
#: take minutes. What further rows need follows from two smaller traces.
_MOST_ROWS = 16
_TOTAL = "Total"


@dataclass(frozen=True)
class PassMemory:
    """Bytes that a micro-batch needs besides weights, gradients and moments, when most is in use.

    Attributes:
        activations: what the forward pass keeps for the backward pass.
        working: what comes on top for a moment: gradients of activations, arrays of the kernels and of the loss, and
            with activation checkpointing a layer that is computed again.
    """

    activations: int
    working: int


def pass_memory(config: Config, vocabulary_size: int, micro_rows: int, on_gpu: bool) -> PassMemory:
    """Find the memory of the activations of a micro-batch.

    Args:
        config: sizes, precision, activation checkpointing; `trainer.compile`, which saves some, is left out.
        vocabulary_size: number of tokens.
        micro_rows: rows of the micro-batch.
        on_gpu: whether the kernels of a GPU compute. They are traced where mamba_ssm is installed. Otherwise what
            mamba_ssm keeps is counted by hand in place of what `ssd.py` keeps, and the result is too large: kernels
            that compute several operations at once keep less than PyTorch.

    Raises:
        DataError: the model is a transformer.
    """
    model = config.model
    if model.arch == "transformer":
        raise DataError("model.arch=transformer: memory is planned for bimamba and mamba only")
    trainer = TrainerConfig(
        precision=config.trainer.precision, activation_checkpointing=config.trainer.activation_checkpointing
    )
    n_rows, length = shape = _short_rows(micro_rows * config.data.row_length, model.chunk)
    by_kernels = on_gpu and scan_kernels.package_problem() is None

    def of_rows(n_layers: int, n_rows: int) -> PassMemory:
        n_targets = max(1, round(config.objective.target_rate * n_rows * length))
        sizes, settings = _frozen(replace(model, n_layers=n_layers)), _frozen(trainer)
        return _traced(sizes, settings, vocabulary_size, (n_rows, length), n_targets, on_gpu, by_kernels)

    def traced(n_layers: int) -> PassMemory:
        if on_gpu or n_rows <= _MOST_ROWS:
            return of_rows(n_layers, n_rows)
        half = _MOST_ROWS // 2
        a, b = of_rows(n_layers, half), of_rows(n_layers, _MOST_ROWS)
        return PassMemory(*(x + (n_rows - half) * (y - x) // half for x, y in zip(astuple(a), astuple(b), strict=True)))

    few, more = _FEW_LAYERS
    if model.n_layers <= more:
        found = traced(model.n_layers)
    else:
        a, b = traced(few), traced(more)
        found = PassMemory(a.activations + (model.n_layers - few) * (b.activations - a.activations), b.working)
    if not on_gpu or by_kernels:
        return found
    saved = _kept_by_ssd(_frozen(model), trainer.precision, shape) - _kept_by_package(model, trainer.precision, shape)
    if trainer.activation_checkpointing:
        return replace(found, working=found.working - saved)
    return replace(found, activations=found.activations - model.n_layers * saved)


def _short_rows(n_tokens: int, chunk: int) -> tuple[int, int]:
    """Return a number of rows and their length that have about `n_tokens` tokens."""
    length = min(n_tokens, _CHUNKS * chunk)
    return -(-n_tokens // length), length


def _frozen(settings: ModelConfig | TrainerConfig) -> str:
    return json.dumps(asdict(settings))


@functools.lru_cache
def _traced(
    model: str,
    trainer: str,
    vocabulary_size: int,
    shape: tuple[int, int],
    n_targets: int,
    on_gpu: bool,
    by_kernels: bool,
) -> PassMemory:
    settings = TrainerConfig(**json.loads(trainer))
    with FakeTensorMode(), as_on_a_gpu() if on_gpu else contextlib.nullcontext():
        built = GeneMamba(ModelConfig(**json.loads(model)), vocabulary_size)
        if by_kernels:
            use_kernels(built)
        prepare_blocks(built, settings)
        for parameter in built.parameters():
            parameter.grad = torch.zeros_like(parameter)
        ids, segment = torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.int64)
        at, targets = (torch.zeros(n_targets, dtype=torch.int64) for _ in range(2))
        tracker = MemTracker()
        tracker.track_external(built)
        with tracker:
            with computing_in(settings.precision, torch.device("cpu")):
                states = built(ids, segment).flatten(0, 1)
                loss = built.language_loss(states[at], targets)
            (kept,) = tracker.get_tracker_snapshot("current").values()
            torch.autograd.backward(loss)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return PassMemory(kept[_MemRefType.ACT], peak[_TOTAL] - kept[_TOTAL])


@functools.lru_cache
def _kept_by_ssd(model: str, precision: str, shape: tuple[int, int]) -> int:
    """Bytes that the scans of a layer keep by `ssd.py`, besides their inputs."""
    sizes = ModelConfig(**json.loads(model))
    inner = sizes.expand * sizes.d_model
    heads = inner // sizes.head_dim
    narrow = torch.bfloat16 if precision == "bf16" else torch.float32
    with FakeTensorMode(), as_on_a_gpu():

        def made(*widths: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(*shape, *widths, dtype=dtype).requires_grad_()

        x, B, C = made(heads, sizes.head_dim, dtype=narrow), *(made(sizes.d_state, dtype=narrow) for _ in range(2))
        dt = made(heads, dtype=torch.float32)
        A, D = (torch.zeros(heads).requires_grad_() for _ in range(2))
        segments = make_segments(torch.ones(shape, dtype=torch.int64), sizes.chunk, sizes.d_conv)
        given = {tensor.untyped_storage()._cdata for tensor in (x, B, C, dt, A, D)}
        kept: dict[int, int] = {}
        alive: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            alive.append(tensor)  # so that no other storage gets its address
            if storage._cdata not in given:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            computing_in(precision, torch.device("cpu")),
        ):
            ssd(x, dt, A, B, C, D, segments)
    return sum(kept.values()) * (2 if sizes.arch == "bimamba" else 1)


def _kept_by_package(model: ModelConfig, precision: str, shape: tuple[int, int]) -> int:
    """Bytes that the scans of a layer keep by mamba_ssm, besides inputs and outputs that other parts keep as well."""
    inner = model.expand * model.d_model
    heads, narrow = inner // model.head_dim, 2 if precision == "bf16" else 4
    # Sums of the decay, float32. In reverse also the flipped step sizes, and the result before it is flipped back.
    each = 4 * heads
    reverse = each + 4 * heads + narrow * inner if model.arch == "bimamba" else 0
    return shape[0] * shape[1] * (each + reverse)
