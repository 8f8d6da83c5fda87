"""Bytes and launches of a layer: how they are counted, and a bound that no change may exceed."""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gm_train.bench.traffic.launch_counter import LaunchCounter
from gm_train.bench.traffic.traffic import PARTS, layer_launches, layer_traffic
from gm_train.bench.traffic.traffic_report import TOKENS
from gm_train.cli.main import main
from gm_train.config.schema import ModelConfig
from gm_train.model.norm import GatedRMSNorm

#: What one layer of the presets (width 512, 49,152 tokens, bf16) moves and launches by part, forward and backward. A
#: change may lower these numbers. Whatever raises them needs a measured gain that pays for it.
GIGABYTES = {
    "torch": {
        "projections": 2.04,
        "convolution": 11.54,
        "scan": 37.92,  # scores are computed again for the gradient, and not kept
        "gated norm": 14.80,
        "gate": 3.44,
        "flips and joins": 0.89,
        "sums of gradients": 0.69,
    },
    "mamba_ssm": {
        "projections": 1.73,
        "convolution": 0.81,
        "scan": 4.66,
        "gated norm": 1.32,
        "gate": 2.28,
    },
}
LAUNCHES = {
    "torch": {
        "projections": 15,
        "convolution": 51,
        "scan": 521,
        "gated norm": 48,
        "gate": 26,
        "flips and joins": 5,
        "sums of gradients": 14,
    },
    "mamba_ssm": {
        "projections": 10,
        "convolution": 3,
        "scan": 18,
        "gated norm": 3,
        "gate": 12,
    },
}
KERNELS = tuple(GIGABYTES)
SMALL = ModelConfig(d_model=32, d_state=16, head_dim=16, chunk=64)


@pytest.fixture(autouse=True)
def _package(request: pytest.FixtureRequest) -> None:
    wanted = getattr(request.node, "callspec", None)
    if wanted and wanted.params.get("kernel") == "mamba_ssm" and importlib.util.find_spec("mamba_ssm") is None:
        assert "CI" not in os.environ
        pytest.skip("mamba_ssm is not installed: `make setup` does")


def excess(kernel: str) -> list[str]:
    """The parts of a layer that move or launch more than they may."""
    found = {part.part: part for part in layer_traffic(ModelConfig(), TOKENS, "bf16", kernel)}
    assert found.keys() == GIGABYTES[kernel].keys()
    return [
        name
        for name, part in found.items()
        if part.n_bytes / 1e9 > GIGABYTES[kernel][name] + 0.005 or part.launches > LAUNCHES[kernel][name]
    ]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_layer_moves_and_launches_no_more_than_it_did(kernel: str) -> None:
    assert excess(kernel) == []


def test_a_layer_on_a_gpu_moves_less_than_12_gb_in_less_than_60_launches() -> None:
    assert sum(GIGABYTES["mamba_ssm"].values()) < 12
    assert sum(LAUNCHES["mamba_ssm"].values()) < 60


def test_a_pass_over_the_widest_array_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = GatedRMSNorm.forward
    monkeypatch.setattr(GatedRMSNorm, "forward", lambda self, z, *ys: forward(self, z.clone(), *ys))
    assert excess("torch") == ["gated norm"]


def counted(run: Callable[..., Any], *tensors: Tensor) -> list[tuple[str, int]]:
    """Names and bytes of the launches of a call on fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in tensors]
        with LaunchCounter() as counter:
            run(*fakes)
    return [(launch.name, launch.n_bytes) for launch in counter.launches]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda x: x @ x, [("mm", 3 * 4 * 64)]),
        (lambda x: x.view(64, 1)[1:].mT.flatten(), []),
        (lambda x: x[:4].add_(1), [("add_", 2 * 4 * 32)]),
        (lambda x: x[:4].copy_(x[4:]), [("copy_", 2 * 4 * 32)]),
        (lambda x: x.zero_(), [("zero_", 4 * 64)]),
        (lambda x: torch.zeros_like(x), [("zeros_like", 4 * 64)]),
        (lambda x: torch.empty_like(x), []),
        (lambda x: x[:, :1].expand(8, 100) + 1, [("add", 4 * 8 + 4 * 800)]),
        (lambda x: x.bfloat16(), [("_to_copy", 4 * 64 + 2 * 64)]),
        (lambda x: x.sum(0), [("sum", 4 * 64 + 4 * 8)]),
    ],
)
def test_an_operation_reads_and_writes_each_array_once(
    run: Callable[[Tensor], Any], expected: list[tuple[str, int]]
) -> None:
    assert counted(run, torch.zeros(8, 8)) == expected


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("aggregation", ["gate", "mean", "head_gate"])
def test_every_launch_has_a_part(kernel: str, aggregation: str) -> None:
    launches = layer_launches(replace(SMALL, aggregation=aggregation, norm="pre"), 4096, "bf16", kernel)
    assert {launch.part for launch in launches} <= set(PARTS)
    for backward in (False, True):
        parts = {launch.part for launch in launches if launch.backward == backward}
        assert parts >= {"projections", "convolution", "scan", "gated norm", "norm", "gate"}


def test_the_layer_of_one_direction_moves_less() -> None:
    both, one = (
        sum(launch.n_bytes for launch in layer_launches(replace(SMALL, arch=arch), 4096, "fp32", "torch"))
        for arch in ("bimamba", "mamba")
    )
    assert both / 2 < one < both * 0.75


def test_kernels_of_the_package_are_counted_and_not_run() -> None:
    if importlib.util.find_spec("mamba_ssm") is None:
        pytest.skip("mamba_ssm is not installed")
    names = [launch.name for launch in layer_launches(SMALL, 4096, "bf16", "mamba_ssm")]
    assert names.count("_chunk_scan_fwd_kernel") == 1  # of both directions
    assert names.count("_chunk_scan_bwd_dcb_kernel") == 1


def test_the_command_writes_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model.d_model=32", "model.head_dim=16", "--tokens-per-step", "2048", "--out", str(tmp_path)]
    assert main(["bench", "model", "--traffic", *words]) == 0
    assert "| gated norm |" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"traffic.json", "traffic.md"}
    results = json.loads((tmp_path / "traffic.json").read_text())
    assert (results["rows"], results["length"], results["precision"]) == (1, 2048, "bf16")
    (norm,) = (row for row in results["kernels"]["torch"] if row["part"] == "gated norm")
    assert norm["bytes"] == norm["forward_bytes"] + norm["backward_bytes"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.arch=transformer"], "model.arch=transformer"),
        (["--tokens-per-step", "0"], "--tokens-per-step 0: must be at least 1"),
        (["--quick"], "--quick and --traffic: choose one"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "model", "--traffic", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
