"""`gm-train bench plan`: a plan and a real run, in turns."""

import json
from pathlib import Path

import pytest

from gm_train.bench.plan.bench_plan import render
from gm_train.cli.main import main
from tests.conftest import Atlas, tiny_words

MADE = {"date": "today", "command": "gm-train bench plan", "cpu": "a CPU", "packages": {}, "git": None}


@pytest.mark.slow
def test_the_command_plans_trains_and_compares(
    atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    words = [*tiny_words(atlas.store, tmp_path / "run"), "data.rows_per_lane=null"]
    assert main(["bench", "plan", *words, "--turns", "2", "--steps", "3", "--out", str(out)]) == 0
    found = json.loads((out / "bench.json").read_text())
    assert len(found["turns"]) == 2
    assert found["rows"] == 4
    assert all(turn["planned_s"] > 0 < turn["step_s"] for turn in found["turns"])
    assert "plan / run" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md"]
    assert not (tmp_path / "run").exists()


def test_ratios_are_those_of_the_turns() -> None:
    turns = [
        {"planned_s": planned, "step_s": 2.0, "peak": peak, "planned_bytes": 300 << 20}
        for planned, peak in ((1.0, 100 << 20), (3.0, 200 << 20), (2.0, None))
    ]
    text = render({"made": MADE, "turns": turns, "rows": 4})
    assert "| a step | 2 s | 2 s | 1.00 |" in text
    assert "| 300 MiB | 150 MiB | 2.00 |" in text
    assert "3 turns; the ratios of a step lie in 0.50 … 1.50." in text


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "plan", "configs/demo.yaml", "--turns", "0"]) == 2
    assert "--turns 0 --steps 10: both must be at least 1" in capsys.readouterr().err
