"""The 700 blood cells in scanpy's wheel, as cells of an evaluation."""

import importlib.util
from pathlib import Path

import pytest

from data_shards.counts.count_options import CountOptions
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.evaluation.cells import EvaluationCells, read_cells


def read_blood_cells(folder: Path, max_cells: int = 2_000) -> EvaluationCells:
    """Make a store in a folder, with up to 512 genes a cell and a fifth of the cells held out, and read its cells.

    Args:
        folder: for the medians and `store.zarr`.
        max_cells: largest number of cells to read.
    """
    spec = importlib.util.find_spec("scanpy")
    if spec is None or spec.origin is None:
        pytest.skip("scanpy is not installed: its wheel contains the cells")
    path = Path(spec.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    options = CountOptions(raw=True, counts_from="log1p")
    make_medians([path], folder / "medians.zarr", options, say=lambda line: None)
    splits = SplitOptions(by="cell", validation=0.2)
    medians, store = folder / "medians.zarr", folder / "store.zarr"
    make_store([path], medians, store, options, top_k=512, splits=splits, say=lambda line: None)
    return read_cells(store, [path], Tokenizer.load(store), "bulk_labels", max_cells)
