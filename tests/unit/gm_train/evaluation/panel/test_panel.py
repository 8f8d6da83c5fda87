"""The panel of a training: its cells are those of the store, its scores those of an evaluation, its controls known."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import DataError
from data_shards.prepare.splits import SplitOptions
from data_shards.store import writer
from data_shards.store.manifest import Manifest
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.config.schema import Config
from gm_train.embedding.embed_cells import embed_cells
from gm_train.evaluation.cells import read_cells
from gm_train.evaluation.figures import MODEL, ORDER, PCA, row_of
from gm_train.evaluation.masked.masked_task import MaskedGenesTask
from gm_train.evaluation.missing.missing_task import MissingGenesTask
from gm_train.evaluation.panel.panel import PANEL_SCORES, PCA_OF_RANKS, Panel, best_controls
from gm_train.evaluation.panel.panel_cells import PanelCells, read_panel_cells
from gm_train.evaluation.panel.panel_controls import PANEL, PanelControls, read_panel
from gm_train.evaluation.probes.probes import ProbeSplit, probe
from gm_train.evaluation.task import Subject
from gm_train.model.genemamba import GeneMamba
from tests.conftest import Atlas, write_cells
from tests.support.counts_to_stores import build
from tests.support.evaluation_cases import ragged, store_with_test_cells
from tests.support.small_models import small_config


def cells_of(atlas: Atlas, max_cells: int = 1000, label: str | None = "cell_type") -> PanelCells:
    return read_panel_cells(atlas.store, Manifest.load(atlas.store), max_cells, label)


def size_of(atlas: Atlas) -> int:
    return Tokenizer.load(atlas.store).vocabulary.size


def test_the_cells_are_those_of_an_evaluation_with_the_tokens_of_the_store(atlas: Atlas) -> None:
    ours = cells_of(atlas, 60)
    theirs = read_cells(atlas.store, atlas.files, Tokenizer.load(atlas.store), "cell_type", max_cells=60)
    for name in ("held_out", "data_set", "row"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.labels is not None
    assert theirs.labels is not None
    assert ours.labels.tolist() == theirs.labels.tolist()
    assert ours.tokens.indptr.tolist() == theirs.plain.indptr.tolist()
    assert ours.tokens.tokens.tolist() == theirs.plain.tokens.tolist()
    assert (len(ours.row), int(ours.held_out.sum())) == (60, 15)


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return store_with_test_cells(tmp_path_factory.mktemp("tested"))


@settings(max_examples=25, deadline=None)
@given(of_panel=st.integers(4, 250), of_evaluation=st.integers(4, 250))
def test_a_panel_has_none_of_the_test_cells_that_an_evaluation_scores(
    tested: Atlas, of_panel: int, of_evaluation: int
) -> None:
    """What chooses a checkpoint, and what shows how good it is, are different cells, however many are read."""
    panel = cells_of(tested, of_panel)
    scored = read_cells(tested.store, tested.files, Tokenizer.load(tested.store), max_cells=of_evaluation)
    assert scored.split == "test"
    shown = set(zip(scored.data_set[scored.held_out], scored.row[scored.held_out], strict=True))
    assert shown
    assert panel.held_out.any()
    assert not shown & set(zip(panel.data_set, panel.row, strict=True))


def test_a_data_set_that_is_not_trained_on_is_left_out(atlas: Atlas) -> None:
    cells = read_panel_cells(atlas.store, Manifest.load(atlas.store), 1000, None, {"first": 0})
    assert set(cells.data_set) == {1}


def test_cells_of_a_damaged_chunk_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = {name: (*entry[:-2], 256, 1024) for name, entry in writer.LAYOUT.items()}
    monkeypatch.setattr(writer, "LAYOUT", layout)
    file, store = write_cells(tmp_path / "cells.h5ad", 400, 60, seed=5), tmp_path / "s.zarr"
    build(tmp_path, [file], top_k=48, splits=SplitOptions(by="cell", validation=0.3))
    whole = read_panel_cells(store, Manifest.load(store), 1000, None)
    shard = store / "cells" / "tokens" / "c" / "1"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(content)
    damaged = read_panel_cells(store, Manifest.load(store), 1000, None)
    assert 0 < len(damaged.row) < len(whole.row)
    kept = np.isin(whole.row, damaged.row)
    assert len(whole.row) - len(damaged.row) < 30
    assert damaged.tokens.tokens.tolist() == whole.tokens.take(np.flatnonzero(kept)).tokens.tolist()


def test_expression_of_ranks_is_zipfs_law() -> None:
    tokens = ragged([[4, 2, 3], [], [5]])
    cells = PanelCells(tokens, np.zeros(3, np.bool_), np.zeros(3, np.int64), np.arange(3), None)
    shares = np.expm1(cells.expression(4).toarray())
    total = 1 + 1 / 2 + 1 / 3
    expected = [[10_000 / 2 / total, 10_000 / 3 / total, 10_000 / total, 0], [0, 0, 0, 0], [0, 0, 0, 10_000]]
    assert np.allclose(shares, expected, rtol=1e-5)


def test_scores_are_those_of_the_tasks_of_an_evaluation(atlas: Atlas) -> None:
    """The same cells, and the first mask seed: masked genes to the bit; missing genes too, beside other controls."""
    config, size = Config(model=small_config()), size_of(atlas)
    model = GeneMamba(config.model, size).eval()
    cells = read_cells(atlas.store, atlas.files, Tokenizer.load(atlas.store), "cell_type")
    subject = Subject(model, config, cells, "plain", mask_seeds=1)
    panel = Panel(cells_of(atlas), size)
    scores, controls = panel.score(model), panel.score_controls()
    assert set(scores) == set(controls) == set(panel.scores) == set(PANEL_SCORES)
    masked = MaskedGenesTask(subject).rows("plain", lambda: None)
    assert scores["masked"] == row_of(masked, "plain", MODEL)["cross_entropy"]["mean"]
    for name, value in controls["masked"].items():
        assert value == row_of(masked, "plain", name)["cross_entropy"]["mean"], name
    missing = MissingGenesTask(subject).rows("plain", lambda: None)
    assert scores["missing"] == row_of(missing, "plain", MODEL)["cross_entropy"]["mean"]
    assert controls["missing"]["frequency"] == row_of(missing, "plain", "frequency")["cross_entropy"]["mean"]
    assert cells.labels is not None
    split, embedded = ProbeSplit.of(cells.labels, cells.held_out), embed_cells(model, cells.plain)
    accuracies = [probe(embedded, split, seed)["knn_accuracy"] for seed in range(3)]
    assert scores["knn"] == pytest.approx(np.mean(accuracies))
    # Two cell types of which all genes differ: PCA of the ranks tells them.
    assert controls["knn"][PCA_OF_RANKS] > 90


def test_the_best_control_and_the_gain_beyond_it() -> None:
    controls = {"masked": {ORDER: 3.0, "frequency": 5.0}, "knn": {PCA_OF_RANKS: 80.0, PCA: 82.0}}
    assert best_controls(controls) == {"masked": (ORDER, 3.0), "knn": (PCA, 82.0)}
    assert PANEL_SCORES["masked"].beyond(2.5, 3.0) == 0.5
    assert PANEL_SCORES["knn"].beyond(81.0, 82.0) == -1.0


@pytest.mark.parametrize("label", [None, "one"])
def test_without_usable_labels_there_is_no_score_of_cell_types(atlas: Atlas, label: str | None) -> None:
    cells = cells_of(atlas, label=None)
    if label is not None:
        cells = replace(cells, labels=np.full(len(cells.row), label, dtype=object))
    panel = Panel(cells, size_of(atlas))
    assert panel.scores == ("masked", "missing")
    assert set(panel.score_controls()) == {"masked", "missing"}


def test_a_panel_needs_validation_cells_and_a_known_label(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'nothing' in obs: evaluation\.label can be one of"):
        cells_of(atlas, label="nothing")
    store = tmp_path / "s.zarr"
    build(tmp_path, [write_cells(tmp_path / "cells.h5ad", 30, 40, seed=6)], splits=SplitOptions(by="none"))
    with pytest.raises(DataError, match="30 training and 0 validation cells: an evaluation needs both"):
        read_panel_cells(store, Manifest.load(store), 1000, None)


def test_controls_are_computed_once_and_kept(atlas: Atlas, tmp_path: Path) -> None:
    cells, size = cells_of(atlas), size_of(atlas)
    first = PanelControls(tmp_path, cells, size, 0, {"label": "cell_type"})
    first.start()
    assert read_panel(tmp_path)["controls"] is None
    assert first.scores() == Panel(cells, size).score_controls()
    kept = (tmp_path / PANEL).read_text()
    again = PanelControls(tmp_path, cells, size, 8, {"label": "cell_type"})
    again.start()
    assert (again.since_step, again.scores()) == (0, first.scores())
    assert (tmp_path / PANEL).read_text() == kept
    # Other cells are another panel.
    other = PanelControls(tmp_path, cells_of(atlas, 60), size, 8, {})
    other.start()
    assert (other.since_step, read_panel(tmp_path)["controls"]) == (8, None)
    other.close()


def test_a_killed_process_leaves_the_panel_without_controls(
    atlas: Atlas, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    controls = PanelControls(tmp_path, cells_of(atlas), size_of(atlas), 0, {})
    controls.start()
    assert controls._process is not None
    assert controls._process.pid is not None
    os.kill(controls._process.pid, signal.SIGKILL)
    assert controls.scores() == {}
    assert "(its process has ended early): the panel is scored without them" in caplog.text
    assert json.loads((tmp_path / PANEL).read_text())["controls"] is None
