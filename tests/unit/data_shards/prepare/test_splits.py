"""Which cells are held out: whole donors, whole data sets or, only on request, single cells."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from data_shards.errors import DataError
from data_shards.medians.make_medians import make_medians
from data_shards.prepare import make_store, rank_datasets
from data_shards.prepare.splits import SplitOptions, assign_donors, donor_codes, split_by_cell
from data_shards.store import obs_parquet
from data_shards.store.manifest import TEST, TRAIN, VALIDATION
from tests.support.count_files import draw_counts, write_counts
from tests.support.counts_to_stores import build, quiet, read, two_data_sets


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return two_data_sets(tmp_path)


def test_whole_donors_are_held_out_the_same_in_every_data_set(tmp_path: Path, files: list[Path]) -> None:
    manifest = build(tmp_path, files, splits=SplitOptions(validation=0.25, test=0.15))
    of_donor: dict[str, set[int]] = {}
    for entry in manifest.datasets:
        assert entry.split_by == "donor"
        assert entry.donor_key is not None
        assert entry.n_validation > 0
        assert entry.n_test > 0
        obs = pd.read_parquet(tmp_path / "s.zarr" / entry.name / "obs.parquet")
        for donor, split in zip(obs[entry.donor_key], read(tmp_path / "s.zarr", f"{entry.name}/split"), strict=True):
            of_donor.setdefault(donor, set()).add(int(split))
    assert all(len(splits) == 1 for splits in of_donor.values())


def test_a_donor_is_one_donor_however_a_file_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No donor is in two splits, even if its number is int in one file and float or text in another, or some miss."""
    monkeypatch.setattr(obs_parquet, "_BATCH", 16)
    monkeypatch.setattr(rank_datasets, "PART_CELLS", 16)
    number = np.arange(80) % 8
    missing = np.arange(80) < 5  # only in the first batches
    columns = {
        "category": pd.Categorical(np.where(missing, np.nan, number)).rename_categories(range(8)),
        "nullable": pd.array(np.where(missing, None, number), dtype="Int64"),
        "float": np.where(missing, np.nan, number),
        "int": number,
        "text": [None if gone else f"{n}" for gone, n in zip(missing, number, strict=True)],
        "floats": [None if gone else f"{n}.0" for gone, n in zip(missing, number, strict=True)],
    }
    assert columns["category"].categories.dtype == np.int64
    files = [
        write_counts(tmp_path / f"{name}.h5ad", draw_counts(80, 20, seed), obs={"donor": column})
        for seed, (name, column) in enumerate(columns.items())
    ]
    manifest = build(tmp_path, files, splits=SplitOptions(by="donor", validation=0.3))
    held = set()
    for entry in manifest.datasets:
        split = read(tmp_path / "s.zarr", f"{entry.name}/split")
        known = np.ones(80, bool) if entry.name == "int" else ~missing
        assert np.all(split[~known] == TRAIN)
        of_donor = [set(split[known & (number == donor)].tolist()) for donor in range(8)]
        assert all(len(splits) == 1 for splits in of_donor)
        held.add(tuple(min(splits) for splits in of_donor))
    categories = pd.read_parquet(tmp_path / "s.zarr/category/obs.parquet")["donor"]
    assert categories.isna().tolist() == missing.tolist()
    assert categories[~missing].tolist() == [str(n) for n in number[~missing]]
    assert len(held) == 1
    assert {TRAIN, VALIDATION} == {*held.pop()}


def test_names_of_donors(tmp_path: Path) -> None:
    def names(column: pd.Series) -> list[str]:
        codes, found = donor_codes(column)
        return [found[code] for code in codes]

    column = pd.Series([3, 3.0, "3", "3.0", np.float32(3), -2.0, 3.5, "d.0", True, None, np.nan], dtype=object)
    assert names(column) == ["3", "3", "3", "3", "3", "-2", "3.5", "d.0", "True", "", ""]
    # A missing value must not turn a large integer into a float, which cannot hold it.
    pq.write_table(pa.table({"donor": pa.array([2**60 + 1, None])}), tmp_path / "obs.parquet")
    (large,) = obs_parquet.read_column(tmp_path / "obs.parquet", "donor")
    assert names(large) == [str(2**60 + 1), ""]


def test_one_donor_cannot_be_held_out_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_counts(tmp_path / "a.h5ad", draw_counts(20, 10), obs={"donor_id": ["only"] * 20})
    make_medians([path], tmp_path / "m.zarr", say=quiet)
    with monkeypatch.context() as patched:
        patched.setattr(make_store, "rank_datasets", None)  # known before a cell is ranked
        with pytest.raises(DataError, match=r"1 known donors: .*--split-by cell"):
            build(tmp_path, [path], splits=SplitOptions(by="donor"))
    build(tmp_path, [path], splits=SplitOptions(by="donor", validation=0.0))
    # A filter may leave one donor of two.
    counts = draw_counts(20, 10).toarray()
    counts[10:] = 0
    two = write_counts(tmp_path / "b.h5ad", sp.csr_matrix(counts), obs={"donor_id": ["x"] * 10 + ["y"] * 10})
    with pytest.raises(DataError, match=r"1 known donors: .*--split-by cell"):
        build(tmp_path, [two], "x.zarr", splits=SplitOptions(by="donor"))


def test_how_cells_are_held_out_without_donors(tmp_path: Path) -> None:
    path = write_counts(tmp_path / "a.h5ad", draw_counts(200, 10), obs={"donor_id": ["only"] * 200})
    lines: list[str] = []
    # Single cells are held out only on request: otherwise all are training cells, and the report says so.
    (entry,) = build(tmp_path, [path], say=lines.append).datasets
    assert (entry.split_by, entry.donor_key, entry.n_train) == ("none", None, 200)
    assert any("obs does not name two donors, so all are training cells" in line for line in lines)
    (entry,) = build(tmp_path, [path], "c.zarr", splits=SplitOptions(by="cell"), say=lines.append).datasets
    assert (entry.split_by, entry.donor_key, entry.splits["by"]) == ("cell", None, "cell")
    assert 5 < entry.n_validation < 40
    assert any("weaker than by donor" in line for line in lines)
    (entry,) = build(tmp_path, [path], "n.zarr", splits=SplitOptions(by="none")).datasets
    assert (entry.split_by, entry.n_train, entry.n_validation) == ("none", 200, 0)
    assert len(list((tmp_path / "n.zarr/a/split/c").iterdir())) == 1  # a split of zeros is written, not left out
    other = write_counts(tmp_path / "b.h5ad", draw_counts(20, 10))
    with pytest.raises(DataError, match=r"no donor column in obs: name it with --donor-key"):
        build(tmp_path, [other], "x.zarr", splits=SplitOptions(by="donor"))
    with pytest.raises(DataError, match=r"no column 'who' in obs"):
        build(tmp_path, [path], "x.zarr", splits=SplitOptions(donor_key="who"))
    with pytest.raises(DataError, match=r"leave no cells to train on"):
        SplitOptions(validation=0.6, test=0.4)


@given(
    st.dictionaries(st.text("abcd", min_size=1, max_size=3), st.integers(1, 50), min_size=2, max_size=12),
    st.integers(0, 5),
    st.sampled_from([(0.1, 0.0), (0.1, 0.1), (0.3, 0.3)]),
)
def test_donors_train_and_validation_are_never_empty(
    cells: dict[str, int], seed: int, share: tuple[float, float]
) -> None:
    options = SplitOptions(seed=seed, validation=share[0], test=share[1])
    found = assign_donors(Counter(cells), options, {})
    assert found.keys() == cells.keys()
    assert TRAIN in found.values()
    if len(cells) > 1 + (share[1] > 0):
        assert VALIDATION in found.values()
        assert share[1] == 0 or TEST in found.values()
    assert found == assign_donors(Counter(dict(reversed(cells.items()))), options, {})
    one = next(iter(cells))
    assert assign_donors(Counter(cells), options, {one: TEST})[one] == TEST


def test_cells_of_unknown_donor_are_trained_on() -> None:
    assert assign_donors(Counter({"": 90, "a": 5, "b": 5}), SplitOptions(validation=0.5), {})[""] == TRAIN


def test_split_by_cell_is_a_function_of_data_set_row_and_seed() -> None:
    rows = np.arange(10_000)
    split = split_by_cell("a", rows, SplitOptions(validation=0.1, test=0.2))
    assert np.bincount(split) / 10_000 == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    np.testing.assert_array_equal(
        split[5_000:], split_by_cell("a", rows[5_000:], SplitOptions(validation=0.1, test=0.2))
    )
    assert np.any(split != split_by_cell("b", rows, SplitOptions(validation=0.1, test=0.2)))


def test_donors_of_data_sets_that_have_one_each_are_too_few(tmp_path: Path) -> None:
    files = [
        write_counts(tmp_path / f"{name}.h5ad", draw_counts(20, 10, i), obs={"donor_id": [name] * 20})
        for i, name in enumerate("abc")
    ]
    lines: list[str] = []
    with pytest.raises(DataError, match=r"3 known donors, but no data set has two of its own, .*--split-by dataset"):
        build(tmp_path, files, splits=SplitOptions(by="donor"), say=lines.append)
    assert not any("cells kept" in line for line in lines)  # before any is ranked
    # An added data set may have one donor; its cells are training cells.
    build(tmp_path, files[:1], splits=SplitOptions(by="none"))
    (_, added) = build(tmp_path, files[1:2], splits=SplitOptions(by="donor"), add=True).datasets
    assert (added.n_train, added.split_by) == (20, "donor")


def test_whole_data_sets_are_held_out(tmp_path: Path) -> None:
    names = [f"set{i}" for i in range(6)]
    files = [write_counts(tmp_path / f"{name}.h5ad", draw_counts(20, 10, i)) for i, name in enumerate(names)]
    manifest = build(tmp_path, files, splits=SplitOptions(by="dataset", validation=0.3, test=0.2))
    held = {entry.name: (entry.n_train, entry.n_validation, entry.n_test) for entry in manifest.datasets}
    assert sorted(held.values()) == [(0, 0, 20), *[(0, 20, 0)] * 2, *[(20, 0, 0)] * 3]
    assert {entry.split_by for entry in manifest.datasets} == {"dataset"}
    # The split of a data set depends on its name, not on its order among the files.
    again = build(tmp_path, files[::-1], "2.zarr", splits=SplitOptions(by="dataset", validation=0.3, test=0.2))
    assert held == {entry.name: (entry.n_train, entry.n_validation, entry.n_test) for entry in again.datasets}
    with pytest.raises(DataError, match=r"1 data sets: too few to train on some and hold out others for validation: "):
        build(tmp_path, files[:1], "3.zarr", splits=SplitOptions(by="dataset"))
    lines: list[str] = []
    with pytest.raises(DataError, match=r"2 data sets: too few .* for validation and test: use --split-by donor"):
        build(tmp_path, files[:2], "3.zarr", splits=SplitOptions(by="dataset", test=0.2), say=lines.append)
    assert not any("cells kept" in line for line in lines)  # before any is ranked
    two = build(tmp_path, files[:2], "3.zarr", splits=SplitOptions(by="dataset"))
    assert sorted(entry.n_validation for entry in two.datasets) == [0, 20]


def test_a_data_set_of_one_donor_follows_the_one_that_shares_it(tmp_path: Path) -> None:
    """With "auto": its only donor is held out in the other data set, so it is held out here too."""
    many = write_counts(tmp_path / "many.h5ad", draw_counts(60, 10), obs={"donor": [f"d{i % 3}" for i in range(60)]})
    make_medians([many], tmp_path / "m.zarr", say=quiet)
    build(tmp_path, [many], "1.zarr", splits=SplitOptions(validation=0.3))
    obs = pd.read_parquet(tmp_path / "1.zarr/many/obs.parquet")
    (held,) = set(obs["donor"][read(tmp_path / "1.zarr", "many/split") == VALIDATION])
    one = write_counts(tmp_path / "one.h5ad", draw_counts(9, 10), obs={"donor_id": [held] * 9})
    entries = build(tmp_path, [many, one], splits=SplitOptions(validation=0.3)).datasets
    assert [(entry.split_by, entry.n_validation) for entry in entries] == [("donor", 20), ("donor", 9)]
