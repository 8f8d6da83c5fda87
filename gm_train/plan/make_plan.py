"""Plan a run on paper: memory of a rank, speed, hours and checkpoints, before any rank is started."""

import copy
from dataclasses import dataclass

from data_shards.rows.lanes import AHEAD_BYTES
from gm_train.checkpoint.first_start import fix_rows_of_run
from gm_train.config.check import ConfigError, rank_problems
from gm_train.config.micro_rows import choose_micro_rows
from gm_train.config.schema import Config
from gm_train.model.kernels import scan_kernels
from gm_train.plan.devices import ASSUMED_SHARE, DEVICES, ERROR, USABLE, Device
from gm_train.plan.model_size import ModelSize, model_size
from gm_train.plan.rank_memory import RankMemory, logits_bytes, micro_batches, rank_memory
from gm_train.plan.step_time import Measured, StepTime, modelled_time, scaled_time
from gm_train.plan.store_facts import StoreFacts, read_store_facts
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.choose import choose, strategy_class

#: Bytes per parameter in a checkpoint: the weight and AdamW's two moments, in float32.
_SAVED = 12
#: Bytes a second that the shared file system is assumed to take; a save also hashes what it writes.
SAVED_PER_S = 1e9
#: Bytes of the interpreter of a loader worker.
_WORKER = 400e6


@dataclass(frozen=True)
class Plan:
    """A run on paper. `render_plan` prints it.

    Attributes:
        config: as planned.
        facts: of the store.
        size: of the model.
        ranks: rank 0 of the run.
        device: a rank's device, in words.
        device_memory: its memory in bytes; None if it is not known.
        on_gpu: whether ranks have GPUs.
        is_traced: whether the memory is that of the kernels that compute; otherwise it is too large.
        strategy, why: how ranks share a step, and the reason.
        micro_rows: rows of a forward pass.
        memory: of a rank.
        time: of a step; None if nothing was measured and there is no data sheet.
        measured: what was measured, or None.
    """

    config: Config
    facts: StoreFacts
    size: ModelSize
    ranks: Ranks
    device: str
    device_memory: float | None
    on_gpu: bool
    is_traced: bool
    strategy: str
    why: str
    micro_rows: int
    memory: RankMemory
    time: StepTime | None
    measured: Measured | None

    @property
    def usable(self) -> float | None:
        """Bytes of a rank's memory that a run may fill."""
        return None if self.device_memory is None else USABLE * self.device_memory

    @property
    def fits(self) -> bool:
        """Whether a rank's memory is large enough, as far as it is known."""
        return self.usable is None or self.memory.total <= self.usable

    @property
    def cannot_fit(self) -> bool:
        """Whether a rank's memory is too small, even if the plan is wrong by as much as it may be."""
        return self.is_traced and self.usable is not None and self.memory.total > (1 + ERROR) * self.usable

    @property
    def n_micro(self) -> int:
        """Forward passes of a rank in a step."""
        return micro_batches(self.config, self.ranks.world_size, self.micro_rows)

    @property
    def rows(self) -> int:
        """Rows of a step, over all ranks."""
        return self.config.data.step_rows

    @property
    def step_s(self) -> float | None:
        """Seconds of a step."""
        return None if self.time is None else self.n_micro * self.time.pass_s + self.time.update_s

    @property
    def epoch_steps(self) -> float | None:
        """Steps in which every training cell is read once, on average; None without a store."""
        cells = self.facts.n_cells
        return None if cells is None else cells / (self.rows * self.facts.cells_per_row)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint."""
        return _SAVED * self.size.whole

    @property
    def loader_bytes(self) -> float:
        """Host memory of a rank's loader: chunk cache, blocks read ahead, the pools of its lanes, its workers."""
        data = self.config.data
        pools = 2 * self.facts.pool_tokens * data.lanes / self.ranks.world_size
        return (data.cache_mb << 20) + AHEAD_BYTES + pools + data.workers * _WORKER

    @property
    def logits_bytes(self) -> int:
        """Bytes of the logits that the loss holds at a time."""
        return logits_bytes(self.config, self.facts.vocabulary_size, self.micro_rows)


def make_plan(
    config: Config,
    n_nodes: int,
    per_node: int,
    device: Device | str | None = None,
    share: float = ASSUMED_SHARE,
    measured: Measured | None = None,
) -> Plan:
    """Plan a run.

    Args:
        config: checked.
        n_nodes: number of nodes.
        per_node: ranks on each.
        device: what a rank computes on, or a name in `DEVICES`; None: the device that was measured, or CPUs of unknown
            speed and memory.
        share: share of the roofline that is assumed to be reached.
        measured: a few real steps on this machine, which then take the place of the data sheet.

    Raises:
        ConfigError: a step cannot be divided among the ranks.
        DataError: the model cannot be planned, or its strategy needs a package that is not installed.
    """
    config = copy.deepcopy(config)
    ranks = Ranks(0, n_nodes * per_node, 0, per_node)
    if problems := rank_problems(config, ranks.world_size):
        raise ConfigError(problems)
    fix_rows_of_run(config, ranks.world_size)
    if problems := rank_problems(config, ranks.world_size):
        raise ConfigError(problems)
    facts = read_store_facts(config)
    size = model_size(config.model, facts.vocabulary_size)
    sheet = DEVICES[device] if isinstance(device, str) else device
    if sheet is None and measured is not None:
        sheet = Device(measured.device, {}, 0.0, measured.memory, "measured", measured.on_gpu)
    elif sheet is None:
        sheet = Device("a CPU", {}, 0.0, None, "none", on_gpu=False)
    memory, on_gpu = sheet.memory, sheet.on_gpu
    # On devices of unknown memory, `auto` is taken to keep the model whole.
    strategy, why = choose(config.trainer.strategy, size.whole, ranks, int(memory or 1 << 62))
    if memory is None and config.trainer.strategy == "auto" and ranks.world_size > 1:
        why = "auto: the memory of a rank is not known here"
    micro_rows = choose_micro_rows(config, ranks.world_size)
    need = rank_memory(config, facts.vocabulary_size, strategy, ranks.world_size, micro_rows, on_gpu)
    is_traced = not on_gpu or scan_kernels.package_problem() is None
    time = None
    if measured is not None:
        time = scaled_time(measured, micro_rows * config.data.row_length)
    elif sheet.flops:
        held = size.whole if not strategy_class(strategy).shards_weights else size.whole // ranks.world_size
        time = modelled_time(config, facts.vocabulary_size, micro_rows, held, sheet, share)
    return Plan(
        config,
        facts,
        size,
        ranks,
        sheet.name,
        memory,
        on_gpu,
        is_traced,
        strategy,
        why,
        micro_rows,
        need,
        time,
        measured,
    )
