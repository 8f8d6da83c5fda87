"""Real cells of the whole transcriptome: a model of a few steps embeds them, in both formats and in any chunks."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from data_shards.files.atomic import hash_path
from gm_train.cli.main import main
from gm_train.embedding import token_chunks
from gm_train.embedding.embed import embed
from gm_train.model.pooling import POOLS
from tests.support.equal_cells import assert_same_cells

pytestmark = pytest.mark.slow

GUT, BLOOD = "scp1884_gut_1020.h5ad", "cellxgene_220.h5ad"
SIZE = [
    "data.lanes=4", "data.micro_rows=2", "data.row_length=512", "model.d_model=32", "model.n_layers=2",
    "model.d_state=16", "model.head_dim=32", "model.norm=pre", "optim.warmup_steps=2", "trainer.max_steps=4",
    "trainer.validate_every_steps=4", "trainer.validation_cells=32", "checkpoint.every_steps=4", "tracking.mlflow=none",
]  # fmt: skip


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def run_dir(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    gut, table = real_data / GUT, real_data / "genes_homo_sapiens.csv.gz"
    run("data", "medians", gut, "--gene-table", table, "--out", folder / "medians.zarr")
    run("data", "shards", gut, "--medians", folder / "medians.zarr", "--out", folder / "s.zarr", "--top-k", "256")
    run("fit", *SIZE, f"data.store={folder / 's.zarr'}", f"run.dir={folder / 'run'}")
    return folder / "run"


def test_real_cells_are_embedded_whole(
    run_dir: Path, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gut = real_data / GUT
    before = hash_path(gut)
    run("embed", run_dir, gut, tmp_path / "gut.h5ad", "--genes")
    run("embed", run_dir, gut, tmp_path / "gut.zarr")
    assert hash_path(gut) == before
    assert "of the model's" in capsys.readouterr().out
    written, expected = ad.read_h5ad(tmp_path / "gut.h5ad"), ad.read_h5ad(gut)
    vectors, record = written.obsm.pop("X_genemamba"), written.uns.pop("genemamba")
    del written.varm["X_genemamba_genes"]
    assert_same_cells(written, expected)
    assert vectors.shape == (1020, 32)
    assert not np.isnan(vectors).any()
    assert record["drift"]["share_of_genes"] == 0  # the medians are those of these cells
    assert record["drift"]["genes_compared"] > 1_000
    np.testing.assert_array_equal(ad.read_zarr(tmp_path / "gut.zarr").obsm["X_genemamba"], vectors)

    taken = np.random.default_rng(0).permutation(1020)[:150]
    monkeypatch.setattr(token_chunks, "CHUNK_CELLS", 37)
    for pool in POOLS:
        whole = vectors if pool == "mean" else embed(run_dir, gut, pool=pool)
        np.testing.assert_allclose(embed(run_dir, expected[taken], pool=pool), whole[taken], rtol=0, atol=1e-6)


def test_cells_of_another_laboratory_map_by_the_table_of_the_checkpoint(run_dir: Path, real_data: Path) -> None:
    vectors = embed(run_dir, real_data / BLOOD)
    assert vectors.shape == (220, 32)
    assert not np.isnan(vectors).any()
