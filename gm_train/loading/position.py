"""The position of a run in its data."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class EarlierStore(NamedTuple):
    """A store that a run was trained on before data sets were added to it.

    Attributes:
        hash: the hash of its manifest.
        until_step: the last step on it.
        cells: cells trained on it.
    """

    hash: str
    until_step: int
    cells: int


@dataclass
class Position:
    """The position of a run in its data: everything that decides which cells come next.

    Attributes:
        step: optimizer steps done, skipped ones included.
        cells: cells trained on; a cell counts each time that it is used.
        lanes: for each lane the (pool, row) of its next row.
        earlier_stores: what the present store was before it grew, oldest first.
        store_hash: hash of the present store; None if it does not matter whether the store grows meanwhile.
    """

    step: int = 0
    cells: int = 0
    lanes: dict[int, tuple[int, int]] = field(default_factory=dict)
    earlier_stores: list[EarlierStore] = field(default_factory=list)
    store_hash: str | None = None

    @classmethod
    def start(cls, n_lanes: int) -> "Position":
        """Return the position before the first step."""
        return cls(0, 0, dict.fromkeys(range(n_lanes), (0, 0)))

    def on_grown_store(self, earlier_hash: str) -> "Position":
        """Return the same position at the beginning of the order of a store that has grown.

        Args:
            earlier_hash: the hash of the store's manifest before it grew.
        """
        cells = self.cells - sum(store.cells for store in self.earlier_stores)
        earlier = [*self.earlier_stores, EarlierStore(earlier_hash, self.step, cells)]
        return Position(self.step, self.cells, dict.fromkeys(self.lanes, (0, 0)), earlier)

    def save(self, path: Path, seed: int, store_hash: str) -> None:
        """Write the position to a JSON file.

        Args:
            path: the file.
            seed: the run's seed, kept for reference: `load` does not read it.
            store_hash: the hash of the store's manifest.
        """
        content = {
            "step": self.step,
            "cells": self.cells,
            "seed": seed,
            "store_hash": store_hash,
            "earlier_stores": [store._asdict() for store in self.earlier_stores],
            "lanes": [list(self.lanes[lane]) for lane in range(len(self.lanes))],
        }
        path.write_text(json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Position":
        """Read a position that `save` has written."""
        content = json.loads(path.read_text())
        lanes = {lane: (pool, row) for lane, (pool, row) in enumerate(content["lanes"])}
        # Checkpoints of earlier versions do not have the last entry.
        earlier = [EarlierStore(**store) for store in content.get("earlier_stores", [])]
        return cls(content["step"], content["cells"], lanes, earlier)
