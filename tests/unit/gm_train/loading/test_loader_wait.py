"""Every step records how long training waited for its batches."""

import time
from pathlib import Path
from typing import Any

import pytest

from gm_train.config.load import load_config
from gm_train.loading import rank_batches
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words

DELAY_S = 0.1


def test_a_slow_loader_is_seen_in_the_metrics_and_the_report(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rank_batches.make_examples

    def slow(*arguments: Any) -> Any:
        time.sleep(DELAY_S)
        return real(*arguments)

    monkeypatch.setattr(rank_batches, "make_examples", slow)
    words = tiny_words(atlas.store, tmp_path / "run")
    fit(load_config(*words, "trainer.max_steps=6", "trainer.validate_every_steps=0"))
    rows = [row for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row]
    # Batches are fetched ahead, so the last step waits for none.
    assert len(rows) == 6
    assert all(DELAY_S <= row["loader_s"] <= row["step_s"] for row in rows[1:-1])
    assert sum(row["loader_s"] for row in rows) >= 6 * DELAY_S
    assert all(row["tokens_per_s"] == pytest.approx(row["tokens"] / row["step_s"]) for row in rows)
    assert "waiting for the loader" in (tmp_path / "run/report.html").read_text()
