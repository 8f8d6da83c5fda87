"""The ranks exchange numbers once in a step, in the background; gradients apart."""

import json
from pathlib import Path

import pytest

from tests.conftest import Atlas, tiny_words
from tests.dist.conftest import SPREADING
from tests.support.exchange_log import log_exchanges
from tests.support.training_runs import history, train_ranks


@pytest.mark.parametrize("strategy", [name for name in SPREADING if "zero" not in name])  # DeepSpeed has its own
def test_a_step_has_one_exchange(atlas: Atlas, words: list[str], tmp_path: Path, strategy: str) -> None:
    """Steps 2 to 6; the first exchanges its counts as well, and 7 is the last, after which the run saves."""
    run, log, exchanges = tmp_path / "run", tmp_path / "log", tmp_path / "exchanges"
    command = [
        *tiny_words(atlas.store, run), *words, f"trainer.strategy={strategy}", "trainer.max_steps=7",
        "optim.schedule_steps=7", "checkpoint.every_steps=99", "trainer.validate_every_steps=0",
    ]  # fmt: skip
    codes = train_ranks(command, 2, log, prepare=log_exchanges, env={"GM_TEST_EXCHANGES": str(exchanges)})
    assert codes == [0, 0], log.read_text()
    steps = [json.loads(line) for line in exchanges.read_text().splitlines()]
    assert len(steps) == 7
    ours = [
        [name for name in step if name.split(",")[0] in ("all_gather", "all_gather_object", "broadcast_object_list")]
        for step in steps[1:6]
    ]
    assert ours == [["all_gather"]] * 5
    # What sums sharded gradients is the strategy's own; DDP does that outside of these functions.
    if strategy == "ddp":
        assert steps[1:6] == ours
    assert [row["step"] for row in history(run)] == list(range(1, 8))
    assert "all_gather" not in log.read_text()  # as in a warning of PyTorch that it is deprecated
