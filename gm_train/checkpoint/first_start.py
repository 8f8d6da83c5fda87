"""Fix the size of a run's step, where its configuration leaves it open: at the first start, for all later ones."""

from pathlib import Path

from gm_train.checkpoint.find import Checkpoint, list_checkpoints
from gm_train.config.load import config_from_file
from gm_train.config.rows_per_lane import about_step, choose_rows_per_lane
from gm_train.config.schema import Config


def fix_rows_per_lane(config: Config, world_size: int, checkpoint: Checkpoint | None) -> str:
    """Set `data.rows_per_lane` if it is None: to that of the run, or at its first start to one for these ranks.

    Args:
        config: changed in place; `world_size` divides its lanes.
        world_size: number of ranks.
        checkpoint: what the run resumes from; None at its first start.

    Returns:
        A line about a choice for these ranks; empty if nothing was chosen.
    """
    if config.data.rows_per_lane is not None:
        return ""
    if checkpoint is not None:
        config.data.rows_per_lane = config_from_file(checkpoint.path / "config.yaml").data.rows_per_lane
        return ""
    config.data.rows_per_lane = choose_rows_per_lane(config, world_size)
    return about_step(config, world_size)


def fix_rows_of_run(config: Config, world_size: int) -> str:
    """As `fix_rows_per_lane`, for a run that is not opened: its checkpoints are looked for, and not verified.

    Args:
        config: changed in place; `world_size` divides its lanes.
        world_size: number of ranks.
    """
    newest = next(reversed(list_checkpoints(Path(config.run.dir) / "checkpoints")), None)
    return fix_rows_per_lane(config, world_size, newest)
