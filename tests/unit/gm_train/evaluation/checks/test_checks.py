"""Checks of known signs of failure: each finds its sign where it was put, and nothing where it was not."""

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from data_shards.files.atomic import hash_path
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.config.schema import Config, ObjectiveConfig
from gm_train.evaluation.cells import EvaluationCells, read_cells
from gm_train.evaluation.checks.checks import CHECKS, run_checks
from gm_train.evaluation.checks.common_types import MARGIN, check_common_types
from gm_train.evaluation.checks.finding import GOOD, NOT_DONE, WARNING
from gm_train.evaluation.checks.medians import LEAST_GENES, check_medians
from gm_train.evaluation.checks.pathways import check_pathways
from gm_train.evaluation.figures import RANKS, figure
from gm_train.evaluation.task import Subject
from gm_train.model.genemamba import GeneMamba
from tests.conftest import write_cells
from tests.support.small_models import small_config

N_CELLS, N_GENES = 300, 150


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cells(tmp_path_factory.mktemp("cells") / "cells.h5ad", N_CELLS, N_GENES, seed=3)


def read(path: Path, folder: Path, medians_of: Path | None = None) -> EvaluationCells:
    """Cells of a store that was made with the medians of another file."""
    make_medians([medians_of or path], folder / "medians.zarr", say=lambda line: None)
    splits = SplitOptions(by="cell", validation=0.2)
    make_store([path], folder / "medians.zarr", folder / "store.zarr", splits=splits, say=lambda line: None)
    return read_cells(folder / "store.zarr", [path], Tokenizer.load(folder / "store.zarr"))


@pytest.fixture(scope="module")
def cells(source: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationCells:
    return read(source, tmp_path_factory.mktemp("store"))


def subject(cells: EvaluationCells, objective: ObjectiveConfig | None = None) -> Subject:
    config = Config(model=small_config(), objective=objective or ObjectiveConfig())
    model = GeneMamba(config.model, cells.tokenizer.vocabulary.size)
    sets = Path(config.objective.pathways)
    return Subject(model.eval(), config, cells, "plain", 1, pathways_hash=hash_path(sets) if sets.is_file() else "")


def test_medians_of_the_same_cells_do_not_drift(cells: EvaluationCells) -> None:
    found = check_medians(subject(cells), {})
    assert found["outcome"] == GOOD
    (numbers,) = found["data_sets"].values()
    assert numbers["genes_compared"] >= LEAST_GENES
    assert numbers["common_factor"] == pytest.approx(1.0, abs=0.05)
    assert numbers["share_beyond_common_factor"] < 0.05


def changed(source: Path, path: Path, factors: np.ndarray) -> Path:
    """Write the cells with each gene's counts multiplied by a whole factor."""
    file = ad.read_h5ad(source)
    file.X = file.X.multiply(factors[None, :]).tocsr().astype(file.X.dtype)
    file.write_h5ad(path)
    return path


def test_medians_of_genes_that_were_counted_otherwise_drift_and_are_named(source: Path, tmp_path: Path) -> None:
    often = np.argsort(-np.asarray((ad.read_h5ad(source).X > 0).sum(0)).ravel())
    factors = np.ones(N_GENES, np.int64)
    factors[often[:8]] = 4
    other = changed(source, tmp_path / "other.h5ad", factors)
    found = check_medians(subject(read(source, tmp_path, medians_of=other)), {})
    assert found["outcome"] == WARNING
    assert "cells" in found["text"]
    assert "once the factor that most genes share" in found["text"]
    names = ad.read_h5ad(source).var_names
    assert set(found["data_sets"]["cells"]["farthest_genes"]) <= {names[gene] for gene in often[:8]}


def test_of_several_data_sets_the_one_that_drifts_is_named(source: Path, tmp_path: Path) -> None:
    """Both are ranked by the medians of one of them."""
    factors = np.ones(N_GENES, np.int64)
    factors[::3] = 5
    other = changed(source, tmp_path / "other.h5ad", factors)
    make_medians([source], tmp_path / "medians.zarr", say=lambda line: None)
    splits = SplitOptions(by="cell", validation=0.2)
    store = tmp_path / "store.zarr"
    make_store([source, other], tmp_path / "medians.zarr", store, splits=splits, say=lambda line: None)
    found = check_medians(subject(read_cells(store, [source, other], Tokenizer.load(store))), {})
    assert found["outcome"] == WARNING
    assert found["text"].startswith("Of 2 data sets the farthest is other: ")
    assert "More than 10% (other)" in found["text"]
    assert found["data_sets"]["cells"]["share_beyond_common_factor"] < 0.05
    assert found["data_sets"]["other"]["share_beyond_common_factor"] > 0.2


def test_cells_that_show_no_gene_often_cannot_be_checked(tmp_path: Path) -> None:
    path = write_cells(tmp_path / "few.h5ad", 40, N_GENES, seed=5)
    found = check_medians(subject(read(path, tmp_path)), {})
    assert found["outcome"] == NOT_DONE
    assert "read more (--max-cells)" in found["text"]


@pytest.mark.parametrize(("n_genes", "outcome"), [(LEAST_GENES - 1, NOT_DONE), (LEAST_GENES, GOOD)])
def test_a_data_set_counts_with_fifty_genes_that_cells_show_often(n_genes: int, outcome: str, tmp_path: Path) -> None:
    path = write_cells(tmp_path / "cells.h5ad", 120, 200, seed=5)
    file = ad.read_h5ad(path)
    counts = np.zeros(file.shape, file.X.dtype)
    counts[:, :n_genes] = np.random.default_rng(0).integers(1, 9, (120, n_genes))
    counts[:99, n_genes:] = 1
    file.X = type(file.X)(counts)
    file.write_h5ad(path)
    found = check_medians(subject(read(path, tmp_path)), {})
    assert found["data_sets"]["cells"]["genes_compared"] == n_genes
    assert found["outcome"] == outcome
    assert ("No data set has 50 genes with 100 or more" in found["text"]) == (outcome == NOT_DONE)


def gmt(path: Path, *sets: list[str]) -> str:
    path.write_text("".join(f"set {i}\t-\t" + "\t".join(genes) + "\n" for i, genes in enumerate(sets)))
    return str(path)


def test_gene_sets_of_these_genes_cover_them_and_those_of_other_genes_do_not(
    cells: EvaluationCells, tmp_path: Path
) -> None:
    n_cells = np.bincount(cells.plain.tokens, minlength=cells.tokenizer.vocabulary.size)[2:]
    seen = [gene for gene, n in zip(cells.tokenizer.vocabulary.genes, n_cells, strict=True) if n > 0.02 * N_CELLS]
    assert len(seen) >= 20
    good = ObjectiveConfig(pathways=gmt(tmp_path / "good.gmt", seen[:10], seen[10:20]), pathway_size=[5, 50])
    found = check_pathways(subject(cells, good), {})
    assert found["outcome"] == GOOD
    assert (found["genes"], found["in_vocabulary"], found["in_cells"]) == (20, 1.0, 1.0)
    tokens = [cells.tokenizer.vocabulary.token_of[gene] for gene in seen[:20]]
    assert found["of_cells"] == pytest.approx(np.isin(cells.plain.tokens, tokens).mean())
    foreign = [f"elsewhere {i}" for i in range(15)]
    bad = replace(good, pathways=gmt(tmp_path / "bad.gmt", seen[:5] + foreign, ["outside", "size"]))
    found = check_pathways(subject(cells, bad), {})
    assert found["outcome"] == WARNING
    assert (found["genes"], found["in_vocabulary"]) == (20, 0.25)
    assert "25% are in the vocabulary" in found["text"]
    assert "most pairs of a set are never trained on" in found["text"]


def test_genes_that_no_cell_shows_are_not_covered(cells: EvaluationCells, tmp_path: Path) -> None:
    genes = cells.tokenizer.vocabulary.genes[:20]
    objective = ObjectiveConfig(pathways=gmt(tmp_path / "sets.gmt", list(genes)), pathway_size=[5, 50])
    hidden = np.isin(cells.plain.tokens, [cells.tokenizer.vocabulary.token_of[gene] for gene in genes])
    others = np.flatnonzero(~hidden)
    lengths = [np.searchsorted(others, stop) for stop in cells.plain.indptr]
    plain = type(cells.plain)(cells.plain.tokens[others], np.array(lengths, np.int64))
    found = check_pathways(subject(replace(cells, plain=plain), objective), {})
    assert (found["in_vocabulary"], found["in_cells"], found["outcome"]) == (1.0, 0.0, WARNING)
    assert "never trained on" not in found["text"]
    assert "The cells show less than 50%" in found["text"]


def test_without_gene_sets_or_with_a_lost_file_coverage_cannot_be_checked(
    cells: EvaluationCells, tmp_path: Path
) -> None:
    assert check_pathways(subject(cells), {})["outcome"] == NOT_DONE
    without = ObjectiveConfig(pathways=gmt(tmp_path / "sets.gmt", ["a", "b"]), gamma=0.0)
    assert check_pathways(subject(cells, without), {})["outcome"] == NOT_DONE
    lost = check_pathways(subject(cells, ObjectiveConfig(pathways=str(tmp_path / "lost.gmt"))), {})
    assert lost["outcome"] == NOT_DONE
    assert "lost.gmt" in lost["text"]
    assert str(tmp_path) not in lost["text"]


def test_gene_sets_that_changed_since_the_training_cannot_be_checked(cells: EvaluationCells, tmp_path: Path) -> None:
    path = tmp_path / "sets.gmt"
    genes = list(cells.tokenizer.vocabulary.genes[:20])
    trained = subject(cells, ObjectiveConfig(pathways=gmt(path, genes), pathway_size=[5, 50]))
    assert check_pathways(trained, {})["outcome"] != NOT_DONE
    gmt(path, genes[:10])
    found = check_pathways(trained, {})
    assert found["outcome"] == NOT_DONE
    assert found["text"].startswith("sets.gmt is not the file of gene sets that the model was trained with (the hash")


def probes(accuracy: float, macro_f1: float) -> dict[str, list[dict[str, object]]]:
    row = {f"{name}_accuracy": figure([accuracy]) for name in ("linear", "knn")}
    row |= {f"{name}_macro_f1": figure([macro_f1]) for name in ("linear", "knn")}
    level = {key: figure([90.0]) for key in row}
    both = ({"scored": "model", **row}, {"scored": "PCA", **level})
    return {"probes": [{"ranks": ranks, **scored} for ranks in RANKS for scored in both]}


def test_accuracy_far_above_macro_f1_is_a_warning_with_pca_beside_it(cells: EvaluationCells) -> None:
    found = check_common_types(subject(cells), probes(97.1, 77.1))
    assert found["outcome"] == WARNING
    assert "by 20.0 points (linear probe) and 20.0 (nearest neighbours), PCA's by 0.0 and 0.0" in found["text"]
    assert check_common_types(subject(cells), probes(90.0, 90.0 - MARGIN))["outcome"] == GOOD
    # Macro-F1 above accuracy is no sign of missed rare types.
    assert check_common_types(subject(cells), probes(50.0, 90.0))["outcome"] == GOOD
    assert check_common_types(subject(cells), {"probes": []})["outcome"] == NOT_DONE
    assert check_common_types(subject(cells), {})["outcome"] == NOT_DONE


def test_every_check_has_an_outcome_and_a_text_of_its_own(cells: EvaluationCells) -> None:
    found = run_checks(subject(cells), probes(90.0, 80.0))
    assert len(found) == len(CHECKS) == len({one["check"] for one in found})
    assert all(one["outcome"] in (GOOD, WARNING, NOT_DONE) and one["text"].endswith(".") for one in found)
