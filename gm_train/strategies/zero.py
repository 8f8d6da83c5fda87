"""ZeRO stages 2 and 3, by DeepSpeed, on GPUs and on CPU ranks.

DeepSpeed averages, clips and steps by itself. Its checkpoints hold one piece per rank: only the same stage on the same
number of ranks can read them. `reshard_zero.py` converts them to parameter names, which any number of ranks can read.

Where DeepSpeed has no public interface, private names of version 0.19.8 are used, which `pyproject.toml` pins.
"""

import contextlib
import os
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns that it has to guess

import deepspeed
from deepspeed.checkpoint.constants import UNIVERSAL_CHECKPOINT_INFO
from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch import Tensor, nn
from torch.nn import functional as F

from gm_train.checkpoint.find import BY_NAME, Checkpoint, load_whole
from gm_train.model.genemamba import GeneMamba
from gm_train.model.mixer import Mamba2Mixer
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.steps import BYTES_PER_PARAMETER, Steps, all_finite

# None of DeepSpeed's compiled operations is used. Without this it would look for a compiler for each of them, and print
# what it misses; on CPU ranks it would also compile its sums through shared memory at the first start, for a minute.
deepspeed.ops.__compatible_ops__ = {}

#: The folder of DeepSpeed's files within a checkpoint's state.
TAG = "zero"
#: Names of AdamW's moments, in torch and in DeepSpeed.
MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero(Steps, DeepSpeedStrategy):
    """What stages 2 and 3 share.

    All state is float32. Autocast runs matrix products in a narrower type, as under the other strategies.
    """

    stage: int

    def __init__(self, ranks: Ranks, clip: float) -> None:
        on_gpu = ranks.device().type == "cuda"
        DeepSpeedStrategy.__init__(
            self,
            config={
                "train_micro_batch_size_per_gpu": 1,  # required; only used for a throughput that is not shown
                "gradient_clipping": clip,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": self.stage, "contiguous_gradients": True, "overlap_comm": on_gpu},
            },
            process_group_backend=ranks.backend(),
        )
        self._ranks = ranks

    # Where DeepSpeedStrategy expects a GPU ---------------------------------------------------------------------------

    def setup_environment(self) -> None:
        """Do what DeepSpeedStrategy does, without its check for a GPU."""
        ParallelStrategy.setup_environment(self)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        """Hand the existing process group to DeepSpeed."""
        self.set_world_ranks()
        warnings.filterwarnings(
            "ignore", message=".*is deprecated. Please use `torch.distributed", category=FutureWarning
        )
        os.environ["LOCAL_RANK"] = str(self._ranks.local_rank)
        deepspeed.init_distributed(self._get_process_group_backend(), dist_init_required=False, verbose=False)

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> Any:
        index = self.root_device.index
        engine, sharded, _, _ = deepspeed.initialize(
            args=Namespace(device_rank=-1 if index is None else index),
            config=self.config,
            model=model,
            model_parameters=list(model.parameters()),
            optimizer=optimizer,
            dist_init_required=False,
        )
        return engine, sharded

    # Steps -----------------------------------------------------------------------------------------------------------

    def shard(self, model: GeneMamba) -> None:
        """Tell stage 3 which parameters a module uses that are not its own."""
        if self.stage != 3:
            return
        # The kernels of a mixer read the parameters of its parts, whose own forward they do not call.
        for mixer in (module for module in model.modules() if isinstance(module, Mamba2Mixer)):
            for parameter in (mixer.conv1d.weight, mixer.conv1d.bias, mixer.norm.weight):
                deepspeed.zero.register_external_parameter(mixer, parameter)
        if model.output.weight is None:  # the tied output layer uses the embedding's
            deepspeed.zero.register_external_parameter(model.output, model.embedding.weight)

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Tell DeepSpeed whether this is the last pass of a step."""
        self.deepspeed_engine.set_gradient_accumulation_boundary(last)
        yield

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> Tensor:
        """Let DeepSpeed clip to the norm of its configuration and step; it skips a step whose norm is not finite.

        DeepSpeed waits for the norm.
        """
        self.deepspeed_engine.step()
        norm = self.deepspeed_engine.get_global_grad_norm()
        assert norm is not None
        return torch.as_tensor(norm, dtype=torch.float32, device=self.root_device)

    def is_finite(self, model: nn.Module) -> bool:
        """Whether the parameters that this rank holds are finite."""
        return all_finite(getattr(p, "ds_tensor", p) for p in model.parameters())

    def whole_weights(self, model: GeneMamba) -> dict[str, Tensor]:
        """Copy all weights to rank 0; stage 3 gathers them on every rank for a moment."""
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=self.stage == 3):
            if not self._ranks.is_first:
                return {}
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    def save(self, folder: Path, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
        """Write DeepSpeed's checkpoint; all ranks call this together."""
        # DeepSpeed's conversion of stage 2 needs the first entry. It drops the count of updates: the second keeps it.
        client = {UNIVERSAL_CHECKPOINT_INFO: {"universal_checkpoint_version": 0.2}, "updates": self._updates()}
        self.deepspeed_engine.save_checkpoint(str(folder), tag=TAG, client_state=client, save_latest=False)

    def load(self, checkpoint: Checkpoint, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
        """Load a checkpoint of this stage, or one under parameter names; all ranks call this together."""
        if checkpoint.form == BY_NAME:
            self._load_by_name(checkpoint, model)
        else:
            path, _ = self.deepspeed_engine.load_checkpoint(str(checkpoint.state), tag=TAG)
            assert path is not None

    # State under parameter names --------------------------------------------------------------------------------------

    def _partitions(self) -> list[Tensor]:
        """The flat float32 parameters that AdamW updates on this rank."""
        sharded = self.deepspeed_engine.optimizer
        flat = sharded.single_partition_of_fp32_groups if self.stage == 2 else sharded.fp32_partitioned_groups_flat
        return list(flat)

    def _updates(self) -> int:
        """Number of updates that AdamW has made."""
        states = self.deepspeed_engine.optimizer.optimizer.state
        return int(next(iter(states.values()))["step"])

    def _load_by_name(self, checkpoint: Checkpoint, model: GeneMamba) -> None:
        whole, adamw = load_whole(checkpoint)
        source = dict(whole.named_parameters())
        states = self.deepspeed_engine.optimizer.optimizer.state
        step = next(iter(adamw.state.values()))["step"]
        for flat in self._partitions():
            # AdamW creates its state in its first step, which may not have happened yet.
            states[flat] = {"step": step.clone().to(flat.device), **{key: torch.zeros_like(flat) for key in MOMENTS}}
        if self.stage == 2:
            self.deepspeed_engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in model.named_parameters():
            weight, moments = source[name], adamw.state[source[name]]
            if self.stage == 2:
                parameter.data.copy_(weight.data)
                safe_set_full_fp32_param(parameter, weight.data)
                for key in MOMENTS:
                    safe_set_full_optimizer_state(parameter, moments[key], key)
            else:
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(weight.data)
                self._set_partition(parameter, weight.data, None)
                for key in MOMENTS:
                    self._set_partition(parameter, moments[key], key)

    def _set_partition(self, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
        """Set this rank's part of a parameter or moment of stage 3.

        DeepSpeed's `safe_set_full_*` reject a parameter whose size is not a multiple of the number of ranks.
        """
        part, _ = self.deepspeed_engine.optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        n, size = part.numel(), self._ranks.world_size
        padded = F.pad(value.flatten(), (0, n * size - value.numel()))
        part.data.copy_(padded[n * self._ranks.global_rank : n * (self._ranks.global_rank + 1)])


class Zero2(Zero):
    """Gradients and optimizer state sharded over the ranks."""

    stage = 2
    form = "zero2"

    @classmethod
    def state_bytes(cls, n_parameters: int, world_size: int) -> int:
        """Bytes of whole float32 weights, and of this rank's share of gradients and moments."""
        whole = 4 * n_parameters
        return whole - (-(BYTES_PER_PARAMETER - 4) * n_parameters // world_size)


class Zero3(Zero):
    """Parameters, gradients and optimizer state sharded over the ranks."""

    stage = 3
    form = "zero3"
    shards_weights = True
    may_compile = False  # weights are gathered by code within a block
