"""A run that goes on when its store has grown reads the same samples on any number of ranks, after any kill."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from gm_train.checkpoint.find import open_checkpoint
from tests.conftest import Atlas, tiny_words
from tests.support.grown_stores import copied, grow
from tests.support.training_runs import assert_close, history, start_ranks, train, train_ranks


@pytest.mark.slow
def test_killed_after_the_growth_and_resumed_on_other_numbers_of_ranks(
    atlas: Atlas, words: list[str], tmp_path: Path
) -> None:
    store, log = copied(atlas, tmp_path), tmp_path / "log"
    half = tmp_path / "half"
    assert train([*tiny_words(store, half), *words, "trainer.max_steps=7"], log) == 0, log.read_text()
    grow(store)
    whole, parts = (Path(shutil.copytree(half, tmp_path / name)) for name in ("whole", "parts"))
    assert train([*tiny_words(store, whole), *words], log) == 0, log.read_text()

    command = [*tiny_words(store, parts), *words, "trainer.strategy=ddp"]
    # Killed before its first checkpoint on the grown store, so the next start finds the store grown once more.
    ranks = start_ranks([*command, "checkpoint.every_steps=100"], 2, log)
    while ranks.alive() and len(history(parts)) < len(history(half)) + 3:
        time.sleep(0.01)
    ranks.signal(signal.SIGKILL, rank=1)
    assert -signal.SIGKILL in ranks.join()
    assert open_checkpoint(parts).step == 7
    assert train_ranks([*command, "trainer.max_steps=15"], 4, log) == [0] * 4, log.read_text()
    assert train_ranks(command, 2, log) == [0, 0], log.read_text()
    assert log.read_text().count("the store has grown by third") == 3
    assert_close(parts, whole)
