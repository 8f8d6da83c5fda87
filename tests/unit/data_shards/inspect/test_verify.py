"""`gm-train data verify`: the damage that it reports, chunk by chunk, with several shards of several chunks."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from data_shards.inspect.verify import find_damage
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.store import writer
from data_shards.store.arrays import StoredArray
from data_shards.store.manifest import Manifest
from data_shards.store.writer import content_hash
from gm_train.cli.main import main
from tests.support.count_files import draw_counts, write_counts
from tests.support.http_store import serve
from tests.support.random_stores import flip_byte

SMALL = {
    "tokens": ("<u2", 64, 256), "indptr": ("<i8", 8, 32), "values": ("<f4", 64, 256), "split": ("|u1", 8, 16),
    "cell_hash": ("<u8", 8, 16),
}  # fmt: skip


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with values whose arrays have several shards of several chunks."""
    path = write_counts(tmp_path / "one.h5ad", draw_counts(120, 30, 1))
    make_medians([path], tmp_path / "m.zarr", say=lambda line: None)
    with monkeypatch.context() as patched:
        patched.setattr(writer, "LAYOUT", SMALL)
        make_store([path], tmp_path / "m.zarr", tmp_path / "s.zarr", keep_values=True, say=lambda line: None)
    assert len(list((tmp_path / "s.zarr/one/tokens/c").iterdir())) > 5
    return tmp_path / "s.zarr"


def change(path: Path, array: str, index: int, value: float) -> None:
    """Change an element and the manifest's hash with it, so that only a check of the elements can find the change."""
    group: Any = zarr.open_group(path, mode="r+")["one"]
    content = np.asarray(group[array][:])
    content[index] = value
    with zarr.config.set({"array.write_empty_chunks": True}):
        group[array][:] = content
    names = ("tokens", "indptr", "split", "values")
    hashes = [hashlib.sha256(np.ascontiguousarray(group[name][:]).tobytes()).hexdigest() for name in names]
    manifest = Manifest.load(path)
    (entry,) = manifest.datasets
    replace(manifest, datasets=(replace(entry, content_hash=content_hash(*hashes)),)).save(path)


def test_an_intact_store(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_damage(made) == []
    assert main(["data", "verify", str(made)]) == 0
    assert capsys.readouterr().out == f"{made}: all is as it was written\n"


def starts(path: Path) -> np.ndarray:
    return np.asarray(zarr.open_group(path, mode="r")["one/indptr"][:])  # type: ignore[index]


def test_values_that_rise_within_a_cell(made: Path) -> None:
    values = np.asarray(zarr.open_group(made, mode="r")["one/values"][:])  # type: ignore[index]
    first = starts(made)
    # Values rise where cells begin, which need not be where shards begin.
    assert np.flatnonzero(np.diff(values) > 0).size > 50
    index = 256  # the first element of a shard, in the middle of a cell
    assert index not in first
    change(made, "values", index, values[index - 1] * 2)
    (problem,) = find_damage(made)
    assert problem == f"{made}/one/values: element 256 is above the one before in its cell"


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (-1, "-1"), (np.nan, "nan"), (np.inf, "inf")])
def test_invalid_values(made: Path, value: float, text: str) -> None:
    change(made, "values", 300, value)
    (problem,) = find_damage(made)
    assert problem == f"{made}/one/values: element 300 is {text}: expected a number above zero"


@pytest.mark.parametrize(
    ("array", "index", "value", "message"),
    [
        ("tokens", 700, 1, "tokens: a token from 512 on is outside the vocabulary"),
        ("tokens", 700, 40, "tokens: a token from 512 on is outside the vocabulary"),
        ("indptr", 0, 1, "indptr: begins at 1, not at 0"),
        ("indptr", 33, 0, "indptr: cell 32 has -"),
        ("indptr", 32, 2**40, "indptr: cell 31 has 1,0"),
        ("indptr", -1, 2**40, "indptr: cell 119 has 1,0"),
        ("split", 5, 7, "split: its splits are not those of the manifest"),
    ],
)
def test_invalid_elements(made: Path, array: str, index: int, value: int, message: str) -> None:
    change(made, array, index, value)
    problems = find_damage(made)
    assert problems[0].startswith(f"{made}/one/{message}")
    # Arrays that depend on the bounds of cells are not reported as well.
    assert all(problem.startswith(f"{made}/one/{array}") for problem in problems)


def test_elements_after_a_damaged_shard_of_indptr_are_checked(made: Path) -> None:
    """The first element after the shard is not reported; a wrong one further on is, by its cell."""
    file = made / "one/indptr/c/1"
    change(made, "indptr", 100, 0)
    file.write_bytes(b"")
    unreadable, wrong = find_damage(made)
    assert unreadable.startswith(f"{file}: cannot be read at all")
    assert wrong.startswith(f"{made}/one/indptr: cell 99 has ")


def test_cell_hashes_that_are_not_what_was_written(made: Path) -> None:
    """They are not part of the content, so their own SHA-256 in the manifest must find a change."""
    change(made, "cell_hash", 40, 1)
    assert find_damage(made) == [f"{made}/one/cell_hash: is not what was written: its SHA-256 differs"]
    flip_byte(made / "one/cell_hash/c/3", 1)
    (problem,) = find_damage(made)
    assert problem.startswith(f"{made}/one/cell_hash/c/3: chunk 1 is damaged (")


def test_an_indptr_that_ends_early(made: Path) -> None:
    last = int(starts(made)[-1])
    change(made, "indptr", -1, last - 1)
    assert find_damage(made) == [f"{made}/one/indptr: ends at {last - 1:,}, not at the {last:,} tokens"]


def test_each_damaged_chunk_is_named(made: Path) -> None:
    folder = made / "one/tokens/c"
    damaged = []
    for shard, chunk in (("1", 0), ("1", 2), ("3", 0)):
        flip_byte(folder / shard, chunk)
        damaged.append(f"{folder / shard}: chunk {chunk} is damaged (")
    (folder / "2").unlink()
    (folder / "4").write_bytes(b"")
    problems = find_damage(made)
    for start in damaged:
        assert sum(problem.startswith(start) for problem in problems) == 1
    assert any(problem.startswith(f"{folder}/2: is missing (elements 512 to 768)") for problem in problems)
    assert any(problem.startswith(f"{folder}/4: cannot be read at all (") for problem in problems)
    assert len(problems) == len(damaged) + 2
    assert not any("gm-train data verify" in problem for problem in problems)


def test_few_shards_are_read_ahead(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, pending, most = StoredArray.begin, set(), 0

    def counted(self: StoredArray, start: int, stop: int, *more: Any, **named: Any) -> Any:
        nonlocal most
        wait = begin(self, start, stop, *more, **named)
        pending.add((self.path, start))
        most = max(most, len(pending))

        def done() -> Any:
            pending.remove((self.path, start))
            return wait()

        return done

    monkeypatch.setattr(StoredArray, "begin", counted)
    assert find_damage(made) == []
    assert 1 < most < 7


def test_a_store_at_a_url(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(tmp_path) as served:
        assert main(["data", "verify", f"{served.url}/s.zarr"]) == 0
        assert main(["data", "inspect", f"{served.url}/s.zarr"]) == 0
        assert f"  cells        {Manifest.load(made).n_cells:,}\n" in capsys.readouterr().out
        (made / "one/values/c/2").unlink()
        assert find_damage(f"{served.url}/s.zarr") == [
            f"{served.url}/s.zarr/one/values/c/2: is missing (elements 512 to 768)"
        ]
