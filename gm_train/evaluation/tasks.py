"""The tasks of an evaluation. To add one, write a class like those below and list it here."""

from gm_train.evaluation.masked_task import MaskedGenesTask
from gm_train.evaluation.probe_task import ProbeTask
from gm_train.evaluation.task import EvaluationTask

#: In the order of their tables; each one's `key` names its rows in `eval.json`.
TASKS: tuple[type[EvaluationTask], ...] = (MaskedGenesTask, ProbeTask)
