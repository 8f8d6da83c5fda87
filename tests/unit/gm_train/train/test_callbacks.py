"""The user's Lightning callbacks in `gm-train fit`."""

import json
from pathlib import Path

import pytest

from data_shards.errors import DataError
from gm_train.checkpoint.find import list_checkpoints
from gm_train.config.check import ConfigError
from gm_train.config.load import load_config
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words

HOME = "tests.support.callbacks"


def test_callbacks_are_called_once_a_step(atlas: Atlas, tmp_path: Path) -> None:
    """Also by a start that resumes: the steps are those of the run."""
    diary = tmp_path / "diary"
    words = [*tiny_words(atlas.store, tmp_path / "run"), f"trainer.callbacks=[{{{HOME}:Diary: {{path: {diary}}}}}]"]
    fit(load_config(*words, "trainer.max_steps=5"))
    fit(load_config(*words, "trainer.max_steps=7"))
    rows = read_rows(tmp_path / "run" / METRICS)
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    (val_loss,) = [row["val_loss"] for row in rows if "val_loss" in row]
    calls = [tuple(json.loads(line)) for line in diary.read_text().splitlines()]

    def steps(first: int, last: int) -> list[tuple]:
        calls: list[tuple] = []
        for step in range(first, last + 1):
            calls += [("before", step - 1, step - 1)]
            calls += [("validated", step, pytest.approx(val_loss))] if step == 5 else []
            calls += [("after", step, step - 1, pytest.approx(losses[step]))]
        return calls

    # A validation is part of the end of its step.
    expected = [("start", 0), *steps(1, 5), ("end", 5), ("start", 5), *steps(6, 7), ("end", 7)]
    expected = [("validated", 4, call[2]) if call[0] == "validated" else call for call in expected]
    assert calls == expected


def test_a_callback_may_stop_the_run(atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = "lightning.pytorch.callbacks:EarlyStopping: {monitor: val_loss, patience: 1, min_delta: 100}"
    words = [*tiny_words(atlas.store, tmp_path / "run"), "trainer.max_steps=100", f"trainer.callbacks=[{{{stop}}}]"]
    fit(load_config(*words, "optim.schedule_steps=100"))
    assert "stopped by a callback at step 10 of 100" in capsys.readouterr().out
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints")][-1] == 10


@pytest.mark.parametrize("hook", ["setup", "on_train_start", "on_train_batch_end", "on_validation_end", "on_train_end"])
def test_a_callback_that_fails_is_named(atlas: Atlas, tmp_path: Path, hook: str) -> None:
    words = [*tiny_words(atlas.store, tmp_path / "run"), f"trainer.callbacks=[{{{HOME}:Failing: {{hook: {hook}}}}}]"]
    with pytest.raises(DataError, match=rf"{HOME}:Failing: its {hook} raised RuntimeError: no disk for the diary"):
        fit(load_config(*words))
    # Without it, the run goes on.
    fit(load_config(*words[:-1]))
    steps = [row["step"] for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nowhere.to_be:Found", r"nowhere.to_be:Found: ModuleNotFoundError: No module named 'nowhere'"),
        (f"{HOME}:Missing", r".*Missing: AttributeError: .*no attribute 'Missing'"),
        (f"{{{HOME}:Diary: {{colour: red}}}}", r".*Diary: TypeError: .*unexpected keyword argument 'colour'"),
        ("pathlib:Path", r"pathlib:Path: is not a lightning.Callback"),
        ("JustAName", r"'JustAName': expected package.module:Class"),
        ("{a:b: 3}", r".*expected package.module:Class"),
        ("3", r"3: expected package.module:Class"),
    ],
)
def test_an_entry_that_names_no_callback_is_refused(atlas: Atlas, tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.callbacks: {message}"):
        fit(load_config(*tiny_words(atlas.store, tmp_path / "run"), f"trainer.callbacks=[{entry}]"))
    assert not (tmp_path / "run").exists()
