"""When a run ends early: after some validations without a lower loss."""

import math
from pathlib import Path

from gm_train.loading.position import Position
from gm_train.run.records import METRICS, read_rows


class Patience:
    """Counts the validations since the one with the lowest loss.

    Args:
        limit: `trainer.patience`; 0 never ends a run.
        losses: of the validations so far, in their order.
    """

    def __init__(self, limit: int, losses: list[float]) -> None:
        self.limit = limit
        self._best, self._since = math.inf, 0
        for loss in losses:
            self.add(loss)

    @classmethod
    def resumed(cls, limit: int, directory: Path, position: Position) -> "Patience":
        """Count the validations that a run has recorded up to a position, on its present store.

        A store that has grown has other validation cells: losses before and after cannot be compared.

        Raises:
            DataError: the records are damaged.
        """
        begun = max((store.until_step for store in position.earlier_stores), default=0)
        rows = [row for row in read_rows(directory / METRICS) if "val_loss" in row]
        rows = [row for row in rows if begun < row["step"] <= position.step]
        return cls(limit, [math.nan if row["val_loss"] is None else row["val_loss"] for row in rows])

    def add(self, loss: float) -> bool:
        """Count a validation. Returns whether its loss is the lowest so far; NaN never is."""
        is_best = loss < self._best
        self._best, self._since = (loss, 0) if is_best else (self._best, self._since + 1)
        return is_best

    @property
    def is_over(self) -> bool:
        """Whether the run ends."""
        return 0 < self.limit <= self._since
