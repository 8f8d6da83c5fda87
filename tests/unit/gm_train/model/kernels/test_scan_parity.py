"""Every kernel computes the same numbers: outputs and all gradients against the recurrence in float64.

`parity.py` describes the comparison. mamba_ssm's kernels run under Triton's interpreter, in a process of their own.
"""

import importlib.util
import os
from typing import Any

import pytest

from tests.support import parity

#: Largest relative errors. In fp32 (unit roundoff 6e-8) sums over a chunk and exponents of up to a hundred cost a few
#: roundings, and a parameter's gradient may be a small difference of large sums. In bf16 (unit roundoff 2e-3) x, B, C,
#: the scores within a chunk and y are rounded, and in a model every activation of every layer; the decay is not. The
#: worst parameter of a bf16 model has no limit: the gradients of the two heads' A, D and dt_bias nearly cancel.
TOLERANCES: dict[tuple[str, str], dict[str, float]] = {
    ("scan", "fp32"): {"y": 2e-6, "dx": 2e-6, "ddt": 4e-6, "dA": 2e-6, "dB": 2e-6, "dC": 2e-6, "dD": 2e-6},
    ("scan", "bf16"): {"y": 1e-2, "dx": 2e-2, "ddt": 1e-2, "dA": 4e-3, "dB": 2e-2, "dC": 2e-2, "dD": 4e-3},
    ("model", "fp32"): {"y": 2e-6, "input": 4e-6, "all": 2e-6, "worst": 3e-5},
    ("model", "bf16"): {"y": 4e-2, "input": 1e-1, "all": 6e-2, "worst": float("inf")},
}


def check(name: str, errors: dict[str, float]) -> None:
    tolerances = TOLERANCES[name.split()[0].rstrip(","), name[-4:]]
    assert errors.keys() == tolerances.keys()
    assert {what: error for what, error in errors.items() if not error < tolerances[what]} == {}, name


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    missing = [name for name in ("mamba_ssm", "triton") if importlib.util.find_spec(name) is None]
    if missing and "CI" not in os.environ:
        pytest.skip(f"{' and '.join(missing)} not installed: `make setup` does")
    return parity.measure_interpreted()


@pytest.mark.parametrize("name", parity.cases("torch"))
def test_torch(name: str) -> None:
    check(name, parity.cases("torch")[name]())


@pytest.mark.parametrize("name", parity.cases("mamba_ssm"))
def test_mamba_ssm(name: str, interpreted: dict[str, dict[str, float]]) -> None:
    check(name, interpreted[name])
    if name.startswith("scan"):
        limit = 1e-6 if name.endswith("fp32") else 5e-3
        assert {what: error for what, error in interpreted[name].items() if not error < limit} == {}, name


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_past_the_end_of_a_cell_is_noticed(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without boundaries the errors must be far above the tolerances, or the tests above prove nothing."""
    make = parity.make_segments

    def boundless(segment: Any, *options: Any) -> Any:
        return make(segment.clamp(max=1), *options)

    monkeypatch.setattr(parity, "make_segments", boundless)
    errors = parity.scan_errors("torch", parity.SMALL, reverse, "bf16")
    tolerances = TOLERANCES["scan", "bf16"]
    assert all(errors[what] > 3 * tolerances[what] for what in errors if what != "dD")
