"""A mixer's kernels together, at head_dim 48 and d_state 24: beside the recurrence, and beside flash-linear-attention.

`tests/support/mixers_on_cpu.py` describes the comparisons: packed rows with cells of odd lengths, in both directions.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from tests.support import mixers_on_cpu
from tests.support.mixers_on_cpu import DTYPES, VARIANTS, by_mixer, errors, expected

#: Largest relative errors of outputs and of all gradients. In bf16, the results of convolution, scan and norm are
#: rounded one after another (unit roundoff 2e-3 each), and gradients by D and dt_bias are small differences of sums.
BESIDE_RECURRENCE = {"fp32": 1e-6, "bf16": 2e-2}
#: Both sides round.
BESIDE_FLA = {"fp32": 2e-6, "bf16": 2e-2}
#: Small differences of sums: how they are rounded differs between processors (1.05e-6 on one, below 1e-6 on another).
OF_SUMS = {"fp32": 3e-6, "bf16": 2e-2}


def too_large(found: dict[str, float], dtype: str) -> dict[str, float]:
    """The errors beside the recurrence that are above their tolerance."""

    def tolerance(what: str) -> float:
        return (OF_SUMS if what in ("D", "dt_bias") else BESIDE_RECURRENCE)[dtype]

    return {what: error for what, error in found.items() if not error < tolerance(what)}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    missing = [name for name in ("mamba_ssm", "triton") if importlib.util.find_spec(name) is None]
    if missing and "CI" not in os.environ:
        pytest.skip(f"{' and '.join(missing)} not installed: `make setup` does")
    command = [sys.executable, "-m", "tests.support.mixers_on_cpu"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_beside_the_recurrence(variant: tuple[str, str], dtype: str) -> None:
    assert too_large(errors(by_mixer(variant, dtype, "torch"), expected(variant)), dtype) == {}


def test_a_mixer_without_boundaries_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that see each other must be far above the tolerances, or the tests here prove nothing."""
    make = mixers_on_cpu.make_segments

    def boundless(segment: torch.Tensor, *options: int) -> object:
        return make(segment.clamp(max=1), *options)

    monkeypatch.setattr(mixers_on_cpu, "make_segments", boundless)
    found = errors(by_mixer(VARIANTS[0], "bf16", "torch"), expected(VARIANTS[0]))
    assert all(found[what] > 3 * BESIDE_RECURRENCE["bf16"] for what in ("y", "columns", "conv1d.weight"))


@pytest.mark.slow
def test_mamba_ssm_beside_the_recurrence(interpreted: dict[str, dict[str, float]]) -> None:
    found = {name: values for name, values in interpreted.items() if name.startswith("mamba_ssm beside the recurrence")}
    assert len(found) == len(VARIANTS) * len(DTYPES)
    for name, values in found.items():
        assert too_large(values, name[-4:]) == {}, name


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("fla") is None, reason="fla-core is not installed: `make setup` does")
@pytest.mark.parametrize("kernel", ["torch", "mamba_ssm"])
def test_ours_beside_flash_linear_attention(kernel: str, interpreted: dict[str, dict[str, float]]) -> None:
    found = {name: values for name, values in interpreted.items() if name.startswith(f"{kernel} beside fla")}
    assert len(found) == len(DTYPES)
    for name, values in found.items():
        assert {what: error for what, error in values.items() if not error < BESIDE_FLA[name[-4:]]} == {}, name
