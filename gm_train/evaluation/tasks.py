"""The tasks of an evaluation. To add one, write a class like those listed here, and list it."""

from collections.abc import Sequence

from data_shards.errors import OptionError
from gm_train.evaluation.masked.masked_task import MaskedGenesTask
from gm_train.evaluation.missing.missing_task import MissingGenesTask
from gm_train.evaluation.pairs.pairs_task import PairsTask
from gm_train.evaluation.probes.probe_task import ProbeTask
from gm_train.evaluation.robustness.robustness_task import RobustnessTask
from gm_train.evaluation.task import EvaluationTask

#: The tasks in the order of their tables.
TASKS: tuple[type[EvaluationTask], ...] = (MaskedGenesTask, MissingGenesTask, ProbeTask, PairsTask, RobustnessTask)


def choose_tasks(names: Sequence[str]) -> tuple[type[EvaluationTask], ...]:
    """The tasks of these names in the order of `TASKS`; all without names.

    Args:
        names: keys of tasks; each may be several with commas between them.

    Raises:
        OptionError: no task has one of the names.
    """
    wanted = {key.strip() for name in names for key in name.split(",")} - {""}
    known = {task.key for task in TASKS}
    if unknown := wanted - known:
        raise OptionError(f"--tasks {', '.join(sorted(unknown))}: no such task: there are {', '.join(sorted(known))}")
    if names and not wanted:
        raise OptionError(f"--tasks names no task: there are {', '.join(sorted(known))}")
    return tuple(task for task in TASKS if not wanted or task.key in wanted)
