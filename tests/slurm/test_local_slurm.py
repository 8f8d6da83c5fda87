"""The SLURM of `make slurm` runs, signals, requeues and loses jobs like a production one, and leaves nothing behind."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.local_slurm import LocalSlurm, main
from data_shards.errors import DataError
from tests.slurm.conftest import Slurm, poll

TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2")
WAITS = """
import os, signal, sys, time
def leave(number, frame):
    print("task", os.environ["SLURM_PROCID"], "got", signal.Signals(number).name, flush=True)
    time.sleep(0.5)  # srun reports one code for all: no task may be cut off
    sys.exit(85)
signal.signal(signal.SIGUSR1, leave)
print("ready", flush=True)
time.sleep(60)
"""
Script = Callable[[str], Path]


@pytest.fixture
def script(tmp_path: Path, slurm: Slurm) -> Iterator[Script]:
    """Write a batch script whose output goes to `out` beside it; all jobs are ended after the test."""

    def write(body: str) -> Path:
        path = tmp_path / "job.sh"
        head = f"#!/bin/bash\n#SBATCH --output={tmp_path}/out --open-mode=append\ncd {tmp_path}\n"
        path.write_text(head + body)
        (tmp_path / "waits.py").write_text(WAITS)
        return path

    yield write
    slurm.scancel("--partition=debug")
    poll(lambda: not slurm.cluster.run("squeue", "--noheader"), 60, lambda: slurm.cluster.run("squeue"))


def output(folder: Path) -> str:
    return (folder / "out").read_text() if (folder / "out").is_file() else ""


def wait_for(folder: Path, text: str, times: int = 1) -> None:
    poll(lambda: output(folder).count(text) >= times, 30, lambda: f"no {text!r} x {times} in: {output(folder)}")


def test_tasks_of_two_nodes(slurm: Slurm, script: Script, tmp_path: Path) -> None:
    job = slurm.sbatch(
        *TWO_BY_TWO, script("srun bash -c 'echo $SLURM_PROCID $SLURM_NODEID $SLURM_LOCALID $SLURMD_NODENAME'")
    )
    assert slurm.wait(job) == "COMPLETED", output(tmp_path)
    assert sorted(output(tmp_path).splitlines()) == ["0 0 0 n1", "1 0 1 n1", "2 1 0 n2", "3 1 1 n2"]


def test_signal_reaches_the_tasks_and_not_the_script(slurm: Slurm, script: Script, tmp_path: Path) -> None:
    job = slurm.sbatch(
        *TWO_BY_TWO, script(f"trap 'echo script got USR1' USR1\nsrun {sys.executable} waits.py\necho code $?\n")
    )
    wait_for(tmp_path, "ready", 4)
    assert slurm.state(job) == "RUNNING"
    slurm.scancel("--signal=USR1", job)
    slurm.wait(job)
    lines = output(tmp_path).splitlines()
    assert sorted(line for line in lines if "got" in line) == [f"task {rank} got SIGUSR1" for rank in range(4)]
    assert "code 85" in lines


def test_requeue_starts_the_job_again(slurm: Slurm, script: Script, tmp_path: Path) -> None:
    job = slurm.sbatch(*TWO_BY_TWO, script("echo run ${SLURM_RESTART_COUNT:-0}\n[ -e second ] || sleep 60\n"))
    wait_for(tmp_path, "run 0")
    (tmp_path / "second").touch()
    slurm.scontrol("requeue", str(job))
    slurm.start_now(job)
    wait_for(tmp_path, "run 1")
    assert slurm.wait(job) == "COMPLETED"
    assert slurm.field(job, "Restarts") == "1"


def test_lost_node_requeues_its_job(slurm: Slurm, script: Script, tmp_path: Path) -> None:
    job = slurm.sbatch(
        *TWO_BY_TWO, script("echo run ${SLURM_RESTART_COUNT:-0}\n[ -e second ] || srun sleep 60\necho end\n")
    )
    wait_for(tmp_path, "run 0")
    # Seven processes: the script, srun with its helper, and two tasks on each node.
    poll(lambda: len(slurm.processes(job)) >= 7, 20, lambda: str(slurm.processes(job)))
    (tmp_path / "second").touch()
    slurm.kill_node("n2")
    slurm.scontrol("update", "NodeName=n2", "State=DOWN", "Reason=test")
    slurm.revive_node("n2")
    slurm.start_now(job)
    wait_for(tmp_path, "run 1")
    assert slurm.wait(job) == "COMPLETED"


@pytest.mark.parametrize("words", [["--gpus-per-node=2"], ["--gres=gpu:2"], ["--cpus-per-task=8", "--mem=32G"]])
def test_scripts_can_ask_for_gpus_and_memory_that_do_not_exist(slurm: Slurm, words: list[str]) -> None:
    slurm.cluster.run("sbatch", "--test-only", *words, *TWO_BY_TWO, "--wrap=true")
    with pytest.raises(DataError, match="configuration is not available"):
        slurm.cluster.run("sbatch", "--test-only", "--gpus-per-node=3", *TWO_BY_TWO, "--wrap=true")


def test_down_leaves_nothing(slurm_installed: None, short_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No job that ignores signals, and nothing of a cluster whose programs were killed."""
    options = ["--dir", str(short_folder)]
    cluster = LocalSlurm(short_folder)
    try:
        assert main(["up", *options]) == 0
        assert f"export SLURM_CONF={short_folder}/slurm.conf" in capsys.readouterr().out
        stubborn = "trap '' TERM; touch started; while :; do sleep 1; done"
        cluster.run("sbatch", "--nodes=2", "--output=/dev/null", f"--chdir={short_folder}", f"--wrap={stubborn}")
        poll((short_folder / "started").exists, 30, lambda: cluster.run("squeue"))
        pids = {name: cluster.pid(name) for name in cluster.commands()}
        assert main(["up", *options]) == 0
        assert "was up already" in capsys.readouterr().out
        assert pids == {name: cluster.pid(name) for name in cluster.commands()}

        # If one program was killed, `up` keeps the others and the job. If the controller was killed, it starts afresh.
        os.kill(pids["n2"] or 0, signal.SIGKILL)
        poll(lambda: main(["status", *options]) == 1, 20, lambda: "n2 is still there")
        assert main(["up", *options]) == 0
        assert pids["slurmctld"] == cluster.pid("slurmctld")
        assert cluster.run("squeue", "--noheader", "--format=%T").split() == ["RUNNING"]
        for name in ("munged", "slurmctld", "n1"):
            cluster.stop(name, [signal.SIGKILL])
        assert main(["up", *options]) == 0
        assert not cluster.run("squeue", "--noheader")

        cluster.run("sbatch", "--nodes=2", "--output=/dev/null", "--wrap=srun sleep 60")
        assert main(["down", *options]) == 0
        assert not cluster.processes()
        assert all(cluster.pid(name) is None for name in cluster.commands())
        capsys.readouterr()
        assert main(["down", *options]) == 0
        assert "was not up" in capsys.readouterr().out
    finally:
        cluster.down()


def test_errors_of_up_name_the_cause(
    slurm_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    monkeypatch.setattr("cluster.local_slurm.LONGEST_FOLDER", 4096)
    assert main(["up", "--dir", str(tmp_path / "mine")]) == 1
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").is_file()

    monkeypatch.setattr("cluster.local_slurm.LONGEST_FOLDER", 10)
    assert main(["up", "--dir", str(tmp_path / "new")]) == 1
    assert "too long" in capsys.readouterr().err

    monkeypatch.setattr("cluster.local_slurm.PATH", "")
    assert main(["up", "--dir", str(tmp_path / "new")]) == 1
    assert "apt-get install -y --no-install-recommends slurm-wlm munge" in capsys.readouterr().err
