"""Stores whose cells are ranked for a model, with its genes and medians."""

from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.files.location import location_of
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.store.manifest import Manifest
from data_shards.tokens.tokenizer import Tokenizer
from tests.support.count_files import draw_counts, write_counts
from tests.support.counts_to_stores import build, quiet


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_counts(tmp_path / "cells.h5ad", draw_counts(60, 20), obs={"donor_id": ["x", "y"] * 30})


@pytest.fixture
def tokenizer(tmp_path: Path, cells: Path) -> Tokenizer:
    """Of a model that was trained on other cells."""
    folder = tmp_path / "trained"
    folder.mkdir()
    other = write_counts(folder / "other.h5ad", draw_counts(50, 20, 1), obs={"donor_id": ["x", "y"] * 25})
    make_medians([other], folder / "m.zarr", say=quiet)
    build(folder, [other], top_k=12)
    return Tokenizer.load(location_of(folder / "s.zarr"))


@pytest.mark.parametrize("options", [{}, {"top_k": 12}])
def test_the_cells_are_ranked_by_the_models_tokenizer(
    tmp_path: Path, cells: Path, tokenizer: Tokenizer, options: dict[str, int]
) -> None:
    make_store([cells], None, tmp_path / "x.zarr", like=tokenizer, say=quiet, **options)  # type: ignore[arg-type]
    assert Manifest.load(tmp_path / "x.zarr").tokenizer_hash == tokenizer.hash
    make_medians([cells], tmp_path / "m.zarr", say=quiet)
    assert build(tmp_path, [cells], top_k=12).tokenizer_hash != tokenizer.hash


def test_options_that_the_model_decides(tmp_path: Path, cells: Path, tokenizer: Tokenizer) -> None:
    genes = tmp_path / "genes.txt"
    genes.write_text("g0001\n")
    for options, named in (
        ({"top_k": 8}, "--top-k 8"),
        ({"dither": True}, "--dither True"),
        ({"genes_file": genes}, "--genes"),
        ({"deny_file": genes, "top_k": 8}, "--top-k 8, --deny-genes"),
    ):
        message = f"^{named} with --like: the model decides this .--top-k 12, no --dither, its own genes.: leave it out"
        with pytest.raises(DataError, match=message):
            make_store([cells], None, tmp_path / "x.zarr", like=tokenizer, say=quiet, **options)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "genes.txt", "trained"]
