"""Promise 11: pretraining and evaluation rank by one function, with ties and hashes that never change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import zarr

from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.store.manifest import VALIDATION
from data_shards.tokens.rank import Ranker
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.cli.main import main
from gm_train.evaluation import cells as cells_module
from gm_train.evaluation import chosen_cells
from gm_train.evaluation.cells import read_cells
from tests.conftest import Atlas, tiny_words, write_cells
from tests.support.training_runs import train


def stored(store: Path, name: str) -> tuple[np.ndarray, ...]:
    return tuple(zarr.open_array(store / name / array, mode="r")[:] for array in ("tokens", "indptr", "split"))


def test_promise_11_plain_tokens_splits_and_labels_are_those_of_the_store(
    atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells_module, "_ROWS", 37)
    monkeypatch.setattr(chosen_cells, "_SPLITS", 29)
    tokenizer = Tokenizer.load(atlas.store)
    cells = read_cells(atlas.store, atlas.files, tokenizer, "cell_type")
    assert cells.plain.n_cells == 191
    at = 0
    for which, path in enumerate(atlas.files):
        source = ad.read_h5ad(path)
        tokens, indptr, split = stored(atlas.store, path.stem)
        for row in range(len(split)):
            assert cells.plain.cell(at).tolist() == tokens[indptr[row] : indptr[row + 1]].tolist()
            assert (cells.data_set[at], cells.row[at]) == (which, row)
            assert cells.held_out[at] == (split[row] == VALIDATION)
            at += 1
        here = cells.data_set == which
        assert cells.labels is not None
        assert cells.labels[here].tolist() == source.obs["cell_type"].tolist()
        counts = source.X.toarray()
        known = source.var_names.isin(tokenizer.vocabulary.genes)
        expected = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)[:, known]
        np.testing.assert_allclose(cells.expression[here].toarray(), expected, rtol=1e-5)


def test_promise_11_dithered_tokens_are_those_of_a_dithered_tokenizer_and_the_same_genes(atlas: Atlas) -> None:
    tokenizer = Tokenizer.load(atlas.store)
    cells = read_cells(atlas.store, atlas.files, replace(tokenizer, dither=True))
    plain = read_cells(atlas.store, atlas.files, tokenizer)
    assert np.array_equal(cells.plain.tokens, plain.plain.tokens)
    assert not np.array_equal(cells.plain.tokens, cells.dithered.tokens)
    assert np.array_equal(cells.plain.lengths, cells.dithered.lengths)
    assert cells.labels is None


def test_promise_11_stores_and_evaluation_call_the_same_ranking(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("the one ranking")

    path = write_cells(tmp_path / "cells.h5ad", 30, 20, seed=3)
    make_medians([path], tmp_path / "medians.zarr", say=lambda line: None)
    monkeypatch.setattr(Ranker, "rank", called)
    with pytest.raises(RuntimeError, match="the one ranking"):
        make_store([path], tmp_path / "medians.zarr", tmp_path / "store.zarr", say=lambda line: None)
    with pytest.raises(RuntimeError, match="the one ranking"):
        read_cells(atlas.store, atlas.files, Tokenizer.load(atlas.store))


def test_promise_11_zero_counts_are_no_tokens_and_ties_stand_in_the_order_of_the_store(tmp_path: Path) -> None:
    """Every count is 1, so that all genes of a cell with equal medians tie."""
    counts = (np.random.default_rng(0).random((40, 30)) < 0.4).astype(np.float32)
    counts[:, 0] = 1
    path = tmp_path / "ones.h5ad"
    ad.AnnData(counts).write_h5ad(path)
    orders = []
    for name in ("a", "b"):
        make_medians([path], tmp_path / f"{name}-medians.zarr", say=lambda line: None)
        make_store([path], tmp_path / f"{name}-medians.zarr", tmp_path / f"{name}.zarr", say=lambda line: None)
        tokens, indptr, _ = stored(tmp_path / f"{name}.zarr", "ones")
        assert np.diff(indptr).tolist() == counts.sum(1).tolist()
        orders.append(tokens.tolist())
    assert orders[0] == orders[1]
    # The hash covers the cell, too. With a hash of the gene alone, the same genes would always come first.
    assert len({orders[0][start] for start in indptr[:-1]}) > 5


def test_promise_11_a_checkpoint_carries_its_tokenizer_and_refuses_another(
    atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train([*tiny_words(atlas.store, run), "trainer.max_steps=4"], tmp_path / "log") == 0
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    assert Tokenizer.load(checkpoint / "tokenizer").hash == Tokenizer.load(atlas.store).hash
    other = write_cells(tmp_path / "other.h5ad", 60, 80, seed=9)
    make_medians([other], tmp_path / "medians.zarr", say=lambda line: None)
    make_store([other], tmp_path / "medians.zarr", tmp_path / "other.zarr", top_k=48, say=lambda line: None)
    assert main(["fit", *tiny_words(tmp_path / "other.zarr", run), "trainer.max_steps=8"]) == 1
    assert "medians" in capsys.readouterr().err
