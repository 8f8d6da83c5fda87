"""`--add`: data sets added to a store are ranked in the same way as its own."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_shards.counts.filters import CellFilter
from data_shards.errors import DataError
from data_shards.inspect.verify import find_damage
from data_shards.medians.make_medians import make_medians
from data_shards.medians.medians_file import Medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store.manifest import TEST, TRAIN, VALIDATION, Manifest
from tests.support.count_files import draw_counts, write_counts
from tests.support.counts_to_stores import build, contents, quiet, read, two_data_sets


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return two_data_sets(tmp_path)


def add(folder: Path, files: list[Path], **options: object) -> Manifest:
    return make_store(files, None, folder / "s.zarr", add=True, **{"say": quiet, **options})  # type: ignore[arg-type]


def test_what_is_added_is_what_would_have_been_made_at_once(tmp_path: Path, files: list[Path]) -> None:
    """The stores are equal byte for byte, given the same medians and order and no shared donors."""
    whole = build(tmp_path, files, "whole.zarr", splits=SplitOptions(by="none"), keep_values=True)
    build(tmp_path, files[:1], splits=SplitOptions(by="none"), keep_values=True)
    before = contents(tmp_path / "s.zarr")
    manifest = add(tmp_path, files[1:], splits=SplitOptions(by="none"))
    assert manifest == whole == Manifest.load(tmp_path / "s.zarr")
    after = contents(tmp_path / "s.zarr")
    assert after == contents(tmp_path / "whole.zarr")
    assert {name for name, found in before.items() if after[name] != found} == {"zarr.json"}
    assert find_damage(tmp_path / "s.zarr") == []
    assert not list(tmp_path.glob(".*"))


def test_a_link_is_followed_to_where_the_store_and_the_medians_are(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link leads to another disk, and a rename across disks fails."""
    make_medians(files[:1], tmp_path / "m.zarr", say=quiet)
    build(tmp_path, files[:1])
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("m.zarr", "s.zarr"):
        (tmp_path / name).rename(disk / name)
        (tmp_path / name).symlink_to(disk / name)
    rename = Path.rename

    def within(self: Path, target: Path) -> Path:
        if self.parent.resolve().is_relative_to(disk) != target.parent.resolve().is_relative_to(disk):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", within)
    add(tmp_path, files[1:])
    make_medians(files[1:], tmp_path / "m.zarr", add=True, say=quiet)
    assert find_damage(disk / "s.zarr") == []
    assert Medians.load(disk / "m.zarr").datasets == ("one", "two")
    assert all((tmp_path / name).is_symlink() for name in ("m.zarr", "s.zarr"))
    assert not [*tmp_path.glob(".*"), *disk.glob(".*")]


def test_donors_that_the_store_has_keep_their_split(tmp_path: Path) -> None:
    def cells(name: str, donors: list[str], seed: int) -> Path:
        return write_counts(tmp_path / f"{name}.h5ad", draw_counts(len(donors), 12, seed), obs={"donor_id": donors})

    first = cells("first", [f"d{i % 6}" for i in range(60)], 1)
    alone = cells("alone", ["solo"] * 10, 2)  # one donor, so all of its cells are training cells
    splits = SplitOptions(validation=0.3, test=0.2)
    make_medians([first, alone], tmp_path / "m.zarr", say=quiet)
    build(tmp_path, [first, alone], splits=splits)
    held = {}
    obs = pd.read_parquet(tmp_path / "s.zarr/first/obs.parquet")
    for donor, split in zip(obs["donor_id"], read(tmp_path / "s.zarr", "first/split"), strict=True):
        held[donor] = int(split)
    assert set(held.values()) == {TRAIN, VALIDATION, TEST}
    more = cells("more", [*[f"d{i % 6}" for i in range(30)], *["solo"] * 5, *[f"e{i % 3}" for i in range(30)]], 3)
    manifest = add(tmp_path, [more], splits=SplitOptions(validation=0.5, seed=1))
    assert manifest.datasets[-1].split_by == "donor"
    obs = pd.read_parquet(tmp_path / "s.zarr/more/obs.parquet")
    found = pd.Series(read(tmp_path / "s.zarr", "more/split")).groupby(obs["donor_id"].to_numpy()).agg(set)
    assert {donor: found[donor] for donor in held} == {donor: {split} for donor, split in held.items()}
    assert found["solo"] == {TRAIN}
    # A donor that the store holds out is also held out in a data set where it is alone, by "donor" and by "auto".
    (one,) = (donor for donor, split in held.items() if split == TEST)
    for name, by in (("asked", "donor"), ("auto", "auto")):
        lone = cells(name, [one] * 7, 4)
        assert add(tmp_path, [lone], splits=SplitOptions(by=by, test=0.2)).datasets[-1].n_test == 7


def test_an_add_that_was_killed_when_all_was_there_is_named(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_medians(files[:1], tmp_path / "m.zarr", say=quiet)
    build(tmp_path, files[:1])

    def add_medians(files: list[Path]) -> None:
        make_medians(files, tmp_path / "m.zarr", add=True, say=quiet)

    rmtree = shutil.rmtree

    def unless_all(path: Path, ignore_errors: bool = False) -> None:
        if path.suffix != ".work":  # as if killed before the work folder is removed
            rmtree(path, ignore_errors)

    three = write_counts(tmp_path / "three.h5ad", draw_counts(9, 20, 3))
    for name, command in (("s", lambda files: add(tmp_path, files)), ("m", add_medians)):
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", unless_all)
            command(files[1:])
        left = tmp_path / f".{name}.zarr.work"
        assert left.exists()
        with pytest.raises(
            DataError, match=rf"has a data set 'two' already.* {left} was left by .*, it has been added"
        ):
            command(files[1:])
        command([three])
        assert not left.exists()


def test_donors_that_were_not_kept_are_not_known(tmp_path: Path, files: list[Path]) -> None:
    make_medians(files, tmp_path / "m.zarr", say=quiet)
    build(tmp_path, files[:1], splits=SplitOptions(by="cell", donor_key="donor_id"), obs_columns=["cell_type"])
    lines: list[str] = []
    add(tmp_path, files[1:], say=lines.append)
    assert any("one: its donors are not known, since column 'donor_id' of obs was not kept" in line for line in lines)
    assert find_damage(tmp_path / "s.zarr") == []


def test_whole_data_sets_keep_their_split(tmp_path: Path) -> None:
    files = [write_counts(tmp_path / f"set{i}.h5ad", draw_counts(20, 10, i)) for i in range(6)]
    splits = SplitOptions(by="dataset", validation=0.3)
    make_medians(files, tmp_path / "m.zarr", say=quiet)
    before = build(tmp_path, files[:4], splits=splits)
    after = add(tmp_path, files[4:], splits=splits)
    assert after.datasets[:4] == before.datasets
    assert sum(entry.n_validation for entry in after.datasets) == 40


def test_each_data_set_says_how_it_was_made(tmp_path: Path, files: list[Path]) -> None:
    make_medians(files, tmp_path / "m.zarr", say=quiet)
    build(tmp_path, files[:1], cells=CellFilter(min_genes=2), splits=SplitOptions(seed=3))
    manifest = add(
        tmp_path, files[1:], cells=CellFilter(min_counts=4), obs_columns=["tissue"], splits=SplitOptions(by="cell"),
        min_mapped=0.2,
    )  # fmt: skip
    one, two = manifest.datasets
    assert (one.filters["min_genes"], two.filters["min_genes"]) == (2, 0)
    assert (one.filters["min_counts"], two.filters["min_counts"]) == (0, 4)
    assert (one.obs_columns, two.obs_columns) == (None, ["tissue"])
    assert (one.splits["by"], one.splits["seed"], two.splits["by"]) == ("auto", 3, "cell")
    assert (one.min_mapped, two.min_mapped) == (0.5, 0.2)
    assert (one.split_by, two.split_by) == ("donor", "cell")


def test_blocks_are_those_of_the_whole_store(tmp_path: Path) -> None:
    small = write_counts(tmp_path / "small.h5ad", draw_counts(70, 20))
    large = write_counts(tmp_path / "large.h5ad", draw_counts(3000, 20, 1))
    make_medians([small, large], tmp_path / "m.zarr", say=quiet)
    assert build(tmp_path, [small]).block_cells == 1
    assert add(tmp_path, [large]).block_cells == 32


def test_what_the_store_does_not_take_is_refused_and_leaves_it_alone(tmp_path: Path, files: list[Path]) -> None:
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(f"g{i:04d}" for i in range(15)))
    make_medians(files, tmp_path / "m.zarr", say=quiet)
    build(tmp_path, files[:1], top_k=9, genes_file=genes)
    before = contents(tmp_path / "s.zarr")
    other = tmp_path / "other.txt"
    other.write_text("g0001\n")
    for options, message in (
        ({"top_k": 10}, r"made with another --top-k \(its own: 9\)"),
        ({"dither": True}, r"made with another --dither"),
        ({"keep_values": True}, r"made with another --keep-values"),
        ({"genes_file": other}, r"made with another --genes"),
        ({"deny_file": other}, r"made with another --deny-genes \(its own: none\)"),
    ):
        with pytest.raises(DataError, match=message):
            add(tmp_path, files[1:], **options)
    with pytest.raises(DataError, match=r"has a data set 'one' already"):
        add(tmp_path, files[:1])
    with pytest.raises(DataError, match=r"no such store"):
        make_store(files[1:], None, tmp_path / "none.zarr", add=True, say=quiet)
    make_medians(files[1:], tmp_path / "o.zarr", say=quiet)
    with pytest.raises(DataError, match=r"o\.zarr: not the medians that .* was made with: leave out --medians"):
        make_store(files[1:], tmp_path / "o.zarr", tmp_path / "s.zarr", add=True, say=quiet)
    assert contents(tmp_path / "s.zarr") == before
    # The store's own options and medians are accepted.
    make_store(
        files[1:], tmp_path / "m.zarr", tmp_path / "s.zarr", add=True, top_k=9, genes_file=genes, say=quiet
    )  # fmt: skip
    assert np.diff(read(tmp_path / "s.zarr", "two/indptr")).max() <= 9
