"""`gm-train doctor` on one rank, through the command line."""

import fcntl
import importlib.util
import json
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from gm_train.cli.main import main
from tests.conftest import Atlas, tiny_words, write_gene_sets
from tests.support.launch_cases import executable
from tests.support.random_stores import flip_byte

GB = 10**9


@pytest.fixture(autouse=True)
def nowhere_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name)


def lines(out: str) -> dict[str, str]:
    """Return verdict and text of each check by its name; further lines of a check are appended."""
    found: dict[str, str] = {}
    for line in out.splitlines():
        name = line[6:19].strip()
        if line.startswith(("ok    ", "WARN  ", "FAIL  ")):
            found[name] = found.get(name, "") + f"{line[:6].strip()} {line[19:]}\n"
    return found


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, str]]:
    code = main(["doctor", *words])
    return code, lines(capsys.readouterr().out)


def test_without_a_configuration(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, found = doctor(capsys)
    assert code == 0
    assert set(found) == {"ranks", "software", "device", "kernel", "cores", "strategies", "slurm"}
    assert f"torch {torch.__version__}" in found["software"]
    assert "mamba-ssm" in found["software"]
    assert "gloo" in found["device"] or "NCCL" in found["device"]
    assert found["kernel"] == "ok torch (auto: mamba_ssm is for GPUs)\n" or torch.cuda.is_available()
    assert "ddp, fsdp2" in found["strategies"]
    assert "ok no sbatch here" in found["slurm"]


def test_sbatch_without_a_cluster(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "sbatch", "#!/bin/sh\necho 'no controller' >&2\nexit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    code, found = doctor(capsys)
    assert code == 0
    assert found["slurm"].startswith("WARN nothing can be submitted from here: `sbatch --version`: no controller")


def test_all_is_well_and_left_as_it_was(capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path) -> None:
    run, sets = tmp_path / "new" / "run", write_gene_sets(tmp_path / "sets.gmt")
    code, found = doctor(capsys, *tiny_words(atlas.store, run), f"objective.pathways={sets}")
    assert code == 0, found
    assert all(text.startswith("ok") for text in found.values())
    of_machine, of_run = {"ranks", "software", "device", "kernel", "cores"}, {"strategy", "memory", "space", "run dir"}
    assert of_machine | of_run | {"store", "pathways"} == set(found)
    assert "8 gene sets" in found["pathways"]
    assert "191 cells" in found["store"]
    assert not run.parent.exists()


def test_a_run_directory_is_left_as_it_was(capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    assert doctor(capsys, *tiny_words(atlas.store, tmp_path))[0] == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_run_directory_that_cannot_be_written(capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, found = doctor(capsys, *tiny_words(atlas.store, tmp_path / "file" / "run"))
    assert code == 1
    assert "FAIL" in found["run dir"]
    assert "cannot be written (Not a directory): choose another run.dir" in found["run dir"]
    assert found["store"].startswith("ok")  # the other checks still run


def test_run_directory_that_is_in_use(capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        file.write(json.dumps({"host": "host-a", "pid": 41, "job": None}))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        code, found = doctor(capsys, *tiny_words(atlas.store, tmp_path))
    assert code == 0
    assert found["run dir"].startswith("WARN")
    assert "another process is training into it (host host-a, pid 41)" in found["run dir"]
    assert doctor(capsys, *tiny_words(atlas.store, tmp_path))[1]["run dir"].startswith("ok")


def test_too_little_space(
    capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(GB, GB - 100_000, 100_000))
    code, found = doctor(capsys, *tiny_words(atlas.store, tmp_path))
    assert code == 1
    assert found["space"].startswith("FAIL 100 kB free, two checkpoints take ")
    assert "or choose another" in found["space"]


def test_too_little_memory_for_a_pass(
    capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report says what a rank needs and has, and a way out that works."""
    words = [*tiny_words(atlas.store, tmp_path / "run"), "data.rows_per_lane=64", "data.micro_rows=256"]
    found = doctor(capsys, *words)[1]["memory"]
    assert re.match(r"ok a rank needs [\d.]+ MB of [\d.]+ GB by the plan: weights and their state [\d.]+ [kM]B", found)
    for module in ("cluster.doctor.check_memory", "gm_train.plan.this_device"):
        monkeypatch.setattr(f"{module}.device_memory", lambda ranks: 40_000_000)
    code, report = doctor(capsys, *words)
    assert code == 1
    assert "a CPU has 0.0368 GB for it (92% of 0.04 GB): set data.micro_rows=" in report["memory"]
    rows = re.search(r"data\.micro_rows=\d+", report["memory"])
    assert rows is not None
    code, report = doctor(capsys, *words, rows[0])
    assert code == 0
    assert report["memory"].startswith("ok ")


def test_memory_that_is_not_planned(capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path) -> None:
    code, found = doctor(capsys, *tiny_words(atlas.store, tmp_path / "run"), "model.arch=transformer")
    assert code == 0
    assert found["memory"].startswith("ok not planned: model.arch=transformer")


def test_no_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found = doctor(capsys, *tiny_words(tmp_path / "none.zarr", tmp_path / "run"))
    assert code == 1
    assert found["store"].startswith(f"FAIL {tmp_path / 'none.zarr'}: no such store: make it")
    assert "over 25,426 tokens, as published" in found["space"]


def test_damaged_store(capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path) -> None:
    store = shutil.copytree(atlas.store, tmp_path / "store.zarr")
    shard = store / "second" / "tokens" / "c" / "0"
    flip_byte(shard, 0)
    code, found = doctor(capsys, *tiny_words(store, tmp_path / "run"))
    assert code == 1
    assert "cannot be read" in found["store"]
    assert "gm-train data verify" in found["store"]


def test_gene_sets_that_are_not_there(capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path) -> None:
    words = [*tiny_words(atlas.store, tmp_path / "run"), f"objective.pathways={tmp_path / 'none.gmt'}"]
    code, found = doctor(capsys, *words)
    assert code == 1
    assert "set objective.pathways to a .gmt file" in found["pathways"]


def test_missing_deepspeed(
    capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "deepspeed" else find(name))
    code, found = doctor(capsys, *tiny_words(atlas.store, tmp_path / "run"), "trainer.strategy=zero2")
    assert code == 1
    assert "trainer.strategy=zero2 needs DeepSpeed, which is not installed: pip install" in found["strategy"]
    assert "not zero2, zero3" in doctor(capsys)[1]["strategies"]


def test_a_check_that_breaks_stops_no_other(
    capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.doctor.examine.check_run_dir", lambda *rest: 1 / 0)
    code, found = doctor(capsys, *tiny_words(atlas.store, tmp_path / "run"))
    assert code == 1
    assert found["run dir"] == "FAIL unexpected ZeroDivisionError: division by zero\n"
    assert found["store"].startswith("ok")


def test_more_workers_than_cores(
    capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    code, found = doctor(capsys, *tiny_words(atlas.store, tmp_path / "run"), "data.workers=2")
    assert code == 0
    assert found["cores"].startswith("WARN 1 a rank: data.workers=2 asks for 3 a rank")
    assert "cluster.cpus_per_task=3" in found["cores"]


def test_ranks_that_do_not_meet(
    capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    words = tiny_words(atlas.store, tmp_path / "run")
    code, found = doctor(capsys, *words)
    assert code == 1
    assert "rank 0 of 2" in found["rendezvous"]
    assert "MASTER_ADDR expected, but not set" in found["rendezvous"]
    assert found["store"].startswith("ok")  # rank 0 can check this alone
    monkeypatch.setenv("RANK", "1")
    assert main(["doctor", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("FAIL  rendezvous   rank 1 of 2")


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "model.d_modle=3"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "--timeout=0"])
    assert "greater than 0" in capsys.readouterr().err
