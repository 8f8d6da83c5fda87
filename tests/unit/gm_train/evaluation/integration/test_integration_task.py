"""The integration task: its controls win and lose as they must, and it says why it leaves cells out."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse

from gm_train.embedding.embed_cells import F32
from gm_train.evaluation.figures import BY_BATCH, BY_TYPE, MODEL, PCA, RANDOM, Row
from gm_train.evaluation.integration import integration_task
from gm_train.evaluation.integration.integration_task import IntegrationTask
from gm_train.evaluation.integration.shuffled_vectors import shuffle_within
from gm_train.evaluation.labels import Labels
from tests.support.integration_cases import clusters

pytest.importorskip("scib_metrics")


@dataclass
class Subject:
    """What the task reads of a subject: vectors in place of a model."""

    vectors: F32
    types: Labels | None
    batches: Labels | None
    tuned_for: str = ""
    embeddings: dict[str, F32] = field(default_factory=dict)
    held_out: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        n_cells = len(self.vectors)
        self.held_out = np.ones(n_cells, np.bool_)
        self.config = SimpleNamespace(task=SimpleNamespace(label=self.tuned_for))
        expression = scipy.sparse.csr_matrix(np.exp(self.vectors / 20).astype(np.float32))
        self.cells = SimpleNamespace(
            labels=self.types,
            label="cell_type",
            batches=self.batches,
            batch="donor",
            held_out=self.held_out,
            row=np.arange(n_cells),
            expression=expression,
        )

    def embedded(self, ranks: str) -> F32:
        return self.vectors

    def random_embedded(self, ranks: str, seed: int) -> F32:
        return np.random.default_rng(seed).normal(size=self.vectors.shape).astype(np.float32)

    def pca(self) -> F32:
        return self.vectors[:, :4]

    def drawn(self) -> dict[str, F32]:
        return {"model": self.vectors}


def score(subject: Subject) -> tuple[IntegrationTask, dict[str, Row], Row]:
    """The task, its rows by name, and results with its facts."""
    task = IntegrationTask(subject)  # type: ignore[arg-type]
    advanced: list[int] = []
    rows = task.rows("plain", lambda: advanced.append(1))
    assert len(advanced) == task.n_scores
    results = {"integration": rows, **task.facts()}
    return task, {row["scored"]: row for row in rows}, results


def test_controls_score_as_they_must() -> None:
    vectors, types, batches = clusters(n_types=5, n_batches=3, cells_each=12, batch_effect=6.0)
    perfect, *_ = clusters(n_types=5, n_batches=3, cells_each=12, batch_effect=0.0)
    task, rows, _ = score(Subject(vectors, types, batches, embeddings={"perfect": perfect}))
    assert set(rows) == {MODEL, "perfect", *IntegrationTask.controls}
    mean = {(name, key): row[key]["mean"] for name, row in rows.items() for key in ("avg_bio", "avg_batch")}
    # Within a type the same vectors: types are kept as well, and batches are mixed.
    assert mean[BY_TYPE, "avg_bio"] == pytest.approx(mean[MODEL, "avg_bio"], abs=1e-6)
    assert mean[BY_TYPE, "avg_batch"] > mean[MODEL, "avg_batch"] + 0.05
    assert mean["perfect", "avg_batch"] > mean[MODEL, "avg_batch"] + 0.05
    # Within a batch the same vectors: types are lost.
    for name in (BY_BATCH, RANDOM):
        assert mean[name, "avg_bio"] < mean[MODEL, "avg_bio"] - 0.3
    assert all(row["avg_bio"]["sd"] is not None for row in rows.values())
    assert set(task.features) == {"model"}


def test_vectors_shuffled_among_a_type_have_the_same_scgraph() -> None:
    vectors, types, batches = clusters(n_types=6, n_batches=2, cells_each=25, batch_effect=2.0)
    _, rows, results = score(Subject(vectors, types, batches))
    assert results["integration_of"]["types_of_scgraph"] == 6
    assert rows[BY_TYPE]["scgraph"]["mean"] == pytest.approx(rows[MODEL]["scgraph"]["mean"], abs=1e-5)
    assert rows[MODEL]["scgraph"]["mean"] > 0.5 > rows[BY_BATCH]["scgraph"]["mean"]


def test_types_that_meet_no_others_in_a_large_batch_do_not_count_for_scgraph() -> None:
    vectors, types, batches = clusters(n_types=6, n_batches=2, cells_each=25, batch_effect=2.0)
    batches[types == "type 5"] = "small"
    batches[np.flatnonzero(types == "type 4")[:5]] = "small"
    _, rows, results = score(Subject(vectors, types, batches))
    assert results["integration_of"]["types"] == 6
    assert results["integration_of"]["types_of_scgraph"] == 5
    assert rows[MODEL]["scgraph"]["mean"] > 0.5


def test_where_all_cells_are_scored_a_note_says_why() -> None:
    subject = Subject(*clusters(n_types=3, n_batches=2, cells_each=12, batch_effect=1.0))
    subject.held_out[subject.batches == "batch 0"] = False
    task = IntegrationTask(subject)  # type: ignore[arg-type]
    notes = IntegrationTask.notes({"integration": [], **task.facts()})
    assert any("scored on all cells: the held-out cells have 1 of 2 'donor'." in note for note in notes)


def test_without_large_batches_there_is_no_scgraph_and_a_note_says_so() -> None:
    _, rows, results = score(Subject(*clusters(n_types=3, n_batches=2, cells_each=12, batch_effect=1.0)))
    assert "scgraph" not in rows[MODEL]
    assert any("There is no scGraph: it needs" in note for note in IntegrationTask.notes(results))
    assert not any("scGraph" in sentence for sentence in verdicts(results))


def verdicts(results: Row) -> list[str]:
    """Verdicts, with dithered ranks as plain ones."""
    both = [{**row, "ranks": ranks} for row in results["integration"] for ranks in ("plain", "dithered")]
    return IntegrationTask.verdicts({**results, "integration": both})


def test_islands_of_types_are_called_out() -> None:
    """The vectors tell only the type: scIB's scores are near their best, and no type is closer than another."""
    vectors, types, batches = clusters(n_types=6, n_batches=2, cells_each=25, batch_effect=8.0)
    subject = Subject(vectors, types, batches)
    islands = 50 * np.eye(6)[np.unique(types.astype(str), return_inverse=True)[1]]
    islands += np.random.default_rng(0).normal(size=islands.shape)
    _, rows, results = score(replace(subject, vectors=islands.astype(np.float32)))
    pca = score(subject)[1][MODEL]
    results["integration"] = [{**pca, "scored": PCA} if row["scored"] == PCA else row for row in results["integration"]]
    assert rows[MODEL]["avg_bio"]["mean"] > pca["avg_bio"]["mean"]
    assert rows[MODEL]["avg_batch"]["mean"] > pca["avg_batch"]["mean"]
    assert rows[MODEL]["scgraph"]["mean"] < pca["scgraph"]["mean"]
    assert sum("Do not call this a better integration" in sentence for sentence in verdicts(results)) == 2
    assert not any("Do not call" in sentence for sentence in verdicts(score(subject)[2]))
    # Within two standard deviations nothing is called worse.
    for row in results["integration"]:
        row["scgraph"]["sd"] = 2.0
    assert not any("Do not call" in sentence for sentence in verdicts(results))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tuned_for": "cell_type"}, "the weights were fine-tuned on labels ('cell_type')"),
        ({"batches": None}, "columns of obs with types and batches are needed: add --batch"),
        ({"batches": np.full(60, "one", object)}, "all cells have the same 'donor' (one)"),
    ],
)
def test_a_task_that_cannot_be_done_scores_nothing_and_says_why(change: dict[str, Any], why: str) -> None:
    subject = Subject(*clusters(n_types=5, n_batches=3, cells_each=4, batch_effect=1.0))
    task = IntegrationTask(replace(subject, **change))  # type: ignore[arg-type]
    assert task.n_scores == 0
    (note,) = IntegrationTask.notes({"integration": [], **task.facts()})
    assert note.startswith(f"Batch integration was not scored: {why}")


def test_without_scib_metrics_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration_task, "has_scib_metrics", lambda: False)
    task = IntegrationTask(Subject(*clusters(2, 2, 12, 0.0)))  # type: ignore[arg-type]
    assert task.n_scores == 0
    (note,) = IntegrationTask.notes({"integration": [], **task.facts()})
    assert "scib-metrics is not installed: pip install 'gm-train[eval]'" in note


def test_shuffled_vectors_stay_in_their_group() -> None:
    vectors = np.arange(24, dtype=np.float32)[:, None]
    groups = np.array([f"{i % 3}" for i in range(24)], object)
    shuffled = shuffle_within(vectors, groups, seed=0)
    assert (shuffled.ravel().astype(int) % 3 == np.arange(24) % 3).all()
    assert sorted(shuffled.ravel()) == sorted(vectors.ravel())
    assert not np.array_equal(shuffled, vectors)
    assert not np.array_equal(shuffled, shuffle_within(vectors, groups, seed=1))
