"""Operations of a step: those of the plan's formula, for every objective, and none where they are not known."""

from dataclasses import replace

import pytest
import torch

from gm_train.config.load import load_config
from gm_train.objective.batches import StepInfo
from gm_train.plan.flops import Work, training_flops
from gm_train.train.step_flops import StepFlops

CPU = torch.device("cpu")
INFO = StepInfo(n_targets=40, n_pairs=4, n_cells=10, n_tokens=400, n_slots=500, sample_hash=1, lanes={})
WORDS = [
    "data.store=nowhere", "run.dir=nowhere", "model.d_model=64", "model.n_layers=2", "objective.language=masked"
]  # fmt: skip


def of(*words: str, info: StepInfo = INFO) -> float | None:
    return StepFlops.of_run(load_config(*WORDS, *words), 1000, CPU).of(info)


@pytest.mark.parametrize("words", [["model.arch=bimamba"], ["model.arch=mamba"], ["model.arch=transformer"]])
def test_they_are_those_of_the_one_formula(words: list[str]) -> None:
    model = load_config(*WORDS, *words).model
    expected = 400 * training_flops(model, 1000, Work(context=40.0, targets=0.1))
    assert of(*words) == pytest.approx(expected)
    assert of(*words, info=replace(INFO, n_slots=400)) == of(*words)  # pads are not counted


def test_parts_of_a_cell_attend_to_themselves_alone() -> None:
    """For missing genes, 10 cells make 20 parts, and each part predicts once."""
    words, info = ["model.arch=transformer", "objective.language=missing"], replace(INFO, n_targets=20)
    expected = 400 * training_flops(load_config(*WORDS, *words).model, 1000, Work(context=20.0, targets=0.05))
    assert of(*words, info=info) == pytest.approx(expected)


def test_a_label_has_no_output_over_genes() -> None:
    words = ["task.name=classify", "task.label=type"]
    assert of(*words) == pytest.approx(400 * training_flops(load_config(*WORDS).model, 1000, Work(40.0, 0.0)))


def test_where_the_formula_does_not_hold_there_is_no_number() -> None:
    assert of("task.name=classify", "task.label=type", "task.frozen=true") is None
    config = load_config(*WORDS)
    config.model.mixer = "another"
    assert StepFlops.of_run(config, 1000, CPU).of(INFO) is None
    assert of(info=replace(INFO, n_tokens=0)) is None
