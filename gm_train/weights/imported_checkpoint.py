"""Tell an imported checkpoint from one of a run. Imports little: every start of a training asks it."""

from typing import Any

from data_shards.errors import DataError
from gm_train.checkpoint.find import Checkpoint

#: The key of an identity that says where imported weights came from. No run has it, so no run resumes from them.
IMPORTED = "imported"


def refuse_imported(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Refuse to resume a run from imported weights, which have no optimizer state.

    Raises:
        DataError: the checkpoint was imported.
    """
    if IMPORTED in identity:
        raise DataError(
            f"{checkpoint.path}: was written by `gm-train import` and has no optimizer state, so no run can resume "
            "from it: start a new run with model.init_from=CHECKPOINT in another run.dir"
        )
