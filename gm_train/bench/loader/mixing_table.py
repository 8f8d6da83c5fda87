"""How close the cell types of a step are to a full shuffle, by lanes and blocks per pool."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from data_shards.inspect.mixing import label_codes, measure_mixing
from data_shards.rows.store_reader import StoreReader
from gm_train.bench.loader.loaders import default_plan
from gm_train.bench.measure.turns import Say
from gm_train.bench.tables import table
from gm_train.config.schema import DataConfig

COLUMN = "cell_type"
#: Numbers of consecutive steps whose cells are pooled.
TOGETHER = (1, 10, 100)
#: About as many cells are examined per setting, in as many passes over the store as that takes.
_CELLS = 100_000
_FEW_LANES = 8

Row = dict[str, Any]


def run_mixing(store: Path, say: Say) -> list[Row]:
    """Measure the default order of a store, then fewer lanes, then pools of a single block.

    Args:
        store: token store whose cells have a column `cell_type`.
        say: takes progress lines.

    Raises:
        DataError: a data set has no column of cell types.
    """
    reader = StoreReader(store, DataConfig().cache_mb << 20)
    labels = label_codes(reader, COLUMN)
    default = default_plan(reader.manifest)
    few = replace(default, lanes=min(_FEW_LANES, default.lanes))
    plans = [default, few, replace(default, pool_blocks=1), replace(few, pool_blocks=1)]
    cells_per_row = default.row_length * reader.manifest.n_cells / reader.manifest.n_tokens
    rows = []
    for plan in dict.fromkeys((plan.lanes, plan.pool_blocks) for plan in plans):
        lanes, blocks = plan
        say(f"mixing: {lanes} lanes, {blocks} blocks")
        chosen = replace(default, lanes=lanes, pool_blocks=blocks)
        n_steps = max(1, round(_CELLS / (lanes * cells_per_row)))
        mixings = measure_mixing(reader, chosen, 1, n_steps, labels, TOGETHER)
        rows.append(
            {
                "lanes": lanes,
                "pool_blocks": blocks,
                "steps": n_steps,
                "found": [
                    {"together": together, "cells": one.cells, "distance": one.distance, "shuffled": one.shuffled}
                    for together, one in zip(TOGETHER, mixings, strict=False)
                ],
            }
        )
    return rows


def render_mixing(rows: list[Row]) -> str:
    """Render the table of a report."""
    lines = [
        [
            f"{row['lanes']} x {row['pool_blocks']}",
            f"{one['together']}",
            f"{one['cells']:,.0f}",
            f"{one['distance']:.3f}",
            f"{one['shuffled']:.3f}",
            f"{one['distance'] / one['shuffled']:.2f}x",
        ]
        for row in rows
        for one in row["found"]
    ]
    header = [
        "lanes x blocks of a pool",
        "steps together",
        "cells",
        "distance of their cell types from the store's",
        "of a full shuffle",
        "ratio",
    ]
    return (
        f"## Mixing\n\n{table(header, lines)}\n\nMean total variation distance (0 … 1), from the start of a run, one "
        "row per lane and step. A ratio of 1x is a full shuffle."
    )
