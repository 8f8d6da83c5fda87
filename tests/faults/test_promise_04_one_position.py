"""Promise 4: a killed run goes on as if nothing had happened, bit for bit."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import Atlas, tiny_words
from tests.faults.runs import history, start, train

STEPS = 40


@pytest.fixture(scope="module")
def words() -> list[str]:
    return [f"trainer.max_steps={STEPS}", "checkpoint.every_steps=3", "trainer.validate_every_steps=5"]


@pytest.fixture(scope="module")
def undisturbed(atlas: Atlas, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train([*tiny_words(atlas.store, folder / "run"), *words], folder / "log") == 0
    return folder / "run"


@pytest.mark.parametrize("seed", range(3))
def test_promise_04_killed_at_random_moments(
    atlas: Atlas, words: list[str], undisturbed: Path, tmp_path: Path, seed: int
) -> None:
    """kill -9 after random steps, plus a random moment: in a step, in a save, in a validation, while starting."""
    rng = random.Random(seed)
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*tiny_words(atlas.store, run), *words]
    kills = 0
    while kills < 5:
        process = start(command, log)
        already = len(history(run))
        target = already + rng.randrange(1, 15)
        while process.is_alive() and len(history(run)) < target:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert kills >= 2
    assert train(command, log) == 0
    assert history(run) == history(undisturbed)
    assert [row["step"] for row in history(run) if "loss" in row] == list(range(1, STEPS + 1))
    assert "resuming" in log.read_text()


def test_promise_04_loader_workers_change_nothing(
    atlas: Atlas, words: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    """Two loader processes, stopped half-way and resumed with three."""
    command = [*tiny_words(atlas.store, tmp_path / "run"), *words]
    half = [*command, "trainer.max_steps=17", f"optim.schedule_steps={STEPS}", "data.workers=2"]
    assert train(half, tmp_path / "log") == 0
    assert train([*command, "data.workers=3"], tmp_path / "log") == 0
    assert history(tmp_path / "run") == history(undisturbed)


def test_promise_04_micro_rows_change_only_the_last_bits(
    atlas: Atlas, words: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    command = [*tiny_words(atlas.store, tmp_path / "run"), *words, "data.micro_rows=1"]
    assert train(command, tmp_path / "log") == 0
    for ours, theirs in zip(history(tmp_path / "run"), history(undisturbed), strict=True):
        assert ours.get("sample_hash") == theirs.get("sample_hash")
        assert ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), abs=1e-5)
