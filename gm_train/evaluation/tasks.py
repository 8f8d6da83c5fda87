"""The tasks of an evaluation. To add one, write a class like those listed here, and list it."""

from gm_train.evaluation.masked.masked_task import MaskedGenesTask
from gm_train.evaluation.missing.missing_task import MissingGenesTask
from gm_train.evaluation.probes.probe_task import ProbeTask
from gm_train.evaluation.reconstruction.reconstruction_task import ReconstructionTask
from gm_train.evaluation.task import EvaluationTask

#: The tasks in the order of their tables.
TASKS: tuple[type[EvaluationTask], ...] = (MaskedGenesTask, ReconstructionTask, MissingGenesTask, ProbeTask)
