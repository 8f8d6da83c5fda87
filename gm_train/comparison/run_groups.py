"""Groups of runs that differ in their seed alone, and the settings in which groups differ."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gm_train.comparison.compared_run import ComparedRun

SEED = "run.seed"


@dataclass(frozen=True)
class RunGroup:
    """Runs with the same settings and number of steps, and different seeds.

    Attributes:
        label: the group's name in tables, such as `[1]`.
        runs: in the order in which they were given.
    """

    label: str
    runs: tuple[ComparedRun, ...]


def group_runs(runs: Sequence[ComparedRun]) -> list[RunGroup]:
    """Group runs; a run of another store or step, or that repeats a seed of its group, is a group of its own."""
    found: list[list[ComparedRun]] = []
    for run in runs:
        for group in found:
            if _repeats(run, group):
                group.append(run)
                break
        else:
            found.append([run])
    return [RunGroup(f"[{number}]", tuple(group)) for number, group in enumerate(found, 1)]


def _repeats(run: ComparedRun, group: Sequence[ComparedRun]) -> bool:
    first = group[0]
    if len({other.store for other in (run, *group)} - {None}) > 1:
        return False  # the store was made anew in the same place
    return (
        {**run.settings, SEED: None} == {**first.settings, SEED: None}
        and run.compute()["steps"] == first.compute()["steps"]
        and run.config.run.seed not in {other.config.run.seed for other in group}
    )


def different_settings(groups: Sequence[RunGroup]) -> dict[str, list[Any]]:
    """The settings in which groups differ: a value for each group. The seed is that of the runs of a group.

    Returns:
        Setting by its full name to values; the seed only where groups differ in it, as a list for several runs.
    """
    settings = [group.runs[0].settings for group in groups]
    for group, found in zip(groups, settings, strict=True):
        seeds = [run.config.run.seed for run in group.runs]
        found[SEED] = seeds[0] if len(seeds) == 1 else seeds
    different = {}
    for key in settings[0]:
        values = [found[key] for found in settings]
        if len({json.dumps(value, sort_keys=True, default=str) for value in values}) > 1:
            different[key] = values
    return different
