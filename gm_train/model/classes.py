"""The classes that a classifier predicts, and how sure it must be: what `predict` needs besides the weights."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

#: The label of a cell whose class is not certain enough.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Calibration:
    """How sure a classifier must be, from the validation cells of one checkpoint.

    Attributes:
        temperature: logits are divided by it before the softmax.
        threshold: smallest probability of the first class with which a cell gets its label; None if no threshold can
            be shown to keep the share of wrong labels below `max_error`: then every cell is unknown.
        max_error: `task.max_error`.
        n_cells: labelled validation cells, those of classes that are not learned included.
        n_labelled: those of them that get a label.
        n_wrong: those of them whose label is wrong.
    """

    temperature: float
    threshold: float | None
    max_error: float
    n_cells: int
    n_labelled: int
    n_wrong: int


@dataclass(frozen=True)
class Classes:
    """The classes of a label.

    Attributes:
        label: column of obs.
        names: name of each class, sorted.
        n_train: number of training cells of each class.
        calibration: of a checkpoint that was validated; None otherwise.
    """

    label: str
    names: tuple[str, ...]
    n_train: tuple[int, ...]
    calibration: Calibration | None = None

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the label and the classes with their counts."""
        content = [self.label, list(self.names), list(self.n_train)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def weights(self, balanced: bool) -> list[float]:
        """Weight of each class in the loss; the mean over the training cells is 1.

        Args:
            balanced: whether all classes count alike in sum; otherwise all cells do.
        """
        if not balanced:
            return [1.0] * len(self.names)
        return [sum(self.n_train) / (len(self.n_train) * n) for n in self.n_train]

    def with_calibration(self, calibration: Calibration | None) -> "Classes":
        """The same classes with a calibration."""
        return replace(self, calibration=calibration)

    def to_json(self) -> dict[str, Any]:
        """All of it as objects that JSON has."""
        return {**asdict(self), "names": list(self.names), "n_train": list(self.n_train)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Classes":
        """What `to_json` has made."""
        found = content["calibration"]
        calibration = Calibration(**found) if found else None
        return cls(content["label"], tuple(content["names"]), tuple(content["n_train"]), calibration)
