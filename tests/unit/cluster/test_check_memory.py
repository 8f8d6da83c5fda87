"""How `gm-train doctor` judges the memory of a rank."""

import pytest

from cluster.doctor.check_memory import judge_memory, smallest_device
from cluster.doctor.checkup import Answer, Level
from gm_train.config.load import load_config
from gm_train.plan.devices import ERROR, USABLE, Device
from gm_train.plan.make_plan import Plan, make_plan

WORDS = [
    "data.store=none.zarr", "data.lanes=8", "data.row_length=256", "model.d_model=64", "model.n_layers=2",
    "objective.language=masked",
]  # fmt: skip


def plan_for(memory: float) -> Plan:
    return make_plan(load_config(*WORDS), 1, 1, Device("a small device", {}, 0.0, memory, "a test", on_gpu=False))


def test_the_smallest_device_counts() -> None:
    answers = [Answer(rank, "node", memory) for rank, memory in ((0, 80), (1, 40), (2, 40), (3, 80))]
    assert smallest_device(answers) == 1


@pytest.mark.parametrize(
    ("share", "levels"),
    [
        (1.01, []),
        (0.99, [Level.WARN]),  # less than the plan's error
        (1.01 / (1 + ERROR), [Level.WARN]),
        (0.99 / (1 + ERROR), [Level.FAIL]),
    ],
)
def test_a_run_fails_only_beyond_the_error_of_the_plan(share: float, levels: list[Level]) -> None:
    """Share: of what the plan says that a rank needs."""
    need = plan_for(1e12).memory.total
    plan = plan_for(share * need / USABLE)
    measured, problems = judge_memory(plan)
    assert measured.startswith("a rank needs ")
    assert [level for level, _ in problems] == levels
    for _, text in problems:
        assert "a small device has" in text
        assert "set data.micro_rows=4" in text
