"""Compare the batch scripts of `gm-train launch` with stored ones.

`python -m tests.golden.test_launch_scripts` writes the stored scripts again. A change then shows up in their diff.
"""

from pathlib import Path

import pytest

from cluster.batch_script import render_batch_script, resolved
from cluster.launch_problems import launch_problems
from gm_train.config.load import load_config

FOLDER = Path(__file__).parent / "launch"
CONFIGS = Path(__file__).parents[2] / "configs"
LARGE = ["genemamba-66m.yaml", "run.dir=/scratch/runs/genemamba-66m", "data.store=/scratch/data/cells.zarr"]
CASES = {
    "h100-infiniband": [*LARGE, "cluster/h100-infiniband.yaml"],
    "a100-apptainer": [*LARGE, "cluster/a100-apptainer.yaml", "cluster.account=mylab", "cluster.sbatch=[--exclusive]"],
    "preemptible": [
        *LARGE, "cluster/h100-infiniband.yaml", "cluster/preemptible.yaml",
        "cluster.exclude=node[07-08]", "cluster.constraint=ib&nvme",
    ],
    "h100-pyxis": [*LARGE, "cluster/h100-pyxis.yaml", "cluster.account=mylab"],
    "local-cpu": [
        "demo.yaml", "cluster/local-cpu.yaml", "run.dir=/shared/demo", "cluster.requeue=false",
    ],
}  # fmt: skip


def script(case: str) -> str:
    words = [str(CONFIGS / word) if word.endswith(".yaml") else word for word in CASES[case]]
    config = load_config(*words)
    assert launch_problems(config) == []
    return render_batch_script(resolved(config), 1, python="/opt/gm-train/.venv/bin/python")


@pytest.mark.parametrize("case", CASES)
def test_script_is_as_it_was(case: str) -> None:
    assert script(case) == (FOLDER / f"{case}.sh").read_text()


if __name__ == "__main__":
    for name in CASES:
        (FOLDER / f"{name}.sh").write_text(script(name))
