"""Full-transcriptome cells: from counts, gene table and Reactome to an evaluated checkpoint, by the commands."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_shards.counts.count_file import open_counts
from data_shards.store.manifest import Manifest
from gm_train.cli.main import main
from gm_train.run.records import METRICS, read_rows

pytestmark = pytest.mark.slow

GUT, BLOOD = "scp1884_gut_1020.h5ad", "cellxgene_220.h5ad"
SIZE = [
    "data.lanes=4", "data.micro_rows=2", "data.row_length=2048", "model.d_model=32", "model.n_layers=2",
    "model.d_state=16", "model.head_dim=32", "model.norm=pre", "optim.warmup_steps=2", "trainer.max_steps=6",
    "trainer.validate_every_steps=3", "trainer.validation_cells=32", "checkpoint.every_steps=3",
]  # fmt: skip


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def variable_genes(file: Path, n: int) -> list[str]:
    """The n genes with the most variable log counts."""
    with open_counts(file) as counts:
        chunks = [chunk for _, chunk in counts.chunks()]
        names = counts.gene_names
    logs = sp.vstack(chunks).log1p()
    variance = np.asarray(logs.multiply(logs).mean(axis=0) - np.square(logs.mean(axis=0))).ravel()
    return [names[i] for i in np.argsort(-variance)[:n]]


@pytest.fixture(scope="module")
def medians(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "medians.zarr"
    table = real_data / "genes_homo_sapiens.csv.gz"
    run("data", "medians", real_data / GUT, real_data / BLOOD, "--gene-table", table, "--out", out)
    return out


@pytest.mark.parametrize("genes", ["all", "2000 variable"])
def test_two_data_sets_to_an_evaluated_checkpoint(
    real_data: Path, medians: Path, tmp_path: Path, genes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [real_data / GUT, real_data / BLOOD]
    words: list[str | Path] = ["--medians", medians, "--out", tmp_path / "store.zarr", "--top-k", "2048"]
    if genes != "all":
        (tmp_path / "genes.txt").write_text("\n".join(variable_genes(files[0], 2000)) + "\n")
        words += ["--genes", tmp_path / "genes.txt"]
    run("data", "shards", *files, *words)
    run("data", "verify", tmp_path / "store.zarr")
    manifest = Manifest.load(tmp_path / "store.zarr")
    assert manifest.kind == "ensembl"
    assert [entry.name for entry in manifest.datasets] == ["scp1884_gut_1020", "cellxgene_220"]
    assert all(entry.split_by == "donor" for entry in manifest.datasets)
    assert manifest.n_genes == 17_022 if genes == "all" else 1_500 < manifest.n_genes <= 2_000

    run(
        "fit", *SIZE, f"data.store={tmp_path / 'store.zarr'}", f"run.dir={tmp_path / 'run'}",
        f"objective.pathways={real_data / 'reactome.gmt'}", "tracking.mlflow=none",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "sets in use" in printed
    rows = [row for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row]
    assert len(rows) == 6
    assert all(row["l_pathway"] > 0 for row in rows)

    label = "Celltype"
    scored = ["--label", label, "--max-cells", "100", "--mask-seeds", "1", "--tasks", "masked,probes"]
    run("eval", tmp_path / "run", files[0], *scored)
    results = json.loads((tmp_path / "run" / "eval" / "eval.json").read_text())
    assert {row["scored"] for row in results["masked"]} >= {"order control", "frequency", "random weights"}
    assert results["label"]["key"] == label


def test_half_of_a_data_set_shuffled_is_found_cell_by_cell(
    real_data: Path, medians: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with its genes in another order, without names of cells and as integers by gene. One changed count shows."""
    files = [real_data / GUT, real_data / BLOOD]
    store = tmp_path / "store.zarr"
    run("data", "shards", *files, "--medians", medians, "--out", store)
    rng = np.random.default_rng(1)
    gut = ad.read_h5ad(files[0])
    rows, genes = rng.permutation(1020)[:510], rng.permutation(gut.n_vars)
    counts = sp.csc_matrix(gut.X[rows][:, genes].astype(np.int64))
    obs = pd.DataFrame(index=[f"x{i}" for i in range(510)])
    half = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=gut.var_names[genes]))
    half.write_h5ad(tmp_path / "half.h5ad")
    run("data", "lookup", store, tmp_path / "half.h5ad", "--out", tmp_path / "found.csv")
    assert "found      510 of 510 (100.0%): " in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "found.csv")
    assert set(found["data_set"]) == {"scp1884_gut_1020"}
    assert found["row"].tolist() == rows.tolist()
    assert set(found["split"]) == {"training", "validation"}
    half.X.data[7] += 1
    half.write_h5ad(tmp_path / "changed.h5ad")
    run("data", "lookup", store, tmp_path / "changed.h5ad")
    assert "found      509 of 510 (99.8%): " in capsys.readouterr().out
