"""The DataModule for a Lightning Trainer of one's own. `gm-train fit` uses `RankBatches` directly."""

import copy
from collections.abc import Iterator
from typing import Any

import lightning as L

from data_shards.errors import DataError
from gm_train.config.check import ConfigError, rank_problems
from gm_train.config.schema import Config
from gm_train.loading.cell_batches import CellBatches
from gm_train.loading.open_data import OpenData, open_data
from gm_train.loading.position import Position
from gm_train.loading.rank_batches import RankBatches, Turns
from gm_train.objective.batches import MicroBatch
from gm_train.ranks.ranks import Ranks

#: The stream has no end: the Trainer decides when to stop.
_ENDLESS = 1 << 62


class CellDataModule(L.LightningDataModule):
    """Batches of a token store for a Lightning Trainer, in the order of `gm-train fit`.

    A Lightning batch is a micro-batch of `data.micro_rows` rows. The Trainer accumulates the micro-batches of a step
    (`data.lanes * data.rows_per_lane` rows over all ranks) before it steps the optimizer: `setup` multiplies its
    `accumulate_grad_batches` by their number. An epoch is `trainer.validate_every_steps` steps, at most the Trainer's
    `max_steps`. So Lightning validates where `gm-train fit` does. Epochs continue the stream; a checkpoint of Lightning
    holds the position in it.

    Args:
        config: a checked configuration; it is copied.

    Attributes:
        config: the copy, with `data.pool_blocks` set once the data are open.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        self._position = Position.start(config.data.lanes)
        self._data: OpenData | None = None
        self._batches: RankBatches
        self._ranks: Ranks
        self._accumulates_for: L.Trainer | None = None

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
        if self._data is None:
            self._data = open_data(self.config)
            # Data sets that are added while this trains are left out.
            self._position.store_hash = self._data.reader.manifest.hash
        self._batches = self._from(self._position)
        if stage == "fit" and self._accumulates_for is not trainer:
            trainer.accumulate_grad_batches *= self._batches.per_step
            self._accumulates_for = trainer

    def train_dataloader(self) -> "EpochLoader":
        """The stream of this rank's micro-batches, cut into epochs."""
        trainer = self._trainer()
        every = self.config.trainer.validate_every_steps
        limits = [limit for limit in (every, trainer.max_steps) if limit > 0]
        n_steps = min(limits, default=self.config.trainer.max_steps)
        return EpochLoader(self, n_steps * trainer.accumulate_grad_batches)

    def val_dataloader(self) -> Turns | list[Any]:
        """The held-out cells, the same at every validation; empty if none are held out."""
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
        if self._trainer().training and isinstance(batch, MicroBatch) and batch.last:
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
        return {"step": self._position.step, "lanes": lanes, "store": self._position.store_hash}

    def go_to(self, position: dict[str, Any]) -> None:
        """Continue from a position, on any number of ranks.

        Raises:
            DataError: the position is in another store.
        """
        store = self._position.store_hash
        if position["store"] != store:
            raise DataError(
                f"{self.config.data.store}: not the store that the checkpoint was trained on, so its position means "
                "nothing here: name that store with data.store, or begin a new training with the checkpoint's weights "
                "(GeneMambaModule.load_from_checkpoint)"
            )
        self._position = Position(position["step"], 0, dict(position["lanes"]), store_hash=store)

    def _from(self, position: Position) -> RankBatches:
        assert self._data is not None
        cells = self.config.trainer.validation_cells
        return RankBatches(self.config.data, self._data.recipe, position, _ENDLESS, cells, self._ranks)

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
