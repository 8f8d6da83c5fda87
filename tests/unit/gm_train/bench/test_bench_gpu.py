"""The report of a GPU: time limits, what is kept when a part fails, what counts as a problem, and a refusal."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_shards.workers import proc
from gm_train.bench.gpu import bench_gpu, kernel_parity
from gm_train.bench.gpu.command_runs import relative_norm
from gm_train.bench.gpu.gpu_page import render_gpu
from gm_train.bench.gpu.gpu_plan import PARTS, READY, GpuPlan, limit_of
from gm_train.bench.gpu.part_process import run_limited
from gm_train.bench.gpu.resume_check import compare_resumed
from gm_train.bench.gpu.run_part import MEASURES
from gm_train.bench.gpu.same_losses import first_gradient_difference, largest_difference
from gm_train.cli.main import main
from gm_train.model.norm import GatedRMSNorm

CPU = torch.device("cpu")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_every_part_has_something_to_run_and_a_table() -> None:
    from gm_train.bench.gpu.part_tables import PART_TABLES

    assert set(PART_TABLES) == set(MEASURES) == {part.name for part in PARTS}


@given(st.floats(1.0, 1e4), st.lists(st.floats(0.0, 1.0), min_size=len(PARTS), max_size=len(PARTS)))
def test_the_limits_share_the_time_that_is_left(total: float, used: list[float]) -> None:
    """However much of its limit each part takes, all stay within the total; the last one gets all that is left."""
    left = total
    for i, share in enumerate(used):
        limit = limit_of(PARTS[i:], left)
        assert 0 <= limit <= left * (1 + 1e-9)
        assert i < len(PARTS) - 1 or limit == pytest.approx(left)
        left -= share * limit
    assert left >= -1e-6


def test_a_process_is_killed_at_its_limit_with_those_that_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; print('begun', flush=True)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    limit = 1.0
    while True:  # on a busy machine the process may need longer to start
        ended = run_limited(python(code), tmp_path / "log", limit, dict(os.environ))
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
        limit *= 2
    assert ended.state == "stopped"
    assert "begun" in ended.tail
    child = int((tmp_path / "pid").read_text())
    while is_running(child):  # its parent is gone: the system ends it in a moment
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    return (proc.memory("VmRSS", pid) or 0) > 0


def test_the_end_of_a_log_says_why_a_process_failed(tmp_path: Path) -> None:
    code = "import sys; [print(i) for i in range(100)]; sys.exit('the reason')"
    ended = run_limited(python(code), tmp_path / "log", 600, dict(os.environ))
    assert (ended.state, ended.tail.splitlines()[-1]) == ("failed", "the reason")
    assert "\n99\n" in ended.tail
    assert "\n10\n" not in ended.tail
    ended = run_limited(python("import os; os.kill(os.getpid(), 11)"), tmp_path / "log", 600, dict(os.environ))
    assert (ended.state, ended.tail) == ("failed", "killed by SIGSEGV")


def fake_part(name: str, out: Path, device: str) -> list[str]:
    """A part that ends as its name says, after it has kept something."""
    kept: dict[str, Any] = {"machine": {"device": {"name": "a device"}}, "parity": {"problems": ["a gate is off"]}}
    kept["parity"] |= {"cases": [], "kernels": {}}
    ends = {"machine": "", "cells": "raise SystemExit('no disk')", "parity": "", "race": "import time; time.sleep(600)"}
    results = json.dumps(kept.get(name, {}))
    return python(f"open({str(out / 'parts' / name)!r} + '.json', 'w').write({results!r}); {ends[name]}")


def test_a_part_that_fails_hangs_or_is_wrong_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_gpu, "part_command", fake_part)
    monkeypatch.setattr(bench_gpu, "_LEAST", 0.0)
    monkeypatch.setattr(bench_gpu, "limit_of", lambda parts, left: 1.0 if parts[0].name == "race" else 600.0)
    parts = tuple(replace(part, needs=()) if part.name == "race" else part for part in PARTS)
    monkeypatch.setattr(bench_gpu, "PARTS", parts)
    names = ("machine", "cells", "parity", "losses", "race")
    written, good = bench_gpu.run_bench_gpu(GpuPlan(tmp_path, "cpu", names=names))
    assert not good
    found = json.loads(written[0].read_text())["parts"]
    states = {name: part["state"] for name, part in found.items()}
    assert states == {
        "machine": "done", "cells": "failed", "parity": "wrong", "losses": "not run", "race": "stopped",
    }  # fmt: skip
    page = written[1].read_text()
    for text in ("no disk", "a gate is off", f"{READY} is missing, which the part cells makes", "Stopped at its limit"):
        assert text in page
    assert "ladder" not in found


def test_a_part_without_time_is_not_run(tmp_path: Path) -> None:
    written, good = bench_gpu.run_bench_gpu(GpuPlan(tmp_path, "cpu", minutes=0.01))
    assert not good
    found = json.loads(written[0].read_text())["parts"]
    assert {part["state"] for part in found.values()} == {"not run"}
    assert "of --minutes 0.01 were left for it" in written[1].read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md", "parts"]


def test_nothing_is_invented_for_a_part_that_has_not_run() -> None:
    made = {"command": "gm-train bench gpu", "date": "a day", "cpu": "a processor", "python": "3", "packages": {}}
    parts = {part.name: {"state": "not run", "why": "it was not its turn yet"} for part in PARTS}
    results = {"made": made | {"git": None}, "rehearsal": False, "minutes": 9.0, "parts": parts}
    page = render_gpu(results)
    assert page.startswith("## On a GPU\n")
    assert page.count("Not run: it was not its turn yet.") == len(PARTS)
    for what in ("cells/s over", "share of the per-kernel roofline", "real tokens/s", "crossover"):
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {what}"))
        assert line.endswith("| not run |")
    rehearsal = render_gpu(results | {"rehearsal": True})
    assert "says nothing about a GPU" in rehearsal.splitlines()[0]
    assert "target" not in rehearsal


def test_without_a_gpu_it_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "gpu", "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no GPU is visible to PyTorch" in line
    assert "--rehearse" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "--minutes 0: must be greater than 0"),
        (["--parts", "rase"], "--parts rase: expected some of machine, cells,"),
        (["--parts", ","], "--parts: none given"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "gpu", "--rehearse", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def steps(*losses: float | None, order: str = "a") -> list[dict[str, Any]]:
    return [{"step": i, "loss": loss, "sample_hash": f"{order}{i}"} for i, loss in enumerate(losses, start=1)]


def test_the_difference_of_losses_is_relative_and_of_all_steps() -> None:
    assert largest_difference(steps(2.0, 4.0), steps(2.0, 5.0)) == pytest.approx(0.2)
    assert largest_difference(steps(2.0), steps(2.0, 4.0)) == float("inf")
    assert largest_difference(steps(2.0, None), steps(2.0, 4.0)) == float("inf")


def test_the_first_gradient_is_compared_by_its_norm() -> None:
    found, expected = ([{"grad_norm": norm}] for norm in (3.0, 4.0))
    assert first_gradient_difference(found, expected) == pytest.approx(0.25)
    assert first_gradient_difference([{"grad_norm": None}], expected) == float("inf")


def test_resuming_is_exact_or_as_exact_as_the_device_repeats_itself() -> None:
    straight = [3.0 - 0.1 * i for i in range(10)]
    near = [loss * (1 + 1e-6) for loss in straight]
    assert compare_resumed(steps(*straight), steps(*straight)) == {
        "stopped_after": 5, "steps": 10, "off": {"before": 0.0, "after": 0.0}, "problems": [],
    }  # fmt: skip
    (problem,) = compare_resumed(steps(*straight[:5], *near[5:]), steps(*straight))["problems"]
    assert "before it they are the same" in problem
    assert compare_resumed(steps(*near), steps(*straight))["problems"] == []
    far = [loss * 1.1 for loss in straight]
    assert "off by up to 1.0e-01" in compare_resumed(steps(*far), steps(*straight))["problems"][0]
    assert "other cells" in compare_resumed(steps(*straight, order="b"), steps(*straight))["problems"][0]


def test_vectors_of_empty_cells_must_be_empty_in_both() -> None:
    expected = np.array([[3.0, 4.0], [np.nan, np.nan]], np.float32)
    assert relative_norm(expected + np.float32(0), expected) == 0.0
    assert relative_norm(expected + np.array([0.3, 0.4], np.float32), expected) == pytest.approx(0.1)
    assert relative_norm(np.zeros((2, 2), np.float32), expected) == float("inf")


def parity_case(word: str) -> tuple[kernel_parity.Case, torch.Tensor]:
    segment = kernel_parity.packed_segments()
    return next(case for case in kernel_parity.cases(kernel_parity.ODD) if word in case.name), segment


def test_rows_of_the_parity_are_packed_and_have_unused_tokens() -> None:
    segment = kernel_parity.packed_segments()
    assert segment.shape == (2, 291)
    assert [row.max().item() for row in segment] == [5, 4]
    assert (segment == 0).sum() == 3


@pytest.mark.parametrize(
    ("word", "outputs"), [("both directions", 2), ("mixer, head_gate", 1), ("one direction", 1), ("its gate", 1)]
)
def test_modules_equal_the_recurrence(word: str, outputs: int) -> None:
    case, segment = parity_case(word)
    errors = kernel_parity.case_errors(case, kernel_parity.ODD, segment, CPU)
    assert sum(name.startswith("output") for name in errors["fp32"]) == outputs
    names = {name.removeprefix("gradient by ").rpartition("mixer.")[2] for name in errors["fp32"]}
    assert {"input", "in_proj.weight", "conv1d.weight", "dt_bias", "A_log", "D", "norm.weight"} <= names
    for precision in kernel_parity.LIMITS:
        assert kernel_parity.too_large(errors[precision], precision) == []
    assert max(errors["fp32"].values()) < 1e-2 * max(errors["bf16"].values())


def test_a_mixer_that_is_slightly_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = GatedRMSNorm.forward

    def wrong(self: GatedRMSNorm, z: torch.Tensor, *ys: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(out * (1 + 1e-4 * (z.dtype == torch.float32)) for out in forward(self, z, *ys))

    case, segment = parity_case("both directions")
    monkeypatch.setattr(GatedRMSNorm, "forward", wrong)
    found = kernel_parity.case_errors(case, kernel_parity.ODD, segment, CPU)["fp32"]
    outputs = {"output 1", "output 2", "gradient by input"}
    assert outputs <= set(kernel_parity.too_large(found, "fp32"))
    assert kernel_parity.too_large(found | {"output 1": float("nan")}, "bf16") == ["output 1"]


@pytest.mark.slow
def test_a_rehearsal_runs_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["bench", "gpu", "--rehearse", "--minutes", "90", "--out", str(out)]) == 0
    results = json.loads((out / "gpu.json").read_text())
    assert {name: part["state"] for name, part in results["parts"].items()} == {part.name: "done" for part in PARTS}
    found = {name: part["results"] for name, part in results["parts"].items()}
    assert {case["precision"] for case in found["parity"]["cases"]} == {"fp32", "bf16"}
    assert set(found["losses"]["runs"]) == {"fp32", "bf16", "bf16-compiled"}
    assert all(len(run["losses"]) == 10 for run in found["losses"]["runs"].values())
    assert found["resume"]["off"] == {"before": 0.0, "after": 0.0}
    assert {row["length"] for row in found["race"]["race"]} == {512, 1024}
    assert set(found["ladder"]["ladder"]) == {"natural lengths", "full rows"}
    assert found["profile"]["profile"]["scan"] > 0
    assert found["roofline"]["roofline_tokens_per_s"] > 0
    assert found["commands"]["embed_off"] < 5e-2
    page = (out / "gpu.md").read_text()
    assert "says nothing about a GPU" in page.splitlines()[0]
    assert page in capsys.readouterr().out
    assert (out / "gpu.png").read_bytes().startswith(b"\x89PNG")
