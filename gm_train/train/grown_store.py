"""Continue a run on its store after `gm-train data shards --add` has added data sets to it.

The order of cells depends on the whole store, so no place of the old order exists in the new one. The run therefore
keeps its step, weights, optimizer and learning rate, and reads the grown store from the beginning of its order. That
is a function of the checkpoint and the store: a run that is killed before its next checkpoint reads the same cells
again, on any number of ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_shards.errors import DataError
from data_shards.rows.pool import choose_pool_blocks
from data_shards.store.manifest import Manifest
from gm_train.config.schema import Config
from gm_train.loading.position import Position
from gm_train.model.classes import Classes


@dataclass(frozen=True)
class GrownStore:
    """A store that has grown since a checkpoint.

    Attributes:
        earlier: its manifest at the time of the checkpoint.
        now: its present manifest.
    """

    earlier: Manifest
    now: Manifest

    @classmethod
    def find(cls, saved: Mapping[str, Any], manifest: Manifest) -> "GrownStore | None":
        """Compare the store with that of a checkpoint.

        Args:
            saved: the checkpoint's identity; empty if there is no checkpoint.
            manifest: the store's manifest.

        Returns:
            None if it is the same store, or another one than that store with more data sets.
        """
        earlier = manifest.before_adding(saved["store"]) if saved else None
        return None if earlier is None else cls(earlier, manifest)

    def carry_over(self, config: Config, saved: dict[str, Any]) -> dict[str, Any]:
        """Return the checkpoint's identity as it is on the grown store.

        A pool size that was computed for the earlier store is computed again, also in `config`: the same number of
        blocks may now hold many times as many cells.
        """
        was, now = choose_pool_blocks(self.earlier), choose_pool_blocks(self.now)
        saved = saved | {"store": self.now.hash}
        if saved.get("data.pool_blocks") == was and config.data.pool_blocks in (was, now):
            config.data.pool_blocks = saved["data.pool_blocks"] = now
        return saved

    def carry_over_classes(self, before: Classes | None, now: Classes) -> dict[str, Any]:
        """Return the entry of the checkpoint's identity for a run that learns a label.

        More cells of the same classes change only their weights in the loss.

        Args:
            before: the classes of the checkpoint; None if it has none.
            now: those of the grown store.

        Raises:
            DataError: the classes are not the same ones.
        """
        if before is None or (before.label, before.names) == (now.label, now.names):
            return {} if before is None else {"classes": now.hash}
        differing = sorted(set(before.names) ^ set(now.names))
        raise DataError(
            f"the added data sets change the classes of {now.label!r} ({', '.join(differing)}), so this run cannot go "
            "on with them: train into another run.dir, from these weights if you like (model.init_from)"
        )

    def describe(self, position: Position, weights: Mapping[str, int]) -> str:
        """Say what going on means for the order of cells.

        Args:
            position: where the run stands, from `Position.on_grown_store`.
            weights: how often the blocks of each data set come in a pass.
        """
        added = self.now.datasets[len(self.earlier.datasets) :]
        cells = position.cells - sum(store.cells for store in position.earlier_stores[:-1])
        passes, again = divmod(cells, _cells_of_pass(self.earlier, weights))
        return (
            f"the store has grown by {', '.join(f'{entry.name} ({entry.n_cells:,} cells)' for entry in added)}: "
            "weights, optimizer, step and learning rate go on; the cells come in a new order, from the beginning of a "
            f"pass of {_cells_of_pass(self.now, weights):,}\n"
            f"  about {again:,} of the {_cells_of_pass(self.earlier, weights):,} cells of the unfinished pass "
            f"{passes + 1:,} have been read already and come again; validation cells are chosen anew, so compare "
            "val_loss only after this step"
        )


def _cells_of_pass(manifest: Manifest, weights: Mapping[str, int]) -> int:
    """Number of training cells of a pass."""
    return sum(entry.n_train * weights.get(entry.name, 1) for entry in manifest.datasets)
