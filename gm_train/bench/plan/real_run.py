"""A few steps of a real run, in a process of its own: seconds of a step and added memory."""

import copy
import statistics
from pathlib import Path
from typing import Any

from gm_train.bench.measure.peak_memory import PeakMemory
from gm_train.config.schema import Config
from gm_train.ranks.ranks import Ranks
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit

#: First steps, which are left out: memory is allocated, blocks are read for the first time.
_WARMUP = 3


class RealRun:
    """A run of `gm-train fit` on one rank, without validation and tracking.

    Args:
        config: of the run; it is copied.
        directory: an empty folder for it.
        steps: timed steps.
    """

    def __init__(self, config: Config, directory: str, steps: int) -> None:
        config = copy.deepcopy(config)
        config.run.dir = directory
        config.trainer.max_steps = _WARMUP + steps
        config.trainer.validate_every_steps = 0
        config.checkpoint.every_steps = _WARMUP + steps
        config.trainer.devices = config.trainer.num_nodes = 1
        config.tracking.mlflow, config.tracking.loggers = "none", []
        config.optim.warmup_steps = min(config.optim.warmup_steps, config.trainer.max_steps)
        self._config = config
        self._memory = PeakMemory(Ranks().device())

    def run(self) -> dict[str, Any]:
        """Train; return the median seconds of a step, and the bytes that were added at the peak."""
        self._memory.reset()
        fit(self._config)
        rows = read_rows(Path(self._config.run.dir) / METRICS)
        return {"step_s": statistics.median(row["step_s"] for row in rows[_WARMUP:]), "peak": self._memory.added()}
