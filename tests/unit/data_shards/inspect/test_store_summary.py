"""`gm-train data inspect`: its numbers against the arrays, and its picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from matplotlib.image import imread

from data_shards.inspect.store_summary import StoreSummary
from gm_train.cli.data.store_picture import draw_store
from gm_train.cli.main import main
from tests.conftest import Atlas


def test_numbers_are_those_of_the_cells(atlas: Atlas) -> None:
    summary = StoreSummary.read(atlas.store)
    group = zarr.open_group(atlas.store, mode="r")
    cells = []
    for name, lengths in zip(("first", "second"), summary.lengths, strict=True):
        own = np.diff(np.asarray(group[f"{name}/indptr"][:]))  # type: ignore[index]
        assert lengths.tolist() == np.bincount(own, minlength=49).tolist()
        tokens = np.asarray(group[f"{name}/tokens"][:])  # type: ignore[index]
        cells += np.split(tokens, own.cumsum()[:-1])
    n_tokens = np.array([len(cell) for cell in cells])
    assert summary.longest == n_tokens.max()
    shares, n_cells = summary.gene_shares()
    # A small store is read as a whole.
    assert n_cells == len(cells) == 191
    expected = np.sort([np.mean([gene + 2 in cell for cell in cells]) for gene in range(summary.manifest.n_genes)])
    np.testing.assert_allclose(shares, expected[::-1])
    padded, packed = summary.fill(96)
    assert padded == pytest.approx(n_tokens.mean() / 96, rel=0.01)
    # Best fit decreasing comes close to full rows.
    assert 0.9 < packed <= 1
    text = "\n".join(summary.describe())
    assert f"tokens/cell  mean {n_tokens.mean():,.0f}, median {int(np.median(n_tokens)):,}" in text
    assert f"padding each cell to that would leave {1 - n_tokens.mean() / n_tokens.max():.1%}" in text
    for entry in summary.manifest.datasets:
        assert f"splits     {entry.n_train:,} training, {entry.n_validation:,} validation, 0 test" in text
        assert entry.content_hash in text


def test_picture(atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "store.png"
    assert main(["data", "inspect", str(atlas.store), "--plot", str(path)]) == 0
    assert f"{path}: picture of the store" in capsys.readouterr().out
    height, width, _ = imread(path).shape
    assert (width, height) == (1725, 1110)
    assert main(["data", "inspect", str(atlas.store), "--plot", str(path / "store.png")]) == 1
    assert "store.png/store.png: cannot be written" in capsys.readouterr().err


def test_picture_of_many_data_sets(atlas: Atlas, tmp_path: Path) -> None:
    """More data sets than there are colours and bars, with names that are shortened to the same text."""
    summary = StoreSummary.read(atlas.store)
    first, second = summary.manifest.datasets
    n = 20
    manifest = replace(
        summary.manifest,
        datasets=(first, second, *(replace(second, name=f"{'a' * 30}{i}{'b' * 30}") for i in range(n))),
    )
    many = StoreSummary(summary.path, summary.manifest, summary.lengths * (n // 2 + 1))
    object.__setattr__(many, "manifest", manifest)
    object.__setattr__(many, "gene_shares", summary.gene_shares)
    draw_store(many, tmp_path / "many.png")
    assert np.std(imread(tmp_path / "many.png")) > 0.05
