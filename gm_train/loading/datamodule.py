"""The DataModule for a Lightning Trainer of one's own. `gm-train fit` uses `RankBatches` directly."""

import copy
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L

from data_shards.errors import DataError
from gm_train.config.check import ConfigError, rank_problems
from gm_train.config.micro_rows import data_of_ranks
from gm_train.config.rows_per_lane import choose_rows_per_lane
from gm_train.config.schema import Config
from gm_train.loading.cell_batches import CellBatches
from gm_train.loading.open_data import OpenData, open_data
from gm_train.loading.position import Position
from gm_train.loading.rank_batches import RankBatches, Turns
from gm_train.objective.batches import MicroBatch
from gm_train.ranks.ranks import Ranks

#: The stream has no end: the Trainer decides when to stop.
_ENDLESS = 1 << 62
#: The `accumulate_grad_batches` that the user gave to a Trainer.
_ACCUMULATED: "WeakKeyDictionary[L.Trainer, int]" = WeakKeyDictionary()
#: Settings that decide what a position means.
_ORDER = ("lanes", "rows_per_lane", "pool_blocks", "group_cells", "row_length", "weights")


class CellDataModule(L.LightningDataModule):
    """Batches of a token store for a Lightning Trainer, in the order of `gm-train fit`.

    A Lightning batch is a micro-batch of `data.micro_rows` rows. The Trainer accumulates the micro-batches of a step
    (`data.lanes * data.rows_per_lane` rows over all ranks) before it steps the optimizer: `setup` multiplies its
    `accumulate_grad_batches` by their number. An epoch is `trainer.validate_every_steps` steps, at most the Trainer's
    `max_steps`. So Lightning validates where `gm-train fit` does, and at the end. Epochs continue the stream; a
    checkpoint of Lightning holds the position in it.

    Args:
        config: a checked configuration; it is copied.

    Attributes:
        config: the copy, with `data.rows_per_lane` and `data.pool_blocks` set once the data are open.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        self._position = Position.start(config.data.lanes)
        self._data: OpenData | None = None
        self._batches: RankBatches
        self._ranks: Ranks
        self._within = 0  # micro-batches since the last step

    def setup(self, stage: str) -> None:
        """Open the data, and make the Trainer accumulate the micro-batches of a step.

        Args:
            stage: fit, validate, test or predict.

        Raises:
            DataError: the store or the gene sets cannot be read, or the store does not fit the configuration.
            ConfigError: a step cannot be divided among the Trainer's ranks.
        """
        trainer = self._trainer()
        self._ranks = Ranks(trainer.global_rank, trainer.world_size)
        if problems := rank_problems(self.config, trainer.world_size):
            raise ConfigError(problems)
        self.config.data.rows_per_lane = choose_rows_per_lane(self.config, trainer.world_size)
        if self._data is None:
            self._data = open_data(self.config)
        if stage == "fit":  # begins anew; a checkpoint is loaded later
            self.go_to(None)
        self._batches = self._from(self._position)
        if stage == "fit":
            own = _ACCUMULATED.setdefault(trainer, trainer.accumulate_grad_batches)
            trainer.accumulate_grad_batches = own * self._batches.per_step

    def train_dataloader(self) -> "EpochLoader":
        """The stream of this rank's micro-batches, cut into epochs.

        Raises:
            ConfigError: the Trainer's `limit_train_batches` would end an epoch within a step.
        """
        trainer = self._trainer()
        every = self.config.trainer.validate_every_steps
        limits = [limit for limit in (every, trainer.max_steps) if limit > 0]
        n_steps = min(limits, default=self.config.trainer.max_steps)
        length, limit = n_steps * trainer.accumulate_grad_batches, trainer.limit_train_batches
        n_batches = int(length * limit) if isinstance(limit, float) else min(limit, length)
        if n_batches % trainer.accumulate_grad_batches and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ConfigError(
                [
                    f"the Trainer's limit_train_batches={limit}: an epoch would end within a step, which has "
                    f"{trainer.accumulate_grad_batches} micro-batches: choose a multiple of that"
                ]
            )
        return EpochLoader(self, length)

    def val_dataloader(self) -> Turns | list[Any]:
        """The held-out cells, the same at every validation.

        Empty if none are held out, and while training if `trainer.validate_every_steps` is 0.
        """
        if self._trainer().state.fn == "fit" and not self.config.trainer.validate_every_steps:
            return []
        batches = self._batches.validation_batches()
        return Turns(batches, self._ranks) if batches else []

    def predict_dataloader(self) -> CellBatches:
        """All cells of the store, in its order, with their names."""
        assert self._data is not None
        return CellBatches(self._data.reader, self.config.data.row_length, self._ranks)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note the position after a step, once its last micro-batch is handed out.

        Args:
            batch: of any loader; it is returned unchanged.
            dataloader_idx: unused.
        """
        if self._trainer().training and isinstance(batch, MicroBatch):
            self._within = 0 if batch.last else self._within + 1
            if batch.last:
                self._position.step += 1
                self._position.lanes.update(batch.info.lanes)
        return batch

    def stream(self) -> Iterator[MicroBatch]:
        """This rank's micro-batches from the present position on, without end."""
        return iter(self._from(self._position).train_batches())

    def position(self) -> dict[str, Any]:
        """The position of all ranks; all ranks call this."""
        lanes = dict(self._position.lanes)
        own = {lane: lanes[lane] for lane in lanes if lane % self._ranks.world_size == self._ranks.global_rank}
        for part in self._ranks.gather(own):
            lanes |= part
        return {"step": self._position.step, "lanes": lanes, "within": self._within, "order": self._order()}

    def go_to(self, position: dict[str, Any] | None) -> None:
        """Continue from a position; from the beginning if it is None.

        Raises:
            DataError: the position is within a step, or means something else with these settings.
        """
        order = self._order()
        start = Position.start(self.config.data.lanes)
        start.store_hash = order["store"]  # data sets that are added while this trains are left out
        self._within = 0
        if position is not None:
            differing = [
                f"  {key}: {position['order'][key]!r} in the checkpoint, {order[key]!r} now"
                for key in order
                if position["order"][key] != order[key]
            ]
            if differing:
                raise DataError(
                    "the position in Lightning's checkpoint means other cells here:\n"
                    + "\n".join(differing)
                    + "\nset these back, or begin a new training with its weights: "
                    "GeneMambaModule.load_from_checkpoint"
                )
            if position["within"]:
                raise DataError(
                    f"Lightning's checkpoint was written {position['within']} micro-batches into a step: continue from "
                    "one that was written at the end of a step, such as by ModelCheckpoint(every_n_train_steps=...)"
                )
            start.step, start.lanes = position["step"], dict(position["lanes"])
        self._position = start

    def _order(self) -> dict[str, Any]:
        """What decides the meaning of a position in Lightning's checkpoints."""
        assert self._data is not None
        data, seed = self.config.data, self.config.run.seed
        settings = {f"data.{key}": getattr(data, key) for key in _ORDER}
        store = self._data.reader.manifest.hash
        batches = self._from(self._position)
        return {"store": store, "run.seed": seed, **settings, "micro-batches of a rank in a step": batches.per_step}

    def _from(self, position: Position) -> RankBatches:
        assert self._data is not None
        cells = self.config.trainer.validation_cells
        data = data_of_ranks(self.config, self._ranks.world_size)
        return RankBatches(data, self._data.recipe, position, _ENDLESS, cells, self._ranks)

    def _trainer(self) -> L.Trainer:
        assert self.trainer is not None, "pass this to a Trainer: trainer.fit(module, datamodule=data)"
        return self.trainer


class EpochLoader:
    """The endless stream of a `CellDataModule`, cut into epochs of equal length; each epoch continues the stream.

    Args:
        data: makes the stream.
        length: micro-batches of an epoch.
    """

    def __init__(self, data: CellDataModule, length: int) -> None:
        self._data, self._length = data, length
        self._stream: Iterator[MicroBatch] | None = None

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        return self._length

    def __iter__(self) -> Iterator[MicroBatch]:
        for _ in range(self._length):
            if self._stream is None:
                self._stream = self._data.stream()
            yield next(self._stream)

    def state_dict(self) -> dict[str, Any]:
        """The position of all ranks in the stream, for Lightning's checkpoint."""
        return self._data.position()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a position in the stream."""
        self._data.go_to(state_dict)
        self._stream = None
