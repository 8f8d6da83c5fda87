"""Which class each cell has, and labels that cannot be learned."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data_shards.errors import DataError
from data_shards.prepare.splits import SplitOptions
from data_shards.rows.lanes import Lanes, validation_order, validation_rows
from data_shards.rows.pool import RowPlan
from data_shards.rows.store_reader import StoreReader
from gm_train.config.schema import TaskConfig
from gm_train.loading.read_classes import read_cell_classes
from gm_train.objective.cell_classes import CellClasses
from tests.support.count_files import draw_counts, write_counts
from tests.support.counts_to_stores import build, read

PLAN = RowPlan(seed=5, lanes=3, pool_blocks=2, group_cells=8, row_length=64, weights={"two": 3})


def store_of(folder: Path, *labels: Any, splits: SplitOptions | None = None) -> Path:
    """Make a store of data sets named one, two, ...; each with the labels of its cells, or None for no label column."""
    files = []
    for number, (name, of_cells) in enumerate(zip(("one", "two", "three"), labels, strict=False)):
        n_cells = 40 if of_cells is None else len(of_cells)
        obs = {"other": np.arange(n_cells)} | ({} if of_cells is None else {"kind": of_cells})
        files.append(write_counts(folder / f"{name}.h5ad", draw_counts(n_cells, 30, number), obs=obs))
    build(folder, files, splits=splits or SplitOptions(by="cell", validation=0.25), top_k=20)
    return folder / "s.zarr"


def classes_of(store: Path, min_cells: int = 1, weights: dict[str, int] | None = None) -> CellClasses:
    return read_cell_classes(StoreReader(store), TaskConfig("classify", "kind", min_cells), weights or {})


def test_each_cell_of_a_row_has_its_own_class(tmp_path: Path) -> None:
    # A label of its own for most cells, so that a shift by one would show.
    names = [[f"{name}{i}" if i % 5 else "shared" for i in range(n)] for name, n in (("one", 90), ("two", 70))]
    store = store_of(tmp_path, *names)
    reader, found = StoreReader(store), classes_of(store)
    tokens_of: dict[str, tuple[int, ...]] = {}
    split_of: dict[str, int] = {}
    for name, labels in zip(("one", "two"), names, strict=True):
        tokens, indptr = read(store, f"{name}/tokens"), read(store, f"{name}/indptr")
        rows = pd.read_parquet(store / name / "obs.parquet")["kind"].astype(str)
        assert sorted(rows) == sorted(labels)
        for i, label in enumerate(rows):
            tokens_of[label] = tuple(tokens[indptr[i] : indptr[i + 1]].tolist())
            split_of[label] = int(read(store, f"{name}/split")[i])
    lanes = Lanes(reader, PLAN, dict.fromkeys(range(PLAN.lanes), (0, 0)))
    seen = set()
    for rows, order in [(lanes.take(4), lanes.order) for _ in range(6)]:
        numbers = found.of(order.blocks(rows.places), rows.cells)
        starts = np.cumsum(rows.lengths) - rows.lengths
        for number, start, length in zip(numbers.tolist(), starts.tolist(), rows.lengths.tolist(), strict=True):
            label = found.classes.names[number]
            if label != "shared":
                assert tokens_of[label] == tuple(rows.tokens[start : start + length].tolist())
                assert split_of[label] == 0
                seen.add(label)
    assert len(seen) > 70
    # The other held-out cells have labels that no training cell has.
    rows = validation_rows(reader, PLAN, 30)
    numbers = found.of(validation_order(reader, PLAN.seed).blocks(rows.places), rows.cells)
    assert set(numbers.tolist()) == {len(found.classes.names), found.classes.names.index("shared")}


def test_classes_are_those_of_obs(tmp_path: Path) -> None:
    kinds = ["b", "a", "c", None, "", "a"]
    store = store_of(tmp_path, pd.Categorical([kinds[i % 6] for i in range(120)]), None)
    found = classes_of(store)
    rows = pd.read_parquet(store / "one/obs.parquet")["kind"].astype(object)
    assert found.classes.names == ("a", "b", "c")
    is_train = read(store, "one/split") == 0
    assert found.classes.n_train == tuple(int(((rows == name) & is_train).sum()) for name in "abc")
    expected = [{"a": 0, "b": 1, "c": 2}.get(kind, -1) if isinstance(kind, str) else -1 for kind in rows]
    assert found.numbers.tolist() == expected + [-1] * 40


def test_numbers_are_labels_too(tmp_path: Path) -> None:
    found = classes_of(store_of(tmp_path, np.arange(60) % 3, (np.arange(60) % 2).astype(float)))
    assert found.classes.names == ("0", "1", "2")


def test_a_class_with_one_cell_is_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = [["a", "b"][i % 2] for i in range(100)]
    store = store_of(tmp_path, labels)
    at_train, at_held = np.flatnonzero(read(store, "one/split") == 0)[0], np.flatnonzero(read(store, "one/split"))[0]
    labels[at_train] = labels[at_held] = "lonely"
    again = tmp_path / "again"
    again.mkdir()
    store = store_of(again, labels)
    with caplog.at_level(logging.WARNING):
        found = classes_of(store, min_cells=2)
    assert "1 of 3 classes, with 1 % of the labelled training cells, are left out" in caplog.text
    assert "fewer than task.min_cells=2: lonely (1)" in caplog.text
    assert found.classes.names == ("a", "b")
    # It is not trained on; held out, it counts as a class that is not known.
    assert found.numbers[at_train] == -1
    assert found.numbers[at_held] == 2


def test_training_cells_without_a_label_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_of(tmp_path, [["a", "b", None][i % 3] for i in range(90)])
    n_train = int((read(store, "one/split")[2::3] == 0).sum())
    with caplog.at_level(logging.WARNING):
        classes_of(store)
    assert f"{n_train} training cells have no label and are not used" in caplog.text


@pytest.mark.parametrize(
    ("labels", "splits", "message"),
    [
        (None, None, r"task.label=kind: .*s.zarr: no such column in obs; it has cell_id, other, source_row"),
        (pd.Categorical([None] * 40, ["a"]), None, "no training cell has a label: name another column"),
        (["a"] * 40, None, "'a' alone has at least task.min_cells=5 training cells, and a classifier needs two"),
        (["a"] * 39 + ["b"], None, r"'a' alone has at least task.min_cells=5 training cells"),
        ([f"c{i}" for i in range(40)], None, r"no class has .* \(too few: c\d+ \(1\), .* and \d+ more\)"),
        (["a", "unknown"] * 20, None, "training cells have the label 'unknown', which `gm-train predict` gives"),
        (["a", "b"] * 20, SplitOptions(by="none"), "no validation cell has one of the 2 labels"),
    ],
)
def test_labels_that_cannot_be_learned(tmp_path: Path, labels: Any, splits: SplitOptions | None, message: str) -> None:
    store = store_of(tmp_path, labels, splits=splits)
    with pytest.raises(DataError, match=message):
        classes_of(store, min_cells=5)


def test_cells_count_as_often_as_their_data_set_comes(tmp_path: Path) -> None:
    one, two = [["a", "b"][i % 2] for i in range(60)], ["only here"] * 30
    store = store_of(tmp_path, one, two)
    n_of = {name: int((read(store, f"{name}/split") == 0).sum()) for name in ("one", "two")}
    assert classes_of(store).classes.names == ("a", "b", "only here")
    weighed = classes_of(store, weights={"one": 2, "two": 0})
    assert weighed.classes.names == ("a", "b")
    assert sum(weighed.classes.n_train) == 2 * n_of["one"]
    # Its training cells are not used; its validation cells are of a class that is not learned.
    assert set(weighed.numbers[60:][read(store, "two/split") == 0].tolist()) == {-1}
    assert set(weighed.numbers[60:][read(store, "two/split") == 1].tolist()) == {2}
