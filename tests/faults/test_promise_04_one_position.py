"""Promise 4: a killed run resumes as if nothing had happened, bit for bit."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import Atlas, tiny_words, write_gene_sets
from tests.support.training_runs import history, start, train

STEPS = 40


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    sets = write_gene_sets(tmp_path_factory.mktemp("sets") / "sets.gmt")
    return [
        f"trainer.max_steps={STEPS}",
        f"optim.schedule_steps={STEPS}",
        "checkpoint.every_steps=3",
        "trainer.validate_every_steps=5",
        f"objective.pathways={sets}",
        "objective.pathway_size=[5,200]",
    ]


@pytest.fixture(scope="module")
def undisturbed(atlas: Atlas, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train([*tiny_words(atlas.store, folder / "run"), *words], folder / "log") == 0
    return folder / "run"


@pytest.mark.parametrize("seed", range(3))
def test_promise_04_killed_at_random_moments(
    atlas: Atlas, words: list[str], undisturbed: Path, tmp_path: Path, seed: int
) -> None:
    """kill -9 at random moments: in a step, in a save, in a validation, or during the start."""
    rng = random.Random(seed)
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*tiny_words(atlas.store, run), *words]
    kills = 0
    while kills < 5:
        process = start(command, log)
        if kills % 3 == 2:
            # During the start: while it reads the checkpoint, cuts the metrics or loads the state.
            time.sleep(rng.random() * 0.6)
        else:
            target = len(history(run)) + rng.randrange(1, 15)
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
    assert any(row["l_pathway"] > 0 for row in history(run) if "loss" in row)
    assert "resuming" in log.read_text()


@pytest.mark.parametrize("moment", ["save_by_name", "_commit", "prune", "sync_rows"])
def test_promise_04_killed_inside_a_save(
    atlas: Atlas, words: list[str], undisturbed: Path, tmp_path: Path, moment: str
) -> None:
    """The process dies when it enters a given function of the fourth save."""
    command = [*tiny_words(atlas.store, tmp_path / "run"), *words]
    process = start(command, tmp_path / "log", die_at=(moment, 4))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 5 <= len(history(tmp_path / "run")) < STEPS
    assert train(command, tmp_path / "log") == 0
    assert history(tmp_path / "run") == history(undisturbed)


def test_promise_04_loader_workers_change_nothing(
    atlas: Atlas, words: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    """Two loader processes, stopped half-way and resumed with three."""
    command = [*tiny_words(atlas.store, tmp_path / "run"), *words]
    half = [*command, "trainer.max_steps=17", "data.workers=2"]
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
