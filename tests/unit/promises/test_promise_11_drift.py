"""Promise 11, last clause: cells whose own medians drift from the tokenizer's are reported."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.tokens.drift import measure_drift
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import Vocabulary
from gm_train.evaluation.cells import read_cells
from tests.conftest import write_cells


def test_drift_is_the_share_of_frequent_genes_whose_median_is_far_off() -> None:
    medians = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    tokenizer = Tokenizer(Vocabulary("as-is", tuple("abcde")), medians)
    genes = np.repeat(np.arange(5, dtype=np.int32), [200, 200, 100, 99, 0])
    values = medians[genes]
    same = measure_drift("cells", tokenizer, genes, values)
    assert (same.share, same.n_genes, same.common_factor, same.share_beyond) == (0.0, 3, 1.0, 0.0)
    assert same.farthest == ()
    factors = np.array([1.4, 1.6, 1 / 1.6, 100.0, 1.0])
    order = np.random.default_rng(0).permutation(len(genes))
    far = measure_drift("cells", tokenizer, genes[order], (values * factors[genes])[order])
    assert (far.share, far.n_genes) == (pytest.approx(2 / 3), 3)
    # Once the common factor is divided out, only the gene of 1 / 1.6 is far off.
    assert far.common_factor == pytest.approx(1.4)
    assert far.share_beyond == pytest.approx(1 / 3)
    assert far.farthest == (("c", pytest.approx(1 / 1.6 / 1.4)),)
    few = measure_drift("cells", tokenizer, genes[:50], values[:50])
    assert (few.share, few.n_genes, few.common_factor, few.farthest) == (0.0, 0, 1.0, ())


def test_a_factor_that_all_genes_share_changes_no_order_and_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    medians = np.array([1.0, 2.0, 3.0])
    tokenizer = Tokenizer(Vocabulary("as-is", tuple("abc")), medians)
    genes = np.repeat(np.arange(3, dtype=np.int32), 200)
    with caplog.at_level(logging.WARNING):
        shared = measure_drift("cells", tokenizer, genes, 5 * medians[genes])
    assert (shared.share, shared.share_beyond, shared.is_large) == (1.0, 0.0, False)
    assert shared.common_factor == pytest.approx(5.0)
    assert not caplog.records


def test_evaluation_reports_a_file_that_drifts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_cells(tmp_path / "cells.h5ad", 300, 40, seed=3)
    store = tmp_path / "store.zarr"
    make_medians([path], tmp_path / "medians.zarr", say=lambda line: None)
    splits = SplitOptions(by="cell", validation=0.2)
    make_store([path], tmp_path / "medians.zarr", store, splits=splits, say=lambda line: None)
    tokenizer = Tokenizer.load(store)
    with caplog.at_level(logging.WARNING):
        read_cells(store, [path], tokenizer)
    assert not caplog.records
    # A store made with the medians of other cells.
    deep = write_cells(tmp_path / "deep.h5ad", 300, 400, seed=4)
    drifted = tmp_path / "drifted.zarr"
    make_medians([deep], tmp_path / "deep.zarr", say=lambda line: None)
    make_store([path], tmp_path / "deep.zarr", drifted, splits=splits, say=lambda line: None)
    with caplog.at_level(logging.WARNING):
        read_cells(drifted, [path], Tokenizer.load(drifted))
    (record,) = caplog.records
    assert "cells: its medians drift from the tokenizer's: " in record.getMessage()
    with pytest.raises(DataError, match="other medians than the model"):
        read_cells(store, [path], replace(tokenizer, medians=tokenizer.medians * 2))


def test_evaluation_refuses_a_store_without_its_splits(tmp_path: Path) -> None:
    path = write_cells(tmp_path / "cells.h5ad", 60, 30, seed=3)
    store = tmp_path / "store.zarr"
    make_medians([path], tmp_path / "medians.zarr", say=lambda line: None)
    make_store([path], tmp_path / "medians.zarr", store, say=lambda line: None)
    (store / "cells" / "split" / "c" / "0").unlink()
    with pytest.raises(DataError, match=r"cells/split: .*gm-train data verify"):
        read_cells(store, [path], Tokenizer.load(store))
