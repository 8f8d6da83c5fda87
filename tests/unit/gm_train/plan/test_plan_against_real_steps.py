"""A plan against real training steps: memory within 25 %, operations as PyTorch counts them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gm_train.bench.model.measured_step import StepRunner, measure_step
from gm_train.config.load import load_config
from gm_train.config.schema import Config
from gm_train.model.loops import scan_loops
from gm_train.plan.devices import ERROR, Device
from gm_train.plan.make_plan import make_plan
from gm_train.plan.rank_memory import rank_memory
from gm_train.plan.step_time import modelled_time, scaled_time
from gm_train.ranks.ranks import Ranks
from tests.conftest import Atlas

VOCABULARY = 8000
#: Takes real steps in a process of its own, and prints the bytes that they add at the peak.
MEASURE = """
import json, sys
from gm_train.bench.model.measured_step import StepRunner
from gm_train.config.load import load_config
words, vocabulary, rows, length = json.loads(sys.argv[1])
print(StepRunner(load_config(*words), vocabulary, rows, length, "cpu").run()["peak"])
"""
#: Takes a few steps of a real run, its loader, records and checkpoint included.
RUN = """
import json, sys
from gm_train.bench.plan.real_run import RealRun
from gm_train.config.load import load_config
words, directory = json.loads(sys.argv[1])
print(RealRun(load_config(*words), directory, 2).run()["peak"])
"""
SIZES = ["data.store=x", "data.lanes=2", "data.row_length=1024", "model.d_model=256", "model.n_layers=4"]


def measured_peak(program: str, *request: object) -> int:
    # Freed arrays go back to the system at once: what glibc's allocator keeps is not needed, and varies.
    env = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", program, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["trainer.precision=bf16"],
        ["model.n_layers=8", "trainer.activation_checkpointing=true"],
        ["model.aggregation=head_gate", "model.norm=pre"],
        ["model.arch=mamba", "objective.language=next_token"],
    ],
)
def test_memory_of_a_real_step(words: list[str]) -> None:
    config = load_config(*SIZES, *words)
    peak = measured_peak(MEASURE, [*SIZES, *words], VOCABULARY, 2, 1024)
    planned = rank_memory(config, VOCABULARY, "single", 1, micro_rows=2, on_gpu=False)
    assert planned.total == pytest.approx(peak, rel=ERROR)


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["trainer.precision=bf16", "model.aggregation=head_gate"]])
def test_memory_of_a_real_run(words: list[str], atlas: Atlas, tmp_path: Path) -> None:
    """With all that a run does besides its steps. The loader's buffers are small here, and planned apart."""
    words = [*SIZES, f"data.store={atlas.store}", "data.micro_rows=2", "data.pool_blocks=2", *words]
    plan = make_plan(load_config(*words), 1, 1)
    assert (plan.micro_rows, plan.n_micro) == (2, 1)
    peak = measured_peak(RUN, words, str(tmp_path / "run"))
    assert plan.memory.total == pytest.approx(peak, rel=ERROR)


def small(*words: str) -> Config:
    sizes = ["data.store=x", "data.lanes=4", "data.row_length=256", "model.d_model=64", "model.n_layers=2"]
    return load_config(*sizes, "model.d_state=16", "model.head_dim=32", *words)


def counted(config: Config, rows: int) -> int:
    """Count the operations of one pass; the runner takes five."""
    runner = StepRunner(config, VOCABULARY, rows, config.data.row_length, "cpu")
    # The counter cannot see the products of compiled loops.
    with patch.object(scan_loops, "takes", lambda *arguments: False), FlopCounterMode(display=False) as counter:
        runner.run()
    assert counter.get_total_flops() % 5 == 0
    return counter.get_total_flops() // 5


@pytest.mark.parametrize("words", [[], ["model.aggregation=head_gate"], ["objective.language=masked"]])
def test_modelled_time_has_the_operations_of_a_real_step(words: list[str]) -> None:
    # On a device with endless bandwidth, only operations take time. Only GPUs scan with longer chunks.
    config = small("model.chunk=256", *words)
    device = Device("endless", {"fp32": 1e12}, float("inf"), 1.0, "none")
    modelled = modelled_time(config, VOCABULARY, 2, 1000, device, share=1.0)
    assert modelled.update_s == 0
    assert modelled.pass_s * 1e12 == pytest.approx(counted(config, 2), rel=0.25)


def test_real_steps_take_operations_in_proportion_to_their_tokens() -> None:
    """The assumption behind scaling measured steps."""
    config = small()
    assert counted(config, 4) == pytest.approx(4 * counted(config, 1), rel=0.02)


@pytest.mark.slow
def test_measured_steps_have_the_tokens_that_times_are_scaled_by() -> None:
    """How well the scaled time meets that of a real run, `gm-train bench plan` measures."""
    config = small("data.row_length=1024", "data.lanes=2")
    little = measure_step(replace(config, data=replace(config.data, lanes=1)), VOCABULARY, Ranks())
    much = measure_step(config, VOCABULARY, Ranks())
    assert (little.tokens, much.tokens, little.on_gpu) == (1024, 2048, torch.cuda.is_available())
    assert scaled_time(little, much.tokens).pass_s == 2 * little.pass_s
