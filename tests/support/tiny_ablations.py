"""An ablation that trains and scores in seconds."""

from pathlib import Path
from typing import Any

import yaml

#: Two variants, three seeds, an atlas of 300 cells, 12 steps.
TINY: dict[str, Any] = {
    "question": "Does the tiny ablation run?",
    "cells": {
        "source": "atlas",
        "atlas": {
            "cells": 300, "genes": 150, "cell_types": 4, "programmes": 6, "donors": 6, "batches": 2,
            "genes_per_programme": 12, "counts_per_cell": 200,
        },
    },
    "split": {"by": "donor", "validation": 0.2, "test": 0.2},
    "store": {"top_k": 64},
    "base": [
        "objective.language=masked", "objective.pathways=$programmes", "model.d_model=32", "model.n_layers=1",
        "model.d_state=8", "model.head_dim=16", "model.chunk=16", "data.lanes=2", "data.row_length=128",
        "data.pool_blocks=4", "optim.lr=1e-3", "optim.warmup_steps=2", "trainer.max_steps=12",
        "trainer.validate_every_steps=0", "checkpoint.every_steps=4",
    ],
    "variants": {"masked": [], "missing": ["objective.language=missing"]},
    "scoring": {"tasks": ["masked"], "label": "cell_type", "mask_seeds": 1},
}  # fmt: skip


def write_definition(folder: Path, changes: dict[str, Any] | None = None, without: tuple[str, ...] = ()) -> Path:
    """Write the definition of the tiny ablation.

    Args:
        folder: for `tiny.yaml`.
        changes: values by their keys, such as `split.by`; a mapping or list is put in place of the whole.
        without: keys that are left out.
    """
    content = yaml.safe_load(yaml.safe_dump(TINY))
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    for key in without:
        del content[key]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
