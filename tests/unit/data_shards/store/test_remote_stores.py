"""Remote stores read like local ones; errors name the address, after a bounded number of tries."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.files import location
from data_shards.files.location import Retries, Url, location_of
from data_shards.inspect.store_summary import StoreSummary
from data_shards.inspect.verify import find_damage
from data_shards.rows.lanes import Lanes
from data_shards.rows.pool import RowPlan
from data_shards.rows.store_reader import StoreReader
from data_shards.store.manifest import Manifest
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.cli.main import main
from tests.conftest import Atlas, tiny_words
from tests.support.http_store import Served, serve
from tests.support.random_stores import flip_byte
from tests.support.training_runs import history

PLAN = RowPlan(seed=5, lanes=2, pool_blocks=4, group_cells=16, row_length=96)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "RETRIES", Retries(count=3, initial_s=0.001, longest_s=0.002))


@pytest.fixture(scope="module")
def server(atlas: Atlas) -> Iterator[Served]:
    with serve(atlas.store.parent) as served:
        yield served


@pytest.fixture
def served(server: Served, atlas: Atlas) -> Served:
    """The server, reset: it answers range requests, does not fail, and has counted no requests."""
    server.ranges, server.failures = True, 0
    server.requests.clear()
    return server


def url(served: Served, atlas: Atlas) -> str:
    return f"{served.url}/{atlas.store.name}"


def read_all(store: str | Path) -> list[bytes]:
    reader = StoreReader(store)
    blocks = reader.read(range(sum(reader.manifest.n_blocks)))
    return [part.tobytes() for block in blocks for part in (block.tokens, block.indptr, block.split)]


def test_a_whole_store_is_the_same(atlas: Atlas, served: Served) -> None:
    address = url(served, atlas)
    assert Manifest.load(address) == Manifest.load(atlas.store) == Manifest.load(f"{address}/")
    assert read_all(address) == read_all(atlas.store)
    remote, local = Tokenizer.load(location_of(address)), Tokenizer.load(atlas.store)
    assert remote.hash == local.hash
    assert np.array_equal(remote.medians, local.medians)
    at = {0: (0, 0), 1: (3, 2)}
    a, b = Lanes(StoreReader(address), PLAN, at), Lanes(StoreReader(atlas.store), PLAN, at)
    for _ in range(10):
        assert np.array_equal(a.take(3).tokens, b.take(3).tokens)
    assert StoreSummary.read(address).describe()[1:] == StoreSummary.read(atlas.store).describe()[1:]
    assert find_damage(address) == []


def test_commands_take_addresses(
    atlas: Atlas, served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training from a server equals training from the folder; inspect, verify and eval work, too."""
    address = url(served, atlas)
    histories = []
    for name, store in (("local", str(atlas.store)), ("remote", address)):
        words = [*tiny_words(Path("unused"), tmp_path / name), f"data.store={store}", "trainer.max_steps=4"]
        assert main(["fit", *words, "checkpoint.every_steps=4"]) == 0
        histories.append(history(tmp_path / name))
    assert histories[0] == histories[1]
    assert f"store: {address}\n" in (tmp_path / "remote" / "config.yaml").read_text()
    capsys.readouterr()
    assert main(["data", "inspect", address]) == 0
    assert capsys.readouterr().out.startswith(address)
    assert main(["data", "verify", address]) == 0
    assert f"{address}: all is as it was written" in capsys.readouterr().out
    files = [str(file) for file in atlas.files]
    words = ["--max-cells", "30", "--mask-seeds", "1", "--tasks", "masked"]
    assert main(["eval", str(tmp_path / "remote"), *files, *words]) == 0
    assert (tmp_path / "remote" / "eval" / "eval.json").is_file()


def test_damage_is_named_by_its_address(atlas: Atlas, served: Served, tmp_path: Path) -> None:
    copy = atlas.store.parent / "copy.zarr"
    shutil.copytree(atlas.store, copy)
    try:
        shard = copy / "first" / "tokens" / "c" / "0"
        flip_byte(shard, 0)
        (copy / "second" / "obs.parquet").unlink()
        (copy / "second" / "split" / "c" / "0").unlink()
        address = f"{served.url}/copy.zarr"
        problems = "\n".join(find_damage(address))
    finally:
        shutil.rmtree(copy)
    for fragment in ("first/tokens/c/0", "second/obs.parquet: is missing", "second/split/c/0: is missing"):
        assert f"{address}/{fragment}" in problems
    assert len(problems.splitlines()) == 3


def test_a_server_that_fails_for_a_moment_is_asked_again(atlas: Atlas, served: Served) -> None:
    whole = read_all(atlas.store)
    for failures in (1, 2, 3):
        served.failures = failures
        assert read_all(url(served, atlas)) == whole
        assert served.failures == 0


@pytest.mark.parametrize("when", ["manifest", "tokenizer", "metadata", "tokens"])
def test_a_server_that_never_recovers_is_named(atlas: Atlas, served: Served, when: str) -> None:
    address = url(served, atlas)
    reader = StoreReader(address, cache_bytes=0)
    if when == "tokens":
        reader.read([0])
    served.requests.clear()
    served.failures = -1
    with pytest.raises(DataError, match="check the address and the server") as caught:
        {
            "manifest": lambda: Manifest.load(address),
            "tokenizer": lambda: Tokenizer.load(location_of(address)),
            "metadata": lambda: reader.read([0]),
            "tokens": lambda: reader.read([sum(reader.manifest.n_blocks) - 1]),
        }[when]()
    assert str(caught.value).startswith(address)
    assert "500" in str(caught.value)
    # One request for a file is sent four times; a block has up to four reads at once.
    assert len(served.requests) == 4 if when in ("manifest", "tokenizer") else 4 <= len(served.requests) <= 16


def test_no_server_no_store_and_no_such_scheme(served: Served) -> None:
    with pytest.raises(DataError, match="check the address and the server"):
        Manifest.load("http://127.0.0.1:9/store.zarr")
    with pytest.raises(DataError, match="not a token store"):
        Manifest.load(f"{served.url}/nothing.zarr")
    with pytest.raises(DataError, match="http://, https://, s3://, gs://"):
        Manifest.load("ftp://host/store.zarr")
    with pytest.raises(DataError, match="names no folder"):
        location_of("s3://")


def test_a_server_without_ranges_is_told_apart(atlas: Atlas, served: Served) -> None:
    served.ranges = False
    with pytest.raises(DataError, match="does not answer range requests") as caught:
        read_all(url(served, atlas))
    assert url(served, atlas) in str(caught.value)


def test_nothing_is_asked_for_twice(atlas: Atlas, served: Served) -> None:
    """Neither a chunk in the cache nor the index of a shard is requested again."""
    reader = StoreReader(url(served, atlas))
    blocks = range(sum(reader.manifest.n_blocks))
    reader.read(blocks)
    served.requests.clear()
    reader.read(blocks)
    assert served.requests == []


def test_a_long_file_is_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "_PIECE", 100)
    for size in (0, 1, 99, 100, 101, 200, 350):
        (tmp_path / f"f{size}").write_bytes(np.random.default_rng(size).bytes(size))
    with serve(tmp_path) as served:
        for file in tmp_path.iterdir():
            assert Url(f"{served.url}/{file.name}").sha256() == hashlib.sha256(file.read_bytes()).hexdigest()


def test_words_that_are_urls_and_words_that_are_paths() -> None:
    assert location_of("runs/store.zarr") == Path("runs/store.zarr")
    assert str(location_of("https://host/a/store.zarr/")) == "https://host/a/store.zarr"
    assert str(location_of("s3://bucket/store.zarr") / "first" / "tokens") == "s3://bucket/store.zarr/first/tokens"
    assert location_of("gs://bucket/a/b").parent == Url("gs://bucket/a")
