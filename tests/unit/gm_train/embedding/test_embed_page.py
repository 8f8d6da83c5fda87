"""The commands and the Python of docs/embed.md run as they stand."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

from gm_train.cli.main import main
from gm_train.embedding.embed import embed
from gm_train.embedding.embed_file import EmbedOptions
from gm_train.model.pooling import POOLS
from tests.conftest import Atlas

PAGE = Path(__file__).parents[4] / "docs" / "embed.md"


def test_the_page_runs(run_dir: Path, atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny run, and small cells, stand where the page has those of an atlas."""
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    first, second = (
        shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (gm-train .*)$", text, re.MULTILINE)
    )
    shutil.copytree(run_dir, "runs/atlas")
    Path("runs/atlas/checkpoints/step-00000004").rename(second[1])
    cells = ad.read_h5ad(atlas.files[1])
    cells.write_h5ad("cells.h5ad")
    cells.write_zarr("cells.zarr")
    assert main(first) == main(second) == 0
    ranked = ad.read_zarr("embedded.zarr")
    np.testing.assert_array_equal(ranked.obsm["X_genemamba"], embed("runs/atlas", cells, pool="rank"))
    assert ranked.varm["X_genemamba_genes"].shape == (cells.n_vars, 32)

    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    np.testing.assert_array_equal(names["vectors"], names["cells"].obsm["X_genemamba"])
    assert names["cells"].obsm["X_umap"].shape == (cells.n_obs, 2)


def test_the_page_names_what_is_written_and_every_pooling(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    text = PAGE.read_text()
    assert main(["embed", str(run_dir), str(atlas.files[1]), str(tmp_path / "out.h5ad")]) == 0
    record = ad.read_h5ad(tmp_path / "out.h5ad").uns["genemamba"]
    assert all(re.search(rf"^\| `{pool}`", text, re.MULTILINE) for pool in POOLS)
    assert f"| `{EmbedOptions().pool}` (default) |" in text
    described = re.findall(r'`(dropped|drift)\["(\w+)"\]`', text)
    assert len(described) == 3
    assert all(name in record[part] for part, name in described)
    factor, cells_at_most = record["drift"]["factor"], record["drift"]["cells_at_most"]
    assert f"by more than a factor of {factor:g}" in text
    assert f"at most {cells_at_most:,} cells" in text
