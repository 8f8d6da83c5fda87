"""The checks of an evaluation: signs of failure that the scores alone do not explain.

To add one, write a function like those listed here, and list it.
"""

from collections.abc import Callable

from gm_train.evaluation.checks.common_types import check_common_types
from gm_train.evaluation.checks.medians import check_medians
from gm_train.evaluation.checks.pathways import check_pathways
from gm_train.evaluation.figures import Row
from gm_train.evaluation.task import Subject

#: Each takes the subject and its scores, and returns a `finding`.
CHECKS: tuple[Callable[[Subject, Row], Row], ...] = (check_medians, check_pathways, check_common_types)


def run_checks(subject: Subject, results: Row) -> list[Row]:
    """The finding of each check.

    Args:
        subject: the model and its cells.
        results: of its tasks.
    """
    return [check(subject, results) for check in CHECKS]
