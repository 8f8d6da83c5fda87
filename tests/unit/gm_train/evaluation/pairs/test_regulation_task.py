"""The regulation task: a known influence is found, a reversed one is not, and shuffled truth is at chance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.simulate.write_atlas import regulation_path, write_atlas
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.config.load import load_config
from gm_train.evaluation.cells import EvaluationCells, read_cells
from gm_train.evaluation.figures import COEXPRESSION, EMBEDDINGS, LEVEL, MODEL, RANDOM, RANKS, REGRESSION, STATES, Row
from gm_train.evaluation.pairs.regulation_file import read_regulation
from gm_train.evaluation.pairs.regulation_task import RegulationTask
from gm_train.evaluation.task import Subject
from gm_train.model.genemamba import GeneMamba
from tests.conftest import tiny_words
from tests.support.regulated_cells import known_influence

OPTIONS = AtlasOptions(
    cells=600, genes=240, cell_types=3, programmes=6, genes_per_programme=10, counts_per_cell=3000.0, dropout=0.0,
    regulators=12, targets_per_regulator=8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask 25 cells or so."""
    monkeypatch.setattr("gm_train.evaluation.pairs.regulation_task._TOKENS", 150_000)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regulated")
    cells, store = folder / "a.h5ad", folder / "store.zarr"
    write_atlas(cells, OPTIONS)
    make_medians((cells,), folder / "medians.zarr", say=lambda line: None)
    splits = SplitOptions(by="cell", validation=0.2)
    make_store((cells,), folder / "medians.zarr", store, top_k=240, splits=splits, say=lambda line: None)
    return regulation_path(cells)


@pytest.fixture(scope="module")
def cells(table: Path) -> EvaluationCells:
    store = table.with_name("store.zarr")
    return read_cells(store, (table.with_name("a.h5ad"),), Tokenizer.load(store))


def subject_of(cells: EvaluationCells, table: Path | None, language: str = "missing") -> Subject:
    arch = "mamba" if language == "next_token" else "bimamba"
    words = [f"objective.language={language}", f"model.arch={arch}", "model.n_layers=1"]
    config = load_config(*tiny_words(Path("store"), Path("run")), *words)
    torch.manual_seed(3)
    model = GeneMamba(config.model, cells.tokenizer.vocabulary.size).eval()
    return Subject(model, config, cells, "plain", 1, regulation=table)


def score(subject: Subject, ranks: str = "plain") -> dict[str, dict[str, dict[str, float]]]:
    task = RegulationTask(subject)
    calls: list[int] = []
    rows = task.rows(ranks, lambda: calls.append(1))
    assert len(calls) == task.n_scores
    return {row["scored"]: row for row in rows}


@pytest.mark.parametrize("language", ["missing", "masked"])
def test_a_known_influence_is_found_a_reversed_one_is_not(cells: EvaluationCells, table: Path, language: str) -> None:
    pairs = read_regulation(table, cells.tokenizer).tokens
    subject = subject_of(cells, table, language)
    size = subject.vocabulary_size
    right = score(replace(subject, model=known_influence(pairs, size)))
    wrong = score(replace(subject, model=known_influence(pairs, size, reverse=True)))
    assert right[MODEL]["direction"] == {"mean": 100.0, "sd": 0.0}
    assert wrong[MODEL]["direction"] == {"mean": 0.0, "sd": 0.0}
    assert right[MODEL]["detection"]["mean"] > 95


def test_a_shuffled_truth_is_at_chance(cells: EvaluationCells, table: Path, tmp_path: Path) -> None:
    """Half of the pairs are turned round in the table, and the model knows the true ones."""
    pairs = read_regulation(table, cells.tokenizer).tokens
    turned = np.random.default_rng(0).permutation(len(pairs)) % 2 == 0
    names = cells.tokenizer.vocabulary.genes
    shuffled = tmp_path / "shuffled.tsv"
    lines = [
        "\t".join(names[token - 2] for token in (pair[::-1] if turn else pair))
        for pair, turn in zip(pairs.tolist(), turned, strict=True)
    ]
    shuffled.write_text("\n".join(["regulator\ttarget", *lines]) + "\n")
    subject = subject_of(cells, shuffled)
    rows = score(replace(subject, model=known_influence(pairs, subject.vocabulary_size)))
    assert 38 < rows[MODEL]["direction"]["mean"] < 62


def test_a_pair_that_is_listed_in_both_directions_is_not_unrelated(
    cells: EvaluationCells, table: Path, tmp_path: Path
) -> None:
    before = RegulationTask(subject_of(cells, table))
    regulator = int(before._pairs[0, 0])
    drawn = {tuple(pair) for each in before._unrelated for pair in each.tolist() if pair[0] == regulator}
    a, b = min(drawn)
    names = cells.tokenizer.vocabulary.genes
    mutual = tmp_path / "mutual.tsv"
    lines = [f"{names[x - 2]}\t{names[y - 2]}\t1\t1\n" for x, y in ((a, b), (b, a))]
    mutual.write_text(table.read_text() + "".join(lines))
    task = RegulationTask(subject_of(cells, mutual))
    np.testing.assert_array_equal(task._pairs, before._pairs)
    assert not any((each == [a, b]).all(1).any() for each in task._unrelated)


def test_expression_level_takes_the_better_sign(cells: EvaluationCells, table: Path, tmp_path: Path) -> None:
    """In both tables the level tells the direction of most pairs, once by more expression and once by less."""
    level = np.asarray(cells.expression[~cells.held_out].mean(0))[0]
    names = cells.tokenizer.vocabulary.genes
    order = np.argsort(-level)
    found = []
    for turn in (1, -1):
        regulators, targets = order[:40:2][::turn], order[1:40:2][::turn]
        ends = (regulators[:14], targets[-14:])
        path = tmp_path / f"{turn}.tsv"
        lines = [f"{names[r]}\t{names[t]}" for i, r in enumerate(ends[0]) for t in np.roll(ends[1], i)[:5]]
        path.write_text("\n".join(["regulator\ttarget", *lines]) + "\n")
        subject = subject_of(cells, path)
        found.append(score(subject)[LEVEL]["direction"]["mean"])
    assert min(found) > 70


def test_controls_are_as_strong_as_they_must_be(cells: EvaluationCells, table: Path) -> None:
    rows = score(subject_of(cells, table))
    assert set(rows) == {MODEL, STATES, EMBEDDINGS, COEXPRESSION, REGRESSION, LEVEL, RANDOM}
    for name in (STATES, EMBEDDINGS, COEXPRESSION):  # the same in both directions
        assert rows[name]["direction"] == {"mean": 50.0, "sd": 0.0}
    assert rows[COEXPRESSION]["detection"]["mean"] > 80
    assert rows[REGRESSION]["direction"]["mean"] > 65  # a direction can be found in these cells
    assert rows[REGRESSION]["detection"]["mean"] > 85
    for name in (MODEL, RANDOM, EMBEDDINGS, LEVEL):  # random weights, and levels that are matched
        assert 35 < rows[name]["detection"]["mean"] < 65
    assert 30 < rows[RANDOM]["direction"]["mean"] < 70
    assert rows[RANDOM]["direction"]["sd"] > 0


def test_scores_repeat_and_words_name_pairs_and_intervals(cells: EvaluationCells, table: Path) -> None:
    subject = subject_of(cells, table)
    task = RegulationTask(subject)
    results: Row = {task.key: [row for ranks in RANKS for row in task.rows(ranks, lambda: None)]}
    results |= task.facts() | {"model": {"label": ""}}
    assert results[task.key] == [row for ranks in RANKS for row in RegulationTask(subject).rows(ranks, lambda: None)]
    facts = results["regulation_facts"]
    assert facts["regulators"] == 12
    assert facts["pairs"] <= facts["askable"] <= facts["listed"] == 12 * 8 + 6
    assert task.question(results) == facts["file"]
    verdicts = task.verdicts(results)
    assert len(verdicts) == 4
    low, high = facts["intervals"]["dithered"][MODEL]["direction"]
    assert low < high
    assert f"Its 95 % interval is {low:.1f} to {high:.1f}; chance is 50." in verdicts[1]
    (note,) = task.notes(results)
    assert f"can be asked for in {facts['cells']} held-out cells" in note
    assert "12 regulators and their targets, plain ranks" in task.title(results, "plain")


def test_what_cannot_be_scored_is_said(cells: EvaluationCells, table: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.tsv"
    lines = table.read_text().splitlines(keepends=True)
    few.write_text("".join(lines[:15]))  # of two regulators
    nine = tmp_path / "nine.tsv"
    kept = sorted({line.split("\t")[0] for line in lines[1:]})[:9]
    nine.write_text("".join(lines[:1] + [line for line in lines if line.split("\t")[0] in kept]))
    for subject, reason in (
        (subject_of(cells, None), r"no table of regulators and targets was given (--regulation)"),
        (subject_of(cells, table, "next_token"), "next_token predicts a gene from those before it"),
        (subject_of(cells, nine), "regulators among them: 9; 20 pairs and 10 regulators are needed"),
        (subject_of(cells, few), "are too few: 9, regulators among them: 2; 20 pairs and 10 regulators are needed"),
    ):
        task = RegulationTask(subject)
        assert task.n_scores == 0
        (note,) = task.notes(task.facts())
        assert note.startswith("Regulators and targets are not scored, because ")
        assert reason in note
