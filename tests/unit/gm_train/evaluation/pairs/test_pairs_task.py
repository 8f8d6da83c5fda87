"""The pair task: planted vectors and co-expression are found, random weights are not, training sets are kept out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from data_shards.errors import DataError
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.config.load import load_config
from gm_train.evaluation.cells import EvaluationCells, read_cells
from gm_train.evaluation.figures import COEXPRESSION, LEVEL, MODEL, RANDOM, RANKS
from gm_train.evaluation.pairs.pairs_task import PairsTask
from gm_train.evaluation.task import Subject
from gm_train.model.genemamba import GeneMamba
from tests.conftest import Atlas, tiny_words


@pytest.fixture(scope="module")
def cells(atlas: Atlas) -> EvaluationCells:
    return read_cells(atlas.store, atlas.files, Tokenizer.load(atlas.store))


def write_sets(path: Path, modulus: int, names: str = "gene{:04d}") -> Path:
    """Write sets of the genes whose numbers are equal modulo `modulus`."""
    sets = [[names.format(gene) for gene in range(80) if gene % modulus == i] for i in range(modulus)]
    path.write_text("".join("\t".join([f"set {i}", "", *genes]) + "\n" for i, genes in enumerate(sets)))
    return path


def subject_of(cells: EvaluationCells, trained: Path | None, given: Path | None = None, planted: int = 0) -> Subject:
    """A model of random weights; with `planted`, genes of equal numbers modulo it have similar input embeddings."""
    words = [*tiny_words(Path("store"), Path("run")), "objective.pathway_size=[2,200]"]
    config = load_config(*words, f"objective.pathways={trained or ''}")
    torch.manual_seed(3)
    model = GeneMamba(config.model, cells.tokenizer.vocabulary.size).eval()
    if planted:
        names = cells.tokenizer.vocabulary.genes
        module = torch.tensor([int(name.removeprefix("gene")) % planted for name in names])
        with torch.no_grad():
            model.embedding.weight[FIRST_GENE:] += 3 * torch.randn(planted, config.model.d_model)[module]
    return Subject(model, config, cells, "plain", 1, gene_sets=given)


def score(subject: Subject) -> tuple[PairsTask, dict[str, dict[str, dict[str, float]]]]:
    task = PairsTask(subject)
    calls: list[int] = []
    rows = task.rows("plain", lambda: calls.append(1))
    assert len(calls) == task.n_scores
    return task, {row["scored"]: row for row in rows}


def test_planted_vectors_are_found_and_random_weights_are_at_chance(cells: EvaluationCells, tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.gmt", 7)
    task, rows = score(subject_of(cells, sets, planted=7))
    assert set(rows) == {MODEL, COEXPRESSION, LEVEL, RANDOM}
    assert rows[MODEL]["static_trained"]["mean"] > 95
    assert rows[MODEL]["contextual_trained"]["mean"] > 80
    for name in (RANDOM, LEVEL, COEXPRESSION):  # the sets mean nothing in these cells
        assert 38 < rows[name]["static_trained"]["mean"] < 62
    assert rows[COEXPRESSION]["static_trained"] == rows[COEXPRESSION]["contextual_trained"]
    results = {"pairs": list(rows.values()), **task.facts()}
    assert [title.split(",")[0] for title, _ in task.tables(results, "plain")] == [
        "Pairs of genes in sets of the training"
    ]
    assert task.chart_of(list(rows.values()))[0] == "contextual_trained"


def test_co_expression_finds_genes_that_vary_together(cells: EvaluationCells, tmp_path: Path) -> None:
    """Genes of even and of odd numbers are those of two cell types."""
    sets = tmp_path / "sets.gmt"
    names = [[f"gene{gene:04d}" for gene in range(first, first + 20, 2)] for first in (0, 1, 40, 41)]
    sets.write_text("".join("\t".join([f"set {i}", "", *genes]) + "\n" for i, genes in enumerate(names)))
    _, rows = score(subject_of(cells, sets))
    assert rows[COEXPRESSION]["static_trained"]["mean"] > rows[LEVEL]["static_trained"]["mean"] + 3
    assert rows[COEXPRESSION]["static_trained"]["mean"] > 55


def test_pairs_of_the_training_are_not_among_those_held_out(cells: EvaluationCells, tmp_path: Path) -> None:
    trained, given = write_sets(tmp_path / "trained.gmt", 8), write_sets(tmp_path / "given.gmt", 4)
    task, rows = score(subject_of(cells, trained, given, planted=8))
    # Genes that are equal modulo 4 but not modulo 8 have no vector in common.
    assert rows[MODEL]["static_trained"]["mean"] > 95
    assert rows[MODEL]["static_held_out"]["mean"] < 75
    assert task.chart_of(list(rows.values()))[0] == "contextual_held_out"
    facts = task.facts()
    assert len(task.tables({"pairs": list(rows.values()), **facts}, "plain")) == 2
    assert facts["pairs_facts"]["related"]["trained"] > facts["pairs_facts"]["related"]["held_out"] * 0.5
    number = {FIRST_GENE + i: int(name[4:]) for i, name in enumerate(cells.tokenizer.vocabulary.genes)}
    for sample in task._samples["held_out"]:
        for a, b in sample.related.tolist():
            assert (number[a] - number[b]) % 4 == 0
            assert (number[a] - number[b]) % 8 != 0
        for a, b in sample.random.tolist():
            assert (number[a] - number[b]) % 4 != 0
    assert any("Pairs that also share a set of the training" in note for note in task.notes(facts))


def test_a_file_of_the_trainings_sets_leaves_no_pair_held_out(cells: EvaluationCells, tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.gmt", 8)
    task = PairsTask(subject_of(cells, sets, sets))
    assert set(task._samples) == {"trained"}
    assert any("too few pairs (0) are left" in note for note in task.notes(task.facts()))


def test_a_model_trained_without_sets_is_scored_on_given_ones_alone(cells: EvaluationCells, tmp_path: Path) -> None:
    task, rows = score(subject_of(cells, None, write_sets(tmp_path / "sets.gmt", 8), planted=8))
    assert set(rows[MODEL]) == {"ranks", "scored", "static_held_out", "contextual_held_out"}
    assert rows[MODEL]["static_held_out"]["mean"] > 95
    assert len(task.verdicts({"pairs": [{**row, "ranks": ranks} for row in rows.values() for ranks in RANKS]})) == 4


def test_without_gene_sets_nothing_is_scored(cells: EvaluationCells) -> None:
    task = PairsTask(subject_of(cells, None))
    assert task.n_scores == 0
    (note,) = task.notes(task.facts())
    assert "no gene sets of the training are known, and none were given (--gene-sets)" in note


def test_too_few_pairs_are_not_scored(cells: EvaluationCells, tmp_path: Path) -> None:
    few = tmp_path / "few.gmt"
    few.write_text("set\t\tgene0000\tgene0002\tgene0004\n")
    task = PairsTask(subject_of(cells, few))
    assert task.n_scores == 0
    assert "fewer than 20 pairs" in task.notes(task.facts())[0]


def test_missing_and_foreign_files_are_named(cells: EvaluationCells, tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.gmt", 8)
    gone = subject_of(cells, sets)
    sets.rename(tmp_path / "moved.gmt")
    task = PairsTask(gone)
    assert task.n_scores == 0
    assert "the gene sets of the training, sets.gmt, are missing where the run had" in task.notes(task.facts())[0]
    assert str(tmp_path) not in str(task.facts())
    with pytest.raises(
        DataError, match=r"--gene-sets .*moved\.gmt: pairs that the model was trained on cannot be left"
    ):
        PairsTask(subject_of(cells, sets, tmp_path / "moved.gmt"))
    with pytest.raises(DataError, match=r"none\.gmt: no such file: set --gene-sets to a \.gmt file"):
        PairsTask(subject_of(cells, None, tmp_path / "none.gmt"))
    foreign = write_sets(tmp_path / "foreign.gmt", 8, names="ENSG{:011d}")
    with pytest.raises(DataError, match=r"of the 8 gene sets of --gene-sets, 8 have .* or leave it out"):
        PairsTask(subject_of(cells, None, foreign))


def test_correlations_are_of_training_cells_alone(cells: EvaluationCells, tmp_path: Path) -> None:
    """Other counts of held-out cells change no control."""
    sets = write_sets(tmp_path / "sets.gmt", 8)
    changed = cells.expression.toarray()
    changed[cells.held_out] = np.random.default_rng(0).random(changed[cells.held_out].shape)
    _, before = score(subject_of(cells, sets))
    _, after = score(subject_of(replace(cells, expression=scipy.sparse.csr_matrix(changed)), sets))
    assert before == after
