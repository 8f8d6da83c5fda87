"""`gm-train doctor` on two gloo ranks: one report, also if the ranks see different files or one of them fails."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Atlas, tiny_words, write_cells, write_gene_sets
from tests.support.doctor_ranks import run_doctor

Doctor = Callable[..., tuple[list[int | None], str, str]]


def environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    return own | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Doctor:
    """Run the doctor on two ranks; see `run_doctor`."""
    return partial(run_doctor, tmp_path_factory.mktemp("doctor"))


def line_of(out: str, name: str) -> str:
    found = [line for line in out.splitlines() if line[6:19].strip() == name]
    assert len(found) == 1, out
    return found[0]


def test_two_local_ranks_make_one_report(atlas: Atlas, tmp_path: Path) -> None:
    run, sets = tmp_path / "run", write_gene_sets(tmp_path / "sets.gmt")
    command = [sys.executable, "-m", "gm_train.cli", "doctor", *tiny_words(atlas.store, run)]
    done = subprocess.run(
        [*command, "trainer.devices=2", f"objective.pathways={sets}"],
        env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "13 ok, 0 WARN, 0 FAIL"
    assert all(line.startswith("ok ") for line in lines), done.stdout
    assert line_of(done.stdout, "ranks").endswith(" 0-1")
    assert "2 on 1 node" in line_of(done.stdout, "ranks")
    assert "written and read by 2 ranks" in line_of(done.stdout, "run dir")
    assert "alike on 2 ranks" in line_of(done.stdout, "store")
    assert "bus bandwidth; latency" in line_of(done.stdout, "all-reduce")
    assert not run.exists()


def test_without_a_configuration(on_two_ranks: Doctor) -> None:
    codes, out, _ = on_two_ranks()
    assert codes == [0, 0]
    assert "33.6 MB in" in line_of(out, "all-reduce")


def test_ranks_that_see_different_files(atlas: Atlas, tmp_path: Path, on_two_ranks: Doctor) -> None:
    """Each rank has its own run directory and gene sets; the stores are equal copies."""
    for rank in range(2):
        (tmp_path / f"{rank}.zarr").symlink_to(atlas.store)
    write_gene_sets(tmp_path / "0.gmt")
    write_gene_sets(tmp_path / "1.gmt").open("a").write("more\tof them\tgene0001\tgene0002\n")
    words = tiny_words(tmp_path / "{rank}.zarr", tmp_path / "run-{rank}")
    codes, out, err = on_two_ranks(*words, f"objective.pathways={tmp_path}/{{rank}}.gmt")
    assert codes == [1, 1], out + err
    assert line_of(out, "store").startswith("ok")
    assert "is not the same folder everywhere" in line_of(out, "run dir")
    assert "FAIL" in line_of(out, "pathways")
    assert "the ranks see different files" in line_of(out, "pathways")
    assert not list(tmp_path.glob("run-*"))


def test_a_store_that_one_rank_does_not_see(atlas: Atlas, tmp_path: Path, on_two_ranks: Doctor) -> None:
    (tmp_path / "0.zarr").symlink_to(atlas.store)
    codes, out, _ = on_two_ranks(*tiny_words(tmp_path / "{rank}.zarr", tmp_path / "run"))
    assert codes == [1, 1]
    assert "FAIL  store        rank 1 on " in out
    assert f"{tmp_path / '1.zarr'}: no such store" in line_of(out, "store")
    assert "put it on a file system that every node sees" in line_of(out, "store")
    assert line_of(out, "run dir").startswith("ok")
    assert line_of(out, "all-reduce").startswith("ok")


def test_a_copy_of_the_store_with_other_tokens(atlas: Atlas, tmp_path: Path, on_two_ranks: Doctor) -> None:
    (tmp_path / "0.zarr").symlink_to(atlas.store)
    copy = shutil.copytree(atlas.store, tmp_path / "1.zarr")
    # The chunks are undamaged and their checksums right, but they are those of the other data set.
    shutil.rmtree(copy / "second" / "tokens")
    shutil.copytree(copy / "first" / "tokens", copy / "second" / "tokens")
    codes, out, _ = on_two_ranks(*tiny_words(tmp_path / "{rank}.zarr", tmp_path / "run"))
    assert codes == [1, 1]
    assert "0.zarr/second: the same block has different hashes" in line_of(out, "store")


def test_a_run_directory_that_one_rank_cannot_write(atlas: Atlas, tmp_path: Path, on_two_ranks: Doctor) -> None:
    (tmp_path / "run-1").touch()
    codes, out, _ = on_two_ranks(*tiny_words(atlas.store, tmp_path / "run-{rank}"))
    assert codes == [1, 1]
    assert "FAIL  run dir      rank 1 on " in out
    assert "File exists): choose another run.dir" in line_of(out, "run dir")
    assert not (tmp_path / "run-0").exists()


@pytest.mark.parametrize(
    ("weird", "name", "level", "fragment", "code"),
    [
        ("old", "software", "WARN", "torch differs: ", 0),
        ("sleeps", "all-reduce", "FAIL", "no result in 3 s: GLOO_SOCKET_IFNAME", 1),
        ("miscounts", "all-reduce", "FAIL", "sums over all ranks are wrong", 1),
    ],
)
def test_a_rank_that_does_something_wrong(
    weird: str, name: str, level: str, fragment: str, code: int, on_two_ranks: Doctor
) -> None:
    codes, out, err = on_two_ranks(weird=weird)
    assert codes == [code, code], out + err
    assert line_of(out, name).startswith(level)
    assert fragment in line_of(out, name)
    assert out.splitlines()[-1].split("; ")[0].endswith(f"{code} FAIL")


def test_a_rank_that_dies_is_not_waited_for(atlas: Atlas, tmp_path: Path, on_two_ranks: Doctor) -> None:
    start = time.monotonic()
    codes, out, _ = on_two_ranks(*tiny_words(atlas.store, tmp_path / "run"), weird="dies")
    assert codes == [1, 9]
    assert "another rank is gone" in out
    assert time.monotonic() - start < 50  # less than --timeout


def test_a_rank_that_never_comes(atlas: Atlas, tmp_path: Path, on_two_ranks: Doctor) -> None:
    codes, out, _ = on_two_ranks(*tiny_words(atlas.store, tmp_path / "run"), weird="dies before")
    assert codes == [1, 9]
    assert "1/2 clients joined" in line_of(out, "rendezvous")
    assert line_of(out, "store").startswith("ok")


def test_ranks_that_do_not_divide_the_lanes(atlas: Atlas, tmp_path: Path, on_two_ranks: Doctor) -> None:
    codes, out, _ = on_two_ranks(*tiny_words(atlas.store, tmp_path / "run"), "data.lanes=3", "data.micro_rows=1")
    assert codes == [1, 1]
    assert "2 ranks: do not divide data.lanes=3" in line_of(out, "ranks")


def test_another_store_on_one_rank(atlas: Atlas, tmp_path: Path, on_two_ranks: Doctor) -> None:
    from data_shards.medians.make_medians import make_medians
    from data_shards.prepare.make_store import make_store
    from data_shards.prepare.splits import SplitOptions

    cells = write_cells(tmp_path / "other.h5ad", 60, 80, seed=5)
    make_medians((cells,), tmp_path / "medians.zarr", say=lambda line: None)
    make_store(
        (cells,), tmp_path / "medians.zarr", tmp_path / "1.zarr", top_k=48,
        splits=SplitOptions(by="cell", validation=0.2), say=lambda line: None,
    )  # fmt: skip
    (tmp_path / "0.zarr").symlink_to(atlas.store)
    codes, out, _ = on_two_ranks(*tiny_words(tmp_path / "{rank}.zarr", tmp_path / "run"))
    assert codes == [1, 1]
    assert "the ranks see stores of different hashes" in line_of(out, "store")
