"""The tasks of an evaluation. To add one, write a class like those listed here, and list it."""

from collections.abc import Sequence

from data_shards.errors import OptionError
from gm_train.evaluation.integration.integration_task import IntegrationTask
from gm_train.evaluation.masked.masked_task import MaskedGenesTask
from gm_train.evaluation.missing.missing_task import MissingGenesTask
from gm_train.evaluation.pairs.pairs_task import PairsTask
from gm_train.evaluation.pairs.regulation_task import RegulationTask
from gm_train.evaluation.probes.probe_task import ProbeTask
from gm_train.evaluation.reconstruction.paper_reconstruction_task import PaperReconstructionTask
from gm_train.evaluation.reconstruction.reconstruction_task import ReconstructionTask
from gm_train.evaluation.robustness.robustness_task import RobustnessTask
from gm_train.evaluation.task import EvaluationTask

#: The tasks in the order of their tables.
TASKS: tuple[type[EvaluationTask], ...] = (
    MaskedGenesTask,
    MissingGenesTask,
    ProbeTask,
    IntegrationTask,
    PairsTask,
    RegulationTask,
    RobustnessTask,
    ReconstructionTask,
    PaperReconstructionTask,
)


def choose_tasks(names: Sequence[str], paper_reconstruction: bool = False) -> tuple[type[EvaluationTask], ...]:
    """The tasks of these names in the order of `TASKS`; all without names.

    Args:
        names: keys of tasks; each may be several with commas between them.
        paper_reconstruction: whether to add the published reconstruction, which shows nothing; no name adds it.

    Raises:
        OptionError: no task has one of the names.
    """
    wanted = {key.strip() for name in names for key in name.split(",")} - {""}
    known = {task.key for task in TASKS} - {PaperReconstructionTask.key}
    if unknown := wanted - known:
        raise OptionError(f"--tasks {', '.join(sorted(unknown))}: no such task: there are {', '.join(sorted(known))}")
    if names and not wanted:
        raise OptionError(f"--tasks names no task: there are {', '.join(sorted(known))}")
    keys = (wanted or known) | ({PaperReconstructionTask.key} if paper_reconstruction else set())
    return tuple(task for task in TASKS if task.key in keys)
