"""Signals: the run saves at the next step, leaves with the right exit code, and resumes exactly."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gm_train.checkpoint.find import list_checkpoints
from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import history, start, train


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 85), (signal.SIGUSR1, 85), (signal.SIGINT, 1)], ids=lambda value: str(value)
)
def test_a_signal_saves_and_leaves(atlas: Atlas, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """No checkpoint is due for 1,000 steps, but no step is lost."""
    words = ["trainer.max_steps=60", "optim.schedule_steps=60", "checkpoint.every_steps=1000"]
    whole = [*tiny_words(atlas.store, tmp_path / "whole"), *words]
    assert train(whole, tmp_path / "log") == 0
    run = tmp_path / "run"
    command = [*tiny_words(atlas.store, run), *words]
    process = start(command, tmp_path / "log")
    while process.is_alive() and len(history(run)) < 5:
        time.sleep(0.002)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    done = [row["step"] for row in history(run) if "loss" in row]
    assert [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")] == [done[-1]]
    assert done[-1] < 60
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(f"stopped by {number.name} at step {done[-1]} of 60: ")
    assert last.endswith(f"step-{done[-1]:08d}; the same command continues")
    assert train(command, tmp_path / "log") == 0
    assert history(run) == history(tmp_path / "whole")


def spawn(folder: Path, words: list[str], **variables: str) -> subprocess.Popen[bytes]:
    """Start `gm-train fit` in its own process group, in an empty folder, with extra environment variables."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "gm_train.cli", "fit", *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": os.getcwd()} | variables, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("moment", ["training", "starting"])
def test_a_signal_to_the_whole_group_with_loader_workers(atlas: Atlas, tmp_path: Path, moment: str) -> None:
    """srun and scancel signal the workers as well. A signal that comes while the program is starting is not lost."""
    run = tmp_path / "run"
    process = spawn(tmp_path, [*tiny_words(atlas.store, run), "trainer.max_steps=5000", "data.workers=2"])
    while process.poll() is None and not ((run / ".lock").exists() if moment == "starting" else len(history(run)) > 3):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(120) == 85
    assert not list((run / "checkpoints").glob(".*"))
    if moment == "training":
        assert list_checkpoints(run / "checkpoints")[-1].step == history(run)[-1]["step"]


def test_under_slurm_lightning_neither_saves_nor_requeues(atlas: Atlas, tmp_path: Path) -> None:
    """With SLURM's variables set, Lightning writes no checkpoint on a signal, and loads none from the folder.

    The allocation has two tasks, as an interactive one may have: Lightning's own SLURM plugin would refuse one process.
    """
    (tmp_path / "cwd").mkdir()
    foreign = tmp_path / "cwd" / "hpc_ckpt_1.ckpt"
    foreign.write_bytes(b"of another run")
    run = tmp_path / "run"
    variables = {
        "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost",
    }  # fmt: skip
    process = spawn(tmp_path / "cwd", [*tiny_words(atlas.store, run), "trainer.max_steps=5000"], **variables)
    while process.poll() is None and len(history(run)) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(120) == 85
    assert list(tmp_path.rglob("hpc_ckpt*")) == [foreign]
