"""Promise 8: a loss or gradient that is not finite never reaches the weights."""

from pathlib import Path

import pytest
import torch

import gm_train.train.step_module as module
from data_shards.errors import DataError
from gm_train.checkpoint.find import list_checkpoints, load_model, open_checkpoint
from gm_train.config.load import load_config
from gm_train.run.records import METRICS, SKIPPED, read_rows
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import history


def poison(monkeypatch: pytest.MonkeyPatch, bad: set[int], value: float = float("nan")) -> None:
    """Make the loss of some training micro-batches, counted from 0, not finite."""
    real = module.loss_sums
    calls = -1

    def poisoned(model, batch, objective):  # type: ignore[no-untyped-def]
        nonlocal calls
        lang, pathway = real(model, batch, objective)
        if torch.is_grad_enabled():
            calls += 1
            if calls in bad:
                lang = lang * value
        return lang, pathway

    monkeypatch.setattr(module, "loss_sums", poisoned)


def train(atlas: Atlas, run: Path, *words: str) -> None:
    fit(load_config(*tiny_words(atlas.store, run), "data.micro_rows=4", *words))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_promise_08_a_bad_step_is_skipped_and_recorded(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    poison(monkeypatch, {3}, value)
    train(atlas, tmp_path / "run", "trainer.max_steps=4", "checkpoint.every_steps=3", "checkpoint.keep_last=9")
    before, after = (load_model(c)[0].state_dict() for c in list_checkpoints(tmp_path / "run" / "checkpoints"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    skipped = read_rows(tmp_path / "run" / SKIPPED)
    assert [(row["event"], row["step"]) for row in skipped] == [("skipped", 4)]
    rows = [row for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["loss"] is None
    assert rows[3]["position"] > rows[2]["position"]


def test_promise_08_training_continues_after_a_bad_step(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2, 6})
    train(atlas, tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row]
    assert [row["step"] for row in rows if row["loss"] is None] == [3, 7]
    model = load_model(open_checkpoint(tmp_path / "run"))[0]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_promise_08_past_the_budget_the_run_rolls_back(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {5, 6, 7})
    train(atlas, tmp_path / "run", "trainer.max_bad_steps=2", "checkpoint.every_steps=4", "checkpoint.keep_last=9")
    events = [(row["event"], row["step"], row.get("to_step")) for row in read_rows(tmp_path / "run" / SKIPPED)]
    assert events == [("skipped", 6, None), ("skipped", 7, None), ("skipped", 8, None), ("rollback", 9, 4)]
    # Not validated since the rollback, so it cannot count as the best checkpoint.
    assert next(c for c in list_checkpoints(tmp_path / "run" / "checkpoints") if c.step == 9).val_loss is None
    folder = tmp_path / "run" / "checkpoints"
    back, kept = (
        load_model(open_checkpoint(folder / name))[0].state_dict() for name in ("step-00000004", "step-00000009")
    )
    assert all(torch.equal(back[name], kept[name]) for name in back)
    rows = [row for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert len({row["sample_hash"] for row in rows}) == 12


def test_promise_08_without_a_checkpoint_to_roll_back_to_the_run_stops(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(100)))
    with pytest.raises(DataError, match="no checkpoint to go back to"):
        train(atlas, tmp_path / "run", "trainer.max_bad_steps=1")
    # The second bad step is one too many. It is known at the end of the third.
    assert [row["step"] for row in read_rows(tmp_path / "run" / SKIPPED)] == [1, 2, 3]
    assert [row["step"] for row in read_rows(tmp_path / "run" / METRICS)] == [1, 2, 3]


def test_promise_08_stopping_at_a_bad_step_changes_nothing(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rollback comes at the same step, whether or not the run waited for the result of the bad step before."""
    words = ["trainer.max_bad_steps=2", "checkpoint.every_steps=4", "trainer.validate_every_steps=0"]
    for name, ends in (("run", [8, 12]), ("whole", [12])):
        with monkeypatch.context() as patch:
            poison(patch, {5, 6, 7})
            for end in ends:
                train(atlas, tmp_path / name, *words, f"trainer.max_steps={end}")
    assert history(tmp_path / "run") == history(tmp_path / "whole")
    events = [
        [(row["event"], row["step"]) for row in read_rows(tmp_path / name / SKIPPED)] for name in ("run", "whole")
    ]
    assert events[0] == events[1] == [("skipped", 6), ("skipped", 7), ("skipped", 8), ("rollback", 9)]


def test_promise_08_a_crash_in_the_next_step_keeps_the_bad_one_on_record(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result of a step is fetched in the next one, which does not end here."""
    poison(monkeypatch, {2})
    poisoned, calls = module.loss_sums, 0

    def crashing(*arguments):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("the device is lost")
        return poisoned(*arguments)

    monkeypatch.setattr(module, "loss_sums", crashing)
    with pytest.raises(RuntimeError, match="the device is lost"):
        train(atlas, tmp_path / "run", "trainer.validate_every_steps=0")
    assert [row["step"] for row in read_rows(tmp_path / "run" / METRICS)] == [1, 2]
    assert [(row["event"], row["step"]) for row in read_rows(tmp_path / "run" / SKIPPED)] == [("skipped", 3)]
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []
    monkeypatch.setattr(module, "loss_sums", poisoned)
    train(atlas, tmp_path / "run")
    assert [row["step"] for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row] == list(range(1, 13))


def test_promise_08_a_rollback_goes_before_the_first_bad_step(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad and good steps alternate, with checkpoints between them; the rollback does not go to one of these."""
    poison(monkeypatch, {3, 5, 7, 9})
    words = ["trainer.max_bad_steps=3", "checkpoint.every_steps=1", "checkpoint.keep_last=1"]
    train(atlas, tmp_path / "run", *words, "trainer.validate_every_steps=0")
    (rollback,) = [row for row in read_rows(tmp_path / "run" / SKIPPED) if row["event"] == "rollback"]
    assert (rollback["step"], rollback["to_step"]) == (11, 3)


def test_promise_08_a_resume_remembers_bad_steps_and_rollbacks(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped between bad steps continues their count: it rolls back, and stops at the next bad steps."""
    poison(monkeypatch, {4, 6, 8, 9, 10})
    words = ["trainer.max_bad_steps=1", "trainer.max_rollbacks=1", "checkpoint.every_steps=2"]
    train(atlas, tmp_path / "run", *words, "trainer.max_steps=6")
    # Micro-batches are counted on: number 6 is step 7, the first of the second start.
    train(atlas, tmp_path / "run", *words, "trainer.max_steps=8")
    events = [(row["event"], row["step"]) for row in read_rows(tmp_path / "run" / SKIPPED)]
    assert events == [("skipped", 5), ("skipped", 7), ("rollback", 8)]
    with pytest.raises(DataError, match="after 1 rollbacks"):
        train(atlas, tmp_path / "run", *words)


def test_promise_08_stopping_before_the_first_good_step_changes_nothing(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is saved before the first good step: saving would make the optimizer take a first step."""
    with monkeypatch.context() as patch:
        poison(patch, {0})
        train(atlas, tmp_path / "run", "trainer.max_steps=1")
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []
    # Without a checkpoint the next start begins at step 0, with the numbers of a run that was never stopped.
    train(atlas, tmp_path / "run")
    train(atlas, tmp_path / "whole")
    again, whole = (read_rows(tmp_path / name / METRICS) for name in ("run", "whole"))
    assert [row.get("loss") for row in again] == [row.get("loss") for row in whole]


def test_promise_08_weights_that_are_not_finite_are_not_saved(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.StepModule._update

    def spoil(self):  # type: ignore[no-untyped-def]
        real(self)
        if self.step == 6:
            with torch.no_grad():
                self.model.norm.weight[0] = float("inf")

    monkeypatch.setattr(module.StepModule, "_update", spoil)
    with pytest.raises(DataError, match="not finite"):
        train(atlas, tmp_path / "run", "trainer.max_steps=6", "trainer.validate_every_steps=0")
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].step == 4
