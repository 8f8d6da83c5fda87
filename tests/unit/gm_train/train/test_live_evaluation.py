"""The panel that is scored while a run trains: it changes nothing, resumes exactly, and keeps the best checkpoint."""

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.prepare.splits import SplitOptions
from data_shards.store.manifest import Manifest
from gm_train.checkpoint.find import best_of, list_checkpoints, load_model
from gm_train.config.check import ConfigError
from gm_train.config.load import load_config
from gm_train.evaluation.panel.panel import PANEL_SCORES, Panel, best_controls
from gm_train.evaluation.panel.panel_cells import read_panel_cells
from gm_train.evaluation.panel.panel_controls import PANEL, read_panel
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from gm_train.train.live_evaluation import BestScores, deciding_score
from gm_train.train.run_report import write_report
from tests.conftest import Atlas, tiny_words, write_cells
from tests.support.counts_to_stores import build
from tests.support.panels import (
    ask_to_leave_in_the_third_panel,
    die_in_the_third_panel,
    is_of_panel,
    panel_words,
    rows_of,
    without_panel,
)
from tests.support.training_runs import start, train


@pytest.fixture(scope="module")
def scored(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that has scored its panel after every third step; it keeps all checkpoints."""
    run = tmp_path_factory.mktemp("scored") / "run"
    fit(load_config(*panel_words(atlas, run)))
    return run


def test_a_row_has_each_score_and_the_gain_beyond_its_best_control(scored: Path) -> None:
    rows, controls = [row for row in rows_of(scored) if is_of_panel(row)], read_panel(scored)["controls"]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    best = best_controls(controls)
    assert set(best) == set(PANEL_SCORES)
    for row in rows:
        assert set(row) == {"step", "position", *(f"panel_{key}{end}" for key in best for end in ("", "_beyond"))}
        for key, (_, value) in best.items():
            gain = PANEL_SCORES[key].beyond(row[f"panel_{key}"], value)
            assert row[f"panel_{key}_beyond"] == pytest.approx(gain, abs=1e-9)
    assert all(row["panel_s"] > 0 for row in read_rows(scored / METRICS) if is_of_panel(row))


def test_the_training_is_the_same_to_the_bit_without_it(atlas: Atlas, scored: Path, tmp_path: Path) -> None:
    fit(load_config(*tiny_words(atlas.store, tmp_path / "run")))
    assert rows_of(tmp_path / "run") == without_panel(rows_of(scored))
    ours, theirs = (load_model(run)[0].state_dict() for run in (scored, tmp_path / "run"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_the_scores_are_those_of_the_checkpoint_of_the_step(atlas: Atlas, scored: Path) -> None:
    """At step 12, which is also saved."""
    model, tokenizer, _ = load_model(scored / "checkpoints" / "step-00000012")
    cells = read_panel_cells(atlas.store, Manifest.load(atlas.store), 1000, "cell_type")
    scores = Panel(cells, tokenizer.vocabulary.size).score(model)
    row = rows_of(scored)[-1]
    assert {f"panel_{key}": value for key, value in scores.items()}.items() <= row.items()


@pytest.mark.parametrize(
    "prepare", [die_in_the_third_panel, pytest.param(ask_to_leave_in_the_third_panel, marks=pytest.mark.slow)]
)
def test_a_run_that_is_interrupted_in_a_panel_resumes_exactly(
    atlas: Atlas, scored: Path, tmp_path: Path, prepare: object
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(panel_words(atlas, run), log, prepare=prepare)  # type: ignore[arg-type]
    process.join()
    assert process.exitcode != 0
    stopped_at = rows_of(run)[-1]["step"]
    assert stopped_at < 12
    assert train(panel_words(atlas, run), log) == 0, log.read_text()
    assert "resuming" in log.read_text()
    assert rows_of(run) == rows_of(scored)
    ours, theirs = (json.loads((folder / PANEL).read_text()) for folder in (run, scored))
    assert ours == theirs


def test_the_best_checkpoint_is_saved_kept_and_named(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a score that is made worse by one nat at each panel, so that the first panel's is the best."""
    run, real, calls = tmp_path / "run", Panel._score_missing, itertools.count()
    monkeypatch.setattr(Panel, "_score_missing", lambda panel, guess: real(panel, guess) + next(calls))
    fit(load_config(*panel_words(atlas, run, "checkpoint.keep_last=1", "evaluation.best_by=missing")))
    rows = [row for row in rows_of(run) if is_of_panel(row)]
    best = min(rows, key=lambda row: (row["panel_missing"], row["step"]))["step"]
    assert best == 3
    kept = [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")]
    by_loss = {row["step"]: row["val_loss"] for row in rows_of(run) if "val_loss" in row}
    assert {best, 12} <= set(kept) <= {best, 12, *by_loss}
    page = write_report(run).read_text()
    assert f"Best checkpoint by missing genes: step-{best:08d}" in page
    # No checkpoint was due at that step.
    assert best % 4
    # It stays when the run goes on, with a panel or without one.
    for steps, more in ((16, []), (20, ["evaluation.every_steps=0"])):
        words = ["checkpoint.keep_last=1", "evaluation.best_by=missing", f"trainer.max_steps={steps}"]
        fit(load_config(*panel_words(atlas, run, *words, *more)))
        assert {best, steps} <= {checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")}
    shutil.rmtree(run / "checkpoints" / f"step-{best:08d}")
    assert f"step {best:,}" in write_report(run).read_text()
    assert "which has no checkpoint any more" in write_report(run).read_text()


def test_the_report_shows_the_curves_and_the_share_of_time(scored: Path) -> None:
    page = write_report(scored).read_text()
    assert "What is learned" in page
    assert page.count('alt="panel ') == 3
    assert "The panel was scored 4 times; training waited" in page
    for key in PANEL_SCORES:
        assert (scored / f"panel-{key}.png").stat().st_size > 0


def test_a_run_without_labels_has_two_scores(atlas: Atlas, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(load_config(*panel_words(atlas, run, "evaluation.label=", "trainer.max_steps=3")))
    (row,) = (row for row in rows_of(run) if is_of_panel(row))
    assert {key for key in row if not key.endswith("_beyond")} == {"step", "position", "panel_masked", "panel_missing"}
    assert "There is no score of cell types" in write_report(run).read_text()


def test_bad_input_is_refused_before_the_run_begins(atlas: Atlas, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"no column 'nothing' in obs: evaluation\.label can be one of"):
        fit(load_config(*panel_words(atlas, run, "evaluation.label=nothing")))
    with pytest.raises(DataError, match=r"cannot give the score 'knn' .* Choose one of masked, missing"):
        fit(load_config(*panel_words(atlas, run, "evaluation.cells=4", "evaluation.best_by=knn")))
    assert not (run / PANEL).exists()
    assert not (run / "config.yaml").exists()
    with pytest.raises(ConfigError, match=r"evaluation\.best_by=knn: needs cell types"):
        load_config(*panel_words(atlas, run, "evaluation.label=", "evaluation.best_by=knn"))
    with pytest.raises(ConfigError, match="its scores are of pretraining"):
        load_config(*panel_words(atlas, run, "task.name=classify", "task.label=cell_type"))


def test_too_few_validation_cells(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, store = write_cells(tmp_path / "cells.h5ad", 90, 60, seed=7), tmp_path / "s.zarr"
    build(tmp_path, [file], top_k=48, splits=SplitOptions(by="none"))
    words = [*tiny_words(store, tmp_path / "none"), "evaluation.every_steps=3", "trainer.max_steps=3"]
    with pytest.raises(DataError, match="90 training and 0 validation cells: an evaluation needs both"):
        fit(load_config(*words))
    build(tmp_path, [file], "few.zarr", top_k=48, splits=SplitOptions(by="cell", validation=0.1))
    fit(load_config(*words, f"data.store={tmp_path / 'few.zarr'}", f"run.dir={tmp_path / 'few'}"))
    assert "validation cells: its scores say little" in caplog.text
    assert math.isfinite(rows_of(tmp_path / "few")[-1]["panel_masked"])


def test_the_score_that_decides() -> None:
    config = load_config("data.store=s")
    assert deciding_score(config) == "missing"
    config.objective.language = "masked"
    assert deciding_score(config) == "masked"
    config.evaluation.best_by = "knn"
    assert deciding_score(config) == "knn"
    best = BestScores("knn", [{"step": 3, "panel_knn": 60.0}, {"step": 4, "loss": 1.0}])
    assert [best.add(step, {"panel_knn": value}) for step, value in ((6, 60.0), (9, 70.0), (12, math.nan))] == [
        False, True, False,
    ]  # fmt: skip
    assert best.by_step == {3: -60.0, 6: -60.0, 9: -70.0}
    assert best_of([], best.by_step) is None
