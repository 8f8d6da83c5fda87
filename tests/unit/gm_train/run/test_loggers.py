"""Loggers beside MLflow get every row, and none of them stops the training."""

import importlib.util
import logging
import time
from pathlib import Path

import pandas as pd
import pytest

from gm_train.config.check import ConfigError
from gm_train.config.load import load_config
from gm_train.run import loggers
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words


def rows_of(run: Path, key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in read_rows(run / METRICS) if key in row}


def test_csv_has_every_row(atlas: Atlas, tmp_path: Path) -> None:
    words = [*tiny_words(atlas.store, tmp_path / "run"), "tracking.loggers=[csv]"]
    fit(load_config(*words, "trainer.max_steps=8"))
    fit(load_config(*words))
    for first, steps in ((0, range(1, 9)), (8, range(9, 13))):
        table = pd.read_csv(tmp_path / "run" / "csv" / f"from-step-{first:08d}" / "metrics.csv").set_index("step")
        for key in ("loss", "grad_norm", "lr", "tokens_per_s"):
            expected = {step: value for step, value in rows_of(tmp_path / "run", key).items() if step in steps}
            assert table[key].dropna().to_dict() == pytest.approx(expected)
    assert table["val_loss"].dropna().to_dict() == pytest.approx({10: rows_of(tmp_path / "run", "val_loss")[10]})


def test_tensorboard_has_every_row(atlas: Atlas, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = [*tiny_words(atlas.store, tmp_path / "run"), "tracking.loggers=[tensorboard]"]
    fit(load_config(*words, "trainer.max_steps=8"))
    fit(load_config(*words))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for key in ("loss", "val_loss"):
        found = {event.step: event.value for event in events.Scalars(key)}
        assert found == pytest.approx(rows_of(tmp_path / "run", key), rel=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_offline(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit(load_config(*tiny_words(atlas.store, tmp_path / "run"), "tracking.loggers=[wandb]"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


class Broken:
    """A logger that takes its first rows and then fails."""

    def __init__(self) -> None:
        self.rows = 0

    def log_hyperparams(self, settings: object) -> None:
        pass

    def log_metrics(self, metrics: object, step: int) -> None:
        self.rows += 1
        if self.rows == 3:
            raise ConnectionError("the server is gone\nfor good")


class Hanging(Broken):
    """A logger that never returns."""

    def log_metrics(self, metrics: object, step: int) -> None:
        time.sleep(600)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Broken, "tracking.loggers: csv failed (ConnectionError: the server is gone) and gets no more rows"),
        (Hanging, "tracking.loggers: csv is not done after 0.1 s and is left"),
        (None, "tracking.loggers: csv failed (ModuleNotFoundError: no such package)"),
    ],
)
def test_a_logger_that_fails_is_reported_and_stops_nothing(
    atlas: Atlas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make: type,
    message: str,
) -> None:
    def made(*_: object) -> Broken:
        if make is None:
            raise ModuleNotFoundError("no such package")
        broken: Broken = make()
        return broken

    monkeypatch.setattr(loggers, "_make", made)
    real = loggers.LoggerThread.finish
    monkeypatch.setattr(
        loggers.LoggerThread, "finish", lambda self, ok, patience_s: real(self, ok, min(patience_s, 0.1))
    )
    with caplog.at_level(logging.WARNING):
        fit(load_config(*tiny_words(atlas.store, tmp_path / "run"), "tracking.loggers=[csv]"))
    assert len(rows_of(tmp_path / "run", "loss")) == 12
    assert sum(message in record.getMessage() for record in caplog.records) == 1


def test_an_unknown_logger_is_refused(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking.loggers: 'comet' is not one of mlflow, tensorboard, wandb, csv"):
        load_config(*tiny_words(atlas.store, tmp_path / "run"), "tracking.loggers=[comet]")
