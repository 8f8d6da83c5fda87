"""On several ranks, a checkpoint whose files would run code is refused, and no rank waits for another."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gm_train.checkpoint.find import open_checkpoint
from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words
from tests.support.poisoned_checkpoints import poison_metadata, poison_option
from tests.support.training_runs import train_ranks


@pytest.mark.parametrize("poison", [poison_metadata, poison_option])
@pytest.mark.parametrize("strategy", ["fsdp2", "zero2"])
def test_a_run_on_ranks_does_not_resume_from_it(
    atlas: Atlas, tmp_path: Path, strategy: str, poison: Callable[[Path, Path], None]
) -> None:
    words = [*tiny_words(atlas.store, tmp_path / "run"), "data.micro_rows=1", "optim.schedule_steps=8"]
    fit(load_config(*words, "trainer.max_steps=4", "optim.warmup_steps=2"))
    made = tmp_path / "made"
    poison(open_checkpoint(tmp_path / "run").state, made)
    words += ["trainer.max_steps=8", "optim.warmup_steps=2", f"trainer.strategy={strategy}"]
    assert train_ranks(words, 2, tmp_path / "log") == [1, 1]
    log = (tmp_path / "log").read_text()
    assert "names posix.system, which a checkpoint of gm-train does not need" in log
    assert "Traceback" not in log
    assert not made.exists()
