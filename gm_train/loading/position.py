"""The position of a run in its data."""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Position:
    """The position of a run in its data: everything that decides which cells come next.

    Attributes:
        step: optimizer steps done, skipped ones included.
        cells: cells trained on; a cell counts each time that it is used.
        lanes: for each lane the (pool, row) of its next row.
    """

    step: int = 0
    cells: int = 0
    lanes: dict[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def start(cls, n_lanes: int) -> "Position":
        """Return the position before the first step."""
        return cls(0, 0, dict.fromkeys(range(n_lanes), (0, 0)))

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
            "lanes": [list(self.lanes[lane]) for lane in range(len(self.lanes))],
        }
        path.write_text(json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Position":
        """Read a position that `save` has written."""
        content = json.loads(path.read_text())
        lanes = {lane: (pool, row) for lane, (pool, row) in enumerate(content["lanes"])}
        return cls(content["step"], content["cells"], lanes)
