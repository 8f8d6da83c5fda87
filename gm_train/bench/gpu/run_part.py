"""The process of one part: `python -m gm_train.bench.gpu.run_part NAME OUT DEVICE`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from data_shards.errors import DataError
from data_shards.files.atomic import replace_file
from gm_train.bench.gpu import (
    command_runs,
    device_facts,
    gpu_cells,
    kernel_parity,
    resume_check,
    same_losses,
    timed_steps,
)
from gm_train.bench.gpu.scene import Row, Scene

#: What each part runs. It calls `scene.keep` with its results whenever more of them are known.
MEASURES: dict[str, Callable[[Scene], None]] = {
    "machine": device_facts.measure_machine,
    "cells": gpu_cells.make_cells,
    "parity": kernel_parity.measure_parity,
    "losses": same_losses.compare_losses,
    "resume": resume_check.check_resume,
    "race": timed_steps.race_lengths,
    "ladder": timed_steps.climb_ladder,
    "profile": timed_steps.profile_parts,
    "roofline": timed_steps.compare_with_roofline,
    "commands": command_runs.run_commands,
}


def run_part(name: str, out: Path, device: str) -> None:
    """Run one part in this process.

    Args:
        name: of the part.
        out: folder of the results.
        device: cuda or cpu.
    """
    path = out / "parts" / f"{name}.json"

    def keep(results: Row) -> None:
        replace_file(path, json.dumps(results, indent=1) + "\n")

    MEASURES[name](Scene(out, device, keep))


if __name__ == "__main__":
    try:
        run_part(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    except DataError as error:
        sys.exit(f"error: {error}")
