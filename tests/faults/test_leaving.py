"""Signals: the run saves at the next step, says so in its exit code, and goes on exactly."""

import os
import signal
import time
from pathlib import Path

import pytest

from gm_train.checkpoint import list_checkpoints
from tests.conftest import Atlas, tiny_words
from tests.faults.runs import history, start, train


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 85), (signal.SIGUSR1, 85), (signal.SIGINT, 1)], ids=lambda value: str(value)
)
def test_a_signal_saves_and_leaves(atlas: Atlas, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """No checkpoint is due for 1,000 steps, and still no step is lost."""
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
    assert train(command, tmp_path / "log") == 0
    assert history(run) == history(tmp_path / "whole")


def test_under_slurm_nothing_of_lightnings_own_requeue_happens(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a task's variables set, a signal leaves no file of Lightning's that another run could load."""
    for key, value in {
        "SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    run = tmp_path / "run"
    command = [*tiny_words(atlas.store, run), "trainer.max_steps=2000", "optim.schedule_steps=60"]
    process = start([*command], tmp_path / "log")
    while process.is_alive() and len(history(run)) < 3:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGUSR1)
    process.join()
    assert process.exitcode == 85
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert not list(Path.cwd().glob("hpc_ckpt*"))
