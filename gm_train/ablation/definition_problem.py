"""What in a definition cannot work."""

import re

from data_shards.simulate.atlas_options import AtlasOptions
from gm_train.ablation.definition import ATLAS, DATA, REGULATION, SOURCES, Definition

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def definition_problem(definition: Definition) -> str | None:
    """What cannot work, with a way out; None if all can.

    Args:
        definition: its types are right.
    """
    cells, split, seeds = definition.cells, definition.split, definition.seeds
    if not isinstance(definition.question, str) or not definition.question.strip():
        return "question is empty: write one sentence"
    if cells.source not in SOURCES:
        return f"cells.source={cells.source!r}: expected one of {', '.join(SOURCES)}"
    if cells.source != ATLAS and (cells.atlas or cells.parts):
        return f"cells.atlas and cells.parts need cells.source: {ATLAS}"
    if cells.source != DATA and cells.reading:
        return f"cells.reading needs cells.source: {DATA}"
    if cells.parts and not (all(share > 0 for share in cells.parts) and abs(sum(cells.parts) - 1) < 1e-6):
        return f"cells.parts={cells.parts}: shares above 0 must add up to 1"
    if split.by not in ("donor", "cell"):
        return f"split.by={split.by!r}: expected donor or cell"
    if not (split.test > 0 and split.validation >= 0 and split.test + split.validation < 1):
        return (
            f"split.validation={split.validation} and split.test={split.test}: test must be above 0, their sum below 1"
        )
    if not definition.variants:
        return "variants is empty: name at least one"
    if bad := [str(name) for name in definition.variants if not _NAME.fullmatch(str(name))]:
        return f"variants: {', '.join(bad)}: a name begins with a letter or digit and may also have . - and _"
    for variant, base in definition.compare.items():
        if unknown := [str(one) for one in (variant, base) if one not in list(definition.variants)]:
            return f"compare: {', '.join(unknown)}: no such variant: there are {', '.join(definition.variants)}"
        if variant == base:
            return f"compare: {variant} is compared with itself: name another variant"
    numbers = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not numbers or not seeds or len(set(seeds)) < len(seeds):
        return f"seeds={seeds}: expected different whole numbers from 0 on"
    return _scoring_problem(definition)


def _scoring_problem(definition: Definition) -> str | None:
    """What the evaluation would refuse, hours later."""
    scoring, cells = definition.scoring, definition.cells
    tasks = {key.strip() for name in scoring.tasks for key in name.split(",")} - {""}
    if not tasks:
        return "scoring.tasks is empty: name at least one"
    for name, number in (("max_cells", scoring.max_cells), ("mask_seeds", scoring.mask_seeds)):
        if number < 1:
            return f"scoring.{name}={number}: must be at least 1"
    for task in ("probes", "robustness", "integration"):
        if task in tasks and not scoring.label:
            return f"scoring.tasks: {task} needs scoring.label: name the column of obs with cell types"
    if "integration" in tasks and not scoring.batch:
        return "scoring.tasks: integration needs scoring.batch: name the column of obs with batches"
    if scoring.batch and not scoring.label:
        return "scoring.batch needs scoring.label: name the column of obs with cell types"
    if "regulation" in tasks and not scoring.regulation:
        return f"scoring.tasks: regulation needs scoring.regulation: name a table, or {REGULATION} for the atlas's own"
    if scoring.regulation and "regulation" not in tasks:
        return "scoring.regulation: only the task regulation takes a table: add it to scoring.tasks"
    if scoring.regulation == REGULATION and not (cells.source == ATLAS and AtlasOptions(**cells.atlas).regulators):
        return f"scoring.regulation={REGULATION}: needs a simulated atlas with cells.atlas.regulators above 0"
    return None
