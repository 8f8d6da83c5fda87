"""The robustness task: what does not read counts does not move, and worse disturbances move embeddings further."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from gm_train.config.load import load_config
from gm_train.evaluation import task as home
from gm_train.evaluation.cells import EvaluationCells
from gm_train.evaluation.figures import MODEL, PCA, RANDOM, RANKS
from gm_train.evaluation.probes.probes import ProbeSplit, probe
from gm_train.evaluation.robustness.disturbances import DISTURBANCES, disturb
from gm_train.evaluation.robustness.robustness_scores import Disturbed, Representation, score_robustness
from gm_train.evaluation.robustness.robustness_task import SEEDS, RobustnessTask
from gm_train.evaluation.task import Subject
from gm_train.model.genemamba import GeneMamba
from tests.conftest import tiny_words
from tests.support.blood_cells import read_blood_cells
from tests.support.evaluation_cases import ragged


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> EvaluationCells:
    return read_blood_cells(tmp_path_factory.mktemp("pbmc"), max_cells=300)


def subject_of(cells: EvaluationCells, **changes: object) -> Subject:
    words = [*tiny_words(Path("store"), Path("run")), "model.d_model=16", "model.n_layers=1"]
    config = load_config(*words)
    torch.manual_seed(7)
    model = GeneMamba(config.model, cells.tokenizer.vocabulary.size).eval()
    return Subject(model, config, cells, "plain", 1, **changes)  # type: ignore[arg-type]


def disturbed_cells(cells: EvaluationCells, seed: int = 0) -> Disturbed:
    found = {}
    for d in DISTURBANCES:
        (part,) = disturb(cells.counts, d, seed).values()
        found[d.key] = part.ranked("plain"), part.expression()
    return found


@pytest.fixture(scope="module")
def results(cells: EvaluationCells) -> dict[str, object]:
    task = RobustnessTask(subject_of(cells))
    calls: list[int] = []
    rows = [row for ranks in RANKS for row in task.rows(ranks, lambda: calls.append(1))]
    assert len(calls) == 2 * task.n_scores
    return {"robustness": rows, **task.facts(), "task": task}


def rows_of(results: dict[str, object]) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    return {(row["ranks"], row["scored"]): row for row in results["robustness"]}  # type: ignore[attr-defined, index]


def test_fewer_counts_of_real_cells_move_every_embedding_further(results: dict[str, object]) -> None:
    rows = rows_of(results)
    assert set(rows) == {(ranks, name) for ranks in RANKS for name in (MODEL, PCA, RANDOM)}
    for row in rows.values():
        half, fifth, twentieth = (row[f"moved_counts_{share}"]["mean"] for share in (50, 20, 5))
        assert 0 < half < fifth < twentieth
        parts = [row[f"moved_{d.key}"]["mean"] for d in DISTURBANCES]
        assert row["moved"]["mean"] == pytest.approx(np.mean(parts))


def test_useful_is_the_score_of_the_probes_and_robust_what_is_kept_of_it(
    results: dict[str, object], cells: EvaluationCells
) -> None:
    assert cells.labels is not None
    split = ProbeSplit.of(cells.labels, cells.held_out)
    expected = [probe(subject_of(cells).pca(), split, seed) for seed in range(SEEDS)]
    row = rows_of(results)["plain", PCA]
    for name in ("knn", "linear"):
        assert row[f"{name}_useful"]["mean"] == pytest.approx(np.mean([e[f"{name}_accuracy"] for e in expected]))
        assert row[f"{name}_counts_5"]["mean"] < row[f"{name}_useful"]["mean"]
        kept = np.mean([row[f"{name}_{d.key}"]["mean"] for d in DISTURBANCES]) / row[f"{name}_useful"]["mean"]
        assert row[f"{name}_robust"]["mean"] == pytest.approx(100 * kept, rel=0.02)  # a mean of ratios over seeds


def test_components_do_not_know_ranks_and_a_seed_gives_the_same_again(
    results: dict[str, object], cells: EvaluationCells
) -> None:
    rows = rows_of(results)
    plain, dithered = rows["plain", PCA], rows["dithered", PCA]
    assert {**plain, "ranks": ""} == {**dithered, "ranks": ""}
    again = RobustnessTask(subject_of(cells)).rows("dithered", lambda: None)
    assert again == [rows["dithered", name] for name in (MODEL, PCA, RANDOM)]


def test_components_are_fitted_once(cells: EvaluationCells, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[object] = []
    fit = home.fit_components

    def count(expression: scipy.sparse.csr_matrix) -> object:
        fitted.append(fit(expression))
        return fitted[-1]

    monkeypatch.setattr(home, "fit_components", count)
    subject = subject_of(cells)
    embedding = RobustnessTask(subject)._pca
    tokens, expression = disturbed_cells(cells)["chemistry"]
    (components,) = fitted
    np.testing.assert_array_equal(embedding.undisturbed, subject.pca())
    np.testing.assert_array_equal(
        embedding.embed(tokens, expression),
        components.transform(expression).astype(np.float32),  # type: ignore[attr-defined]
    )
    assert len(fitted) == 1


def test_what_does_not_read_counts_does_not_move_and_keeps_everything(cells: EvaluationCells) -> None:
    assert cells.labels is not None
    rng = np.random.default_rng(0)
    numbers = np.flatnonzero(cells.held_out)
    types = np.unique(cells.labels.astype(str), return_inverse=True)[1]
    fixed = (np.eye(types.max() + 1)[types] + rng.normal(0, 0.1, (len(types), types.max() + 1))).astype(np.float32)
    split = ProbeSplit.of(cells.labels, cells.held_out)
    scores = score_robustness(
        Representation(fixed, lambda tokens, expression: fixed[numbers]), numbers, split, disturbed_cells(cells), 0
    )
    assert scores["moved"] == pytest.approx(0, abs=1e-6)
    assert scores["knn_robust"] == scores["linear_robust"] == 100
    assert scores["knn_useful"] > 90
    # Vectors that have nothing to do with the cell any more keep little, and move far.
    noise = rng.normal(size=fixed[numbers].shape).astype(np.float32)
    scores = score_robustness(
        Representation(fixed, lambda tokens, expression: noise), numbers, split, disturbed_cells(cells), 0
    )
    assert scores["knn_robust"] < 40
    assert scores["moved"] > 5


def test_cells_that_lose_every_gene_count_as_wrong_and_as_moved() -> None:
    labels = np.array(["a", "b"] * 10, dtype=object)
    features = np.eye(2, dtype=np.float32)[[0, 1] * 10] + np.float32(0.01) * np.arange(40).reshape(20, 2)
    held_out = np.arange(20) >= 14
    numbers = np.flatnonzero(held_out)
    tokens = ragged([[2], [2], [], [3], [], [2]])
    embedded = features[numbers].copy()
    embedded[[2, 4]] = np.nan  # as `embed_cells` returns for them
    scores = score_robustness(
        Representation(features, lambda *_: embedded),
        numbers,
        ProbeSplit.of(labels, held_out),
        {"x": (tokens, None)},
        0,
    )  # type: ignore[dict-item]
    assert scores["knn_useful"] == 100
    assert scores["knn_x"] == pytest.approx(100 * 4 / 6)
    assert scores["knn_robust"] == pytest.approx(100 * 4 / 6)
    assert scores["moved"] > 1


def test_a_vector_that_all_embeddings_have_in_common_changes_no_movement() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 5)).astype(np.float32)
    numbers, tokens = np.arange(25, 40), ragged([[2]] * 14 + [[]])  # the last cell loses every gene
    moved = features[numbers] + rng.normal(0, 0.3, (15, 5)).astype(np.float32)
    common = rng.normal(size=5).astype(np.float32)

    def score(common: np.ndarray) -> float:
        embedding = Representation(features + common, lambda *_: moved + common)
        return score_robustness(embedding, numbers, None, {"x": (tokens, None)}, 0)["moved"]  # type: ignore[dict-item]

    scores = [score(length * common) for length in np.float32([0, 8, -64])]
    assert scores[0] > 0.1
    assert scores[1:] == pytest.approx([scores[0]] * 2, rel=1e-3)


def test_without_labels_only_movement_is_scored(cells: EvaluationCells) -> None:
    task = RobustnessTask(subject_of(replace(cells, labels=None, label=None)))
    rows = task.rows("plain", lambda: None)
    movement = {f"moved_{d.key}" for d in DISTURBANCES} | {"moved"}
    assert all(set(row) == {"ranks", "scored"} | movement for row in rows)
    assert any("movement alone" in note for note in task.notes({"robustness": rows, **task.facts()}))
    assert task.chart_of(rows)[0] == "moved"


def test_counts_that_are_not_whole_and_a_single_held_out_cell_are_not_scored(cells: EvaluationCells) -> None:
    (which, part), *_ = cells.counts.items()
    fractions = {which: replace(part, counts=part.counts * 0.7)}
    task = RobustnessTask(subject_of(replace(cells, counts=fractions)))
    assert task.n_scores == 0
    assert task.notes(task.facts()) == [
        "Robustness is not scored, because counts of held-out cells are not whole numbers."
    ]
    one = np.zeros(len(cells.held_out), np.bool_)
    one[np.flatnonzero(cells.held_out)[0]] = True
    task = RobustnessTask(subject_of(replace(cells, held_out=one)))
    assert task.n_scores == 0
    assert "fewer than two held-out cells" in task.notes(task.facts())[0]


def test_vectors_that_were_made_elsewhere_are_named_as_not_scored(cells: EvaluationCells) -> None:
    given = {"X_scVI": np.zeros((len(cells.row), 2), np.float32)}
    task = RobustnessTask(subject_of(cells, embeddings=given))
    assert "not scored: X_scVI." in " ".join(task.notes(task.facts()))
