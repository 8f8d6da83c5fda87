"""The probe task on labels as users have them: one kind, a kind with one cell, missing ones, very few cells."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from data_shards.errors import DataError
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.config.schema import Config
from gm_train.evaluation.cells import EvaluationCells, read_cells
from gm_train.evaluation.evaluate import Evaluation, evaluate
from gm_train.evaluation.masked.masked_task import MaskedGenesTask
from gm_train.evaluation.probes.probe_task import ProbeTask
from gm_train.evaluation.score_pictures import draw_scores
from gm_train.evaluation.score_table import render_text
from gm_train.evaluation.task import EvaluationTask
from gm_train.model.genemamba import GeneMamba
from tests.conftest import write_cells
from tests.support.small_models import small_config

N_CELLS = 48


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> EvaluationCells:
    folder = tmp_path_factory.mktemp("cells")
    path = write_cells(folder / "cells.h5ad", N_CELLS, 40, seed=3)
    make_medians([path], folder / "medians.zarr", say=lambda line: None)
    splits = SplitOptions(by="cell", validation=0.4)
    make_store([path], folder / "medians.zarr", folder / "store.zarr", splits=splits, say=lambda line: None)
    return read_cells(folder / "store.zarr", [path], Tokenizer.load(folder / "store.zarr"), "cell_type")


def run(cells: EvaluationCells, *tasks: type[EvaluationTask], **embeddings: np.ndarray) -> Evaluation:
    config = Config(model=small_config())
    torch.manual_seed(0)
    model = GeneMamba(config.model, cells.tokenizer.vocabulary.size).eval()
    checkpoint = {"step": 1, "path": "here", "hash": "0" * 64}
    return evaluate(model, config, cells, "plain", 1, checkpoint, embeddings, tasks or (ProbeTask,))


def labelled(cells: EvaluationCells, **names: object) -> EvaluationCells:
    """Replace labels: `train` and `held_out` are lists to repeat."""
    labels = np.full(len(cells.row), None, dtype=object)
    for which, given in ((~cells.held_out, names["train"]), (cells.held_out, names["held_out"])):
        labels[which] = np.resize(np.array(given, dtype=object), int(which.sum()))
    return replace(cells, labels=labels)


def test_one_kind_of_label_is_no_question(cells: EvaluationCells) -> None:
    one = labelled(cells, train=["T cell"], held_out=["T cell"])
    with pytest.raises(
        DataError, match=r"probes: nothing can be scored\. There are no probes of 'cell_type', because all"
    ):
        run(one)
    results = run(one, MaskedGenesTask, ProbeTask).results
    assert results["tasks"] == {"asked": ["masked", "probes"], "scored": ["masked"]}
    assert any("have the same one, 'T cell'" in note for note in results["notes"])
    assert "hidden behind the mask token" in render_text(results)


def test_labels_that_are_missing_or_unknown_are_counted(cells: EvaluationCells) -> None:
    some = labelled(cells, train=["a", "b", None], held_out=["a", "b", "new", None])
    results = run(some).results
    assert some.labels is not None
    assert results["label"]["unlabelled"] == sum(label is None for label in some.labels)
    n_new = int((some.labels == "new").sum())
    notes = " ".join(results["notes"])
    assert f"{results['label']['unlabelled']} cells have no 'cell_type' and are left out of the probes." in notes
    assert f"labels that no training cell has are left out of the probes: new ({n_new})" in notes
    with pytest.raises(DataError, match="because no training cell has a label"):
        run(labelled(cells, train=[None], held_out=["a", "b"]))


def test_a_kind_with_one_cell_and_fewer_cells_than_neighbours_are_scored(cells: EvaluationCells) -> None:
    few = labelled(cells, train=[None], held_out=["a", "b", "once"])
    assert few.labels is not None
    few.labels[np.flatnonzero(~cells.held_out)[:6]] = ["a", "a", "b", "b", "a", "once"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = run(few).results
    assert results["label"]["train"] == 6
    assert results["label"]["types"]["once"]["train"] == 1
    assert results["label"]["rare"] == ["a", "b", "once"]
    assert "1-9 (3)" in render_text(results)


def test_a_note_names_the_first_of_many_rare_kinds(cells: EvaluationCells) -> None:
    kinds = [f"type {i}" for i in range(10)]
    results = run(labelled(cells, train=kinds, held_out=kinds)).results
    (note,) = (note for note in results["notes"] if note.startswith("Rare types"))
    assert "type 0, type 1" in note
    assert "and 2 more" in note


def test_other_embeddings_are_probed_once_for_both_kinds_of_ranks_and_win_by_name(cells: EvaluationCells) -> None:
    assert cells.labels is not None
    theirs = (cells.labels[:, None] == np.unique(cells.labels.astype(str))).astype(np.float32)
    evaluation = run(cells, theirs=theirs)
    plain, dithered = (
        next(row for row in evaluation.results["probes"] if (row["ranks"], row["scored"]) == (ranks, "theirs"))
        for ranks in ("plain", "dithered")
    )
    assert {key: value for key, value in plain.items() if key != "ranks"} == {
        key: value for key, value in dithered.items() if key != "ranks"
    }
    assert plain["knn_accuracy"]["mean"] == 100.0
    assert "loses to theirs (100.0)" in render_text(evaluation.results)
    assert "theirs" in evaluation.embeddings


def test_the_pictures_and_tables_are_written(cells: EvaluationCells, tmp_path: Path) -> None:
    written = run(cells).write(tmp_path / "eval")
    names = {path.name for path in written}
    assert {"eval.json", "eval.md", "eval-scores.png"} < names
    assert all((tmp_path / "eval" / name).stat().st_size for name in names)
    assert any(name.startswith("eval-embedding") for name in names)


def test_where_drawing_fails_the_scores_are_kept_and_no_old_picture_stays(
    cells: EvaluationCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(results: object, path: Path) -> None:
        raise MemoryError

    (tmp_path / "eval-scores.png").write_bytes(b"of another checkpoint")
    monkeypatch.setattr("gm_train.evaluation.evaluate.draw_scores", fail)
    evaluation = run(cells)
    with pytest.raises(MemoryError):
        evaluation.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"eval.json", "eval.md"}
    assert json.loads((tmp_path / "eval.json").read_text())["probes"] == evaluation.results["probes"]


def test_vectors_that_were_made_elsewhere_have_colours_of_their_own(
    cells: EvaluationCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    vectors = np.zeros((len(cells.row), 2), np.float32)
    results = run(cells, one=vectors, other=vectors, third=vectors).results
    draw_scores(results, tmp_path / "scores.png")
    (axis,) = figures[0].axes
    colours = {
        bars.get_label(): bars.patches[0].get_facecolor() for bars in axis.containers if isinstance(bars, BarContainer)
    }
    assert {"one", "other", "third"} < set(colours)
    assert len(set(colours.values())) == len(colours)
