"""Refuse a run that does not fit into memory, and find settings with which it would."""

import copy
from collections.abc import Callable

from data_shards.errors import DataError
from gm_train.config.schema import Config
from gm_train.plan.devices import ERROR, USABLE
from gm_train.plan.make_plan import Plan
from gm_train.plan.rank_memory import rank_memory

#: How often the ranks are doubled in search of a number on which a sharded model fits.
_DOUBLINGS = 10


def refuse_too_large(plan: Plan) -> None:
    """Raise DataError if a rank's memory is too small beyond the plan's error, with the settings that would help."""
    if plan.cannot_fit:
        raise DataError(f"{shortage(plan)}: {what_would_fit(plan)}")


def tight(plan: Plan) -> str | None:
    """Warn of a memory that is too small by less than the plan's error; None if it is large enough, or not known."""
    if plan.fits or plan.cannot_fit:
        return None
    text = f"{shortage(plan)}, so that it may run out of memory: if it does, {what_would_fit(plan)}"
    if plan.is_traced:
        return text
    return f"{text}. The kernels of a GPU are not installed here: with them, a plan on this machine would be exact"


def shortage(plan: Plan) -> str:
    """Say what a rank needs and has, for a plan that does not fit."""
    assert plan.usable is not None
    assert plan.device_memory is not None
    return (
        f"a rank needs {plan.memory.total / 1e9:.3g} GB by the plan (± {ERROR:.0%}), and {plan.device} has "
        f"{plan.usable / 1e9:.3g} GB for it ({USABLE:.0%} of {plan.device_memory / 1e9:.3g} GB)"
    )


def what_would_fit(plan: Plan) -> str:
    """Name the settings that would help, each with the memory that a rank then needs.

    Args:
        plan: one that does not fit.
    """
    found = [_fewer_rows(plan), _with(plan, "trainer.activation_checkpointing=true", _checkpointed)]
    if plan.ranks.world_size > 1 and plan.strategy in ("ddp", "zero2"):
        found.append(_with(plan, "trainer.strategy=fsdp2", lambda config: None, "fsdp2"))
    if not any(found):
        # Together, if none helps alone.
        found = [_fewer_rows(plan, _checkpointed, "trainer.activation_checkpointing=true ")]
        if plan.ranks.world_size > 1:
            found.append(_fewer_rows(plan, _checkpointed, "trainer.activation_checkpointing=true ", "fsdp2"))
    if not any(found):
        found = [_more_ranks(plan)]
    named = [text for text in found if text]
    if named:
        return "set " + ", or ".join(named)
    return "no setting makes it fit: make the model smaller"


def _checkpointed(config: Config) -> None:
    config.trainer.activation_checkpointing = True


def _needs(
    plan: Plan, change: Callable[[Config], None], strategy: str, micro_rows: int, world_size: int | None = None
) -> int:
    config = copy.deepcopy(plan.config)
    change(config)
    size = world_size or plan.ranks.world_size
    return rank_memory(config, plan.facts.vocabulary_size, strategy, size, micro_rows, plan.on_gpu).total


def _with(plan: Plan, setting: str, change: Callable[[Config], None], strategy: str = "") -> str:
    need = _needs(plan, change, strategy or plan.strategy, plan.micro_rows)
    return f"{setting} ({need / 1e9:.3g} GB)" if need <= (plan.usable or 0) else ""


def _fewer_rows(
    plan: Plan, change: Callable[[Config], None] = lambda config: None, also: str = "", strategy: str = ""
) -> str:
    rows = plan.rows // plan.ranks.world_size
    strategy_here, most = strategy or plan.strategy, plan.micro_rows if also else plan.micro_rows - 1
    usable = plan.usable or 0
    if most < 1 or (one := _needs(plan, change, strategy_here, 1)) > usable:
        return ""
    # Memory grows in proportion to the rows. So few numbers need to be tried, which takes a second each.
    each = max(1, (_needs(plan, change, strategy_here, plan.micro_rows) - one) // max(1, plan.micro_rows - 1))
    fit = min(most, 1 + int((usable - one) // each))
    for number in range(fit, 0, -1):
        if rows % number == 0 and (need := _needs(plan, change, strategy_here, number)) <= usable:
            more = f"trainer.strategy={strategy} " if strategy else ""
            return f"{more}{also}data.micro_rows={number} ({need / 1e9:.3g} GB)"
    return ""


def _more_ranks(plan: Plan) -> str:
    """The smallest number of nodes, of those that are tried, over which a sharded model fits."""
    nodes, per_node = plan.ranks.n_nodes, plan.ranks.local_size
    for _ in range(_DOUBLINGS):
        nodes *= 2
        if plan.config.data.lanes % (nodes * per_node):
            return ""
        need = _needs(plan, _checkpointed, "fsdp2", 1, nodes * per_node)
        if need <= (plan.usable or 0):
            return (
                f"cluster.nodes={nodes} trainer.strategy=fsdp2 trainer.activation_checkpointing=true "
                f"data.micro_rows=1 ({need / 1e9:.3g} GB)"
            )
    return ""
