"""Refuse a run that does not fit into memory, and find settings with which it would."""

import copy
from collections.abc import Callable

from data_shards.errors import DataError
from gm_train.config.schema import Config
from gm_train.plan.devices import USABLE
from gm_train.plan.make_plan import Plan
from gm_train.plan.rank_memory import rank_memory


def refuse_too_large(plan: Plan) -> None:
    """Raise DataError if a rank's memory is too small, with the settings that would help."""
    if plan.usable is None or plan.device_memory is None or plan.fits:
        return
    raise DataError(
        f"a rank needs {plan.memory.total / 1e9:.3g} GB, and {plan.device} has {plan.usable / 1e9:.3g} GB for it "
        f"({USABLE:.0%} of {plan.device_memory / 1e9:.3g} GB): {what_would_fit(plan)}"
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
    named = [text for text in found if text]
    if named:
        return "set " + ", or ".join(named)
    return "no setting alone makes it fit: make the model smaller, or take more nodes with trainer.strategy=fsdp2"


def _checkpointed(config: Config) -> None:
    config.trainer.activation_checkpointing = True


def _needs(plan: Plan, change: Callable[[Config], None], strategy: str, micro_rows: int) -> int:
    config = copy.deepcopy(plan.config)
    change(config)
    size = plan.ranks.world_size
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
