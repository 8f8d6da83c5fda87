"""Check that a forward and a backward pass fit into the memory of the ranks' devices."""

from collections.abc import Sequence

from cluster.doctor.checkup import Answer, Checkup, Level, Problems, amount
from data_shards.errors import DataError
from gm_train.config.check import rank_problems
from gm_train.config.schema import Config
from gm_train.plan.advice import shortage, tight, what_would_fit
from gm_train.plan.make_plan import Plan
from gm_train.plan.this_device import plan_here
from gm_train.strategies.choose import device_memory


def check_memory(checkup: Checkup, config: Config) -> None:
    """Check the memory that the run needs on a rank, as planned, against that of the smallest device."""
    ranks = checkup.ranks
    if rank_problems(config, ranks.world_size):
        return  # the check of the ranks reports it
    answers = checkup.ask("memory", lambda: device_memory(ranks))
    if answers is None:
        return
    smallest = smallest_device(answers)

    def look() -> tuple[str, Problems] | None:
        # One rank plans, and the others wait: tracing the model takes seconds of a core.
        return memory_of(config, checkup) if ranks.global_rank == smallest else None

    judged = checkup.ask("memory", look)
    if judged is not None:
        checkup.conclude("memory", *next(one.value for one in judged if one.value is not None))


def smallest_device(answers: Sequence[Answer[int]]) -> int:
    """Return the first rank with the least memory."""
    return min(answers, key=lambda one: (one.value, one.rank)).rank


def memory_of(config: Config, checkup: Checkup) -> tuple[str, Problems]:
    """Plan the memory of this rank. Return a line for the report, and what speaks against a run."""
    try:
        plan = plan_here(config, checkup.ranks)
    except DataError as error:
        return f"not planned: {error}", []
    return judge_memory(plan)


def judge_memory(plan: Plan) -> tuple[str, Problems]:
    """Judge whether a plan fits its device.

    Args:
        plan: for a device of known memory.

    Returns:
        A line for the report, and what speaks against a run.
    """
    memory = plan.memory
    state = memory.weights + memory.gradients + memory.moments + memory.gathered
    assert plan.device_memory is not None
    measured = (
        f"a rank needs {amount(memory.total)} of {amount(plan.device_memory)} by the plan: weights and their state "
        f"{amount(state)}, a pass of {plan.micro_rows} rows {amount(memory.activations + memory.working)}"
    )
    if plan.cannot_fit:
        return measured, [(Level.FAIL, f"{shortage(plan)}: {what_would_fit(plan)}")]
    warning = tight(plan)
    return measured, [] if warning is None else [(Level.WARN, warning)]
