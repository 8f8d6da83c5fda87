"""Rates, MFU and cost of hand-made records with known answers."""

from typing import Any

import numpy as np
import pytest

from gm_train.plan.devices import DEVICES, sheet_of_gpu
from gm_train.run.curves import draw_curve, joined
from gm_train.train.report.training_section import Records, training_section, with_rates

H100 = "NVIDIA H100 80GB HBM3"


def row(step: int, **columns: Any) -> dict[str, Any]:
    """A row of a step of two seconds, half a second of which rank 0 waited for the loader."""
    common = {
        "step": step, "loss": 2.0, "l_lang": 2.0, "l_pathway": 0.0, "grad_norm": 1.0, "lr": 1e-3, "step_s": 2.0,
        "loader_s": 0.5, "tokens_per_s": 10.0, "flops": 2 * 989.5e12, "time": 1000.0 + 2 * step,
    }  # fmt: skip
    return common | columns


def start(step: int, ranks: int, **facts: Any) -> dict[str, Any]:
    """A start on GPUs, at the time 1000."""
    return {
        "time": "1970-01-01T00:16:40+00:00", "step": step, "ranks": ranks, "gpus": [H100] * 4, "threads": 3,
        "device": "cuda",
    } | facts  # fmt: skip


def page_of(*rows: dict[str, Any], starts: list[dict[str, Any]], precision: str = "bf16") -> str:
    return "\n".join(training_section(Records(rows, [], starts, precision))[0])


def test_mfu_is_the_share_of_the_peak_of_all_gpus_of_the_start() -> None:
    """Two steps on one GPU, then one on four: the operations of a step are those of one GPU in two seconds."""
    records = Records([row(1), row(2), row(3)], [], [start(0, 1), start(2, 4)], "bf16")
    rows = with_rates(records)
    assert [found["mfu_percent"] for found in rows] == pytest.approx([100.0, 100.0, 25.0])
    assert [found["loader_percent"] for found in rows] == [25.0] * 3
    assert rows[0]["gflops_per_s"] == pytest.approx(989_500)
    page = page_of(row(1), row(2), starts=[start(0, 1)])
    assert "100.0 % of 989.5 TFLOP/s a GPU (NVIDIA H100 Tensor Core GPU datasheet, SXM), bf16, dense" in page
    assert "curve: mfu" in page
    assert "1,477 % of" not in page
    slower = with_rates(Records([row(1)], [], [start(0, 1)], "fp32"))[0]["mfu_percent"]
    assert slower == pytest.approx(100 * 989.5 / 67)


@pytest.mark.parametrize(
    ("starts", "flops", "why"),
    [
        ([start(0, 1, device="cpu", gpus=[])], 1e9, "the peak of a CPU stands on no data sheet"),
        ([start(0, 1, gpus=["NVIDIA L4"])], 1e9, "the peak of NVIDIA L4 is not known here"),
        ([start(0, 1, gpus=["NVIDIA H100 PCIe"])], 1e9, "the peak of NVIDIA H100 PCIe is not known here"),
        ([], 1e9, "it is not recorded on what this run was trained"),
        ([start(0, 1)], None, "the operations of this model are not known"),
    ],
)
def test_without_a_peak_or_a_count_the_page_says_why(starts: list[Any], flops: float | None, why: str) -> None:
    page = page_of(row(1, flops=flops), starts=starts)
    assert why in page
    assert "curve: mfu" not in page


def test_runs_of_earlier_versions_have_a_report_without_mfu() -> None:
    old = {key: value for key, value in row(1).items() if key not in ("flops", "loader_s")}
    page = page_of(old, starts=[start(0, 1)])
    assert "not recorded by the version that trained this run" in page
    assert "waiting for the loader" not in page


def test_the_sheet_of_a_gpu_is_that_of_its_very_kind() -> None:
    known = {"NVIDIA A100-PCIE-40GB": "a100", "NVIDIA A100-SXM4-80GB": "a100", H100: "h100", "NVIDIA H200": "h200"}
    assert {name: sheet_of_gpu(name) for name in known} == {name: DEVICES[key] for name, key in known.items()}
    for name in ("NVIDIA GH200 480GB", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", f"{H100} MIG 1g.10gb", "Tesla V100"):
        assert sheet_of_gpu(name) is None


def test_restarts_and_skipped_steps_are_drawn() -> None:
    from gm_train.run.curves import curves_of

    rows = [row(step) for step in range(1, 9)]
    norm = next(curve for curve in curves_of(rows) if curve.column == "grad_norm")
    plain = draw_curve(norm, rows, [], [])
    assert (draw_curve(norm, rows, [4], []) != plain).any()
    assert (draw_curve(norm, rows, [], [5]) != plain).any()
    loss = next(curve for curve in curves_of(rows) if curve.column == "loss")
    assert np.array_equal(draw_curve(loss, rows, [], [5]), draw_curve(loss, rows, [], []))
    height, width, _ = plain.shape
    assert joined([plain] * 5).shape == (2 * height, 4 * width, 4)
