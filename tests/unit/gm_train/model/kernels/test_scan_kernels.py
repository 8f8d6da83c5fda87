"""The choice of kernel and its reason. What the kernels compute is tested in test_scan_parity.py."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_shards.errors import DataError
from gm_train.checkpoint.find import Checkpoint, load_model
from gm_train.config.load import load_config
from gm_train.model.kernels import scan_check, scan_kernels
from gm_train.model.kernels.scan_check import ScanSizes
from gm_train.model.kernels.scan_kernels import choose_kernel, package_devices, scan_sizes
from gm_train.model.mixer import Mamba2Mixer
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words
from tests.support.small_models import pack, random_cells, small_config

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SIZES = ScanSizes(2, 16, 8)


@pytest.fixture
def _without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_kernels, "package_problem", lambda: "is not installed")


@pytest.fixture
def _with_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_kernels, "package_problem", lambda: None)
    monkeypatch.setattr(scan_kernels, "_launched", {})
    monkeypatch.setattr(scan_kernels, "scan_problem", lambda *_: None)


@pytest.fixture
def _without_compiler(_with_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package can be imported, but its first launch fails, as on a node without gcc."""

    def fail(*_: Any, **named: Any) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore lines")

    monkeypatch.setattr(scan_kernels, "scan_problem", scan_check.scan_problem)
    monkeypatch.setattr(scan_kernels, "kernels_of_mixer", lambda: fail)
    monkeypatch.setattr(Tensor, "to", to_cpu(Tensor.to))


def to_cpu(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`Tensor.to` on a machine whose GPU is its CPU."""

    def moved(tensor: Tensor, *where: Any, **options: Any) -> Tensor:
        return to(tensor, *(CPU if isinstance(w, torch.device) else w for w in where), **options)

    return moved


def test_auto_takes_torch_on_the_cpu() -> None:
    assert choose_kernel("auto", CPU, SIZES) == ("torch", "auto: mamba_ssm is for GPUs")


@pytest.mark.usefixtures("_with_package")
def test_auto_takes_the_package_on_a_gpu() -> None:
    kernel, why = choose_kernel("auto", GPU, SIZES)
    assert kernel == "mamba_ssm"
    assert "GPU" in why


@pytest.mark.usefixtures("_without_package")
def test_auto_says_how_to_install_the_package() -> None:
    kernel, why = choose_kernel("auto", GPU, SIZES)
    assert kernel == "torch"
    assert f"is not installed: {scan_kernels.INSTALL}" in why
    assert "MAMBA_SKIP_CUDA_BUILD=TRUE" in why  # needs no nvcc


@pytest.mark.usefixtures("_with_package")
@pytest.mark.parametrize("device", [CPU, GPU])
def test_torch_is_torch_everywhere(device: torch.device) -> None:
    assert choose_kernel("torch", device, SIZES)[0] == "torch"


@pytest.mark.usefixtures("_without_package")
def test_the_package_by_name_is_refused_where_it_is_not_installed() -> None:
    with pytest.raises(DataError, match=r"model\.kernel=mamba_ssm.*gm-train\[cuda\]"):
        choose_kernel("mamba_ssm", GPU, SIZES)


def test_the_package_by_name_is_refused_without_a_gpu() -> None:
    with pytest.raises(DataError, match=r"model\.kernel=mamba_ssm.*model\.kernel=auto"):
        choose_kernel("mamba_ssm", CPU, SIZES)


@pytest.mark.usefixtures("_with_package")
def test_the_package_computes_on_gpus_and_under_tritons_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [package_devices(k, SIZES) for k in ("torch", "auto", "mamba_ssm")] == [(), ("cuda",), ("cuda",)]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert package_devices("mamba_ssm", SIZES) == ("cuda", "cpu")
    assert package_devices("auto", SIZES) == ("cuda",)


@pytest.mark.usefixtures("_without_compiler")
def test_a_launch_that_fails_is_a_reason_for_torch(caplog: pytest.LogCaptureFixture) -> None:
    kernel, why = choose_kernel("auto", GPU, SIZES)
    assert kernel == "torch"
    assert why.startswith("auto: mamba_ssm cannot run here (RuntimeError: Failed to find C compiler.")
    assert "Triton needs gcc and Python's headers" in why
    assert "\n" not in why
    assert why.removeprefix("auto: ") in caplog.text


@pytest.mark.usefixtures("_without_compiler")
def test_a_launch_that_fails_refuses_the_package_by_name() -> None:
    with pytest.raises(DataError, match=r"model\.kernel=mamba_ssm: the package cannot run here .*: set model.kernel=t"):
        choose_kernel("mamba_ssm", GPU, SIZES)


@pytest.mark.usefixtures("_without_compiler")
def test_a_model_computes_with_torch_where_a_launch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [package_devices(kernel, SIZES) for kernel in ("auto", "mamba_ssm")] == [(), ()]
    config = small_config(kernel="mamba_ssm")
    mixer = Mamba2Mixer(config)
    assert mixer.package_devices == ()


@pytest.mark.usefixtures("_with_package")
def test_the_package_is_tried_once_for_each_sizes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[tuple[ScanSizes, torch.dtype]] = []
    monkeypatch.setattr(scan_kernels, "scan_problem", lambda _, sizes, n, device, dtype: tried.append((sizes, dtype)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    caplog.set_level("INFO")
    choose_kernel("auto", GPU, SIZES, torch.float32)
    assert package_devices("auto", SIZES) == ("cuda",)  # does not compile for bfloat16 as well
    package_devices("auto", ScanSizes(4, 16, 8))
    assert tried == [(SIZES, torch.float32), (ScanSizes(4, 16, 8), torch.bfloat16)]
    assert "compiling mamba_ssm's kernels for 2 heads of 16 and states of 8" in caplog.text
    assert "compiled and tried in" in caplog.text


def test_the_sizes_of_a_layer() -> None:
    config = small_config(d_model=32, d_state=8, head_dim=4, expand=2)
    assert scan_sizes(config) == ScanSizes(Mamba2Mixer(config).n_heads, 4, 8, config.d_conv, 2, False)
    assert scan_sizes(replace(config, aggregation="head_gate")).head_gate
    assert scan_sizes(replace(config, arch="mamba", aggregation="head_gate")).directions == 1


@pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None or importlib.util.find_spec("selective_scan_cuda") is not None,
    reason="mamba_ssm is not installed, or with its compiled code",
)
def test_the_package_needs_none_of_its_compiled_code() -> None:
    assert scan_kernels.package_problem() is None


def test_a_run_that_cannot_have_its_kernel_is_refused_and_changes_nothing(atlas: Atlas, tmp_path: Path) -> None:
    words = [*tiny_words(atlas.store, tmp_path / "run"), "model.kernel=mamba_ssm"]
    with pytest.raises(DataError, match=r"model\.kernel=mamba_ssm"):
        fit(load_config(*words))
    assert not (tmp_path / "run").exists()


def test_a_run_says_its_kernel_and_why(atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(load_config(*tiny_words(atlas.store, tmp_path / "run"), "trainer.max_steps=1"))
    assert "kernel torch (auto: mamba_ssm is for GPUs)" in capsys.readouterr().out


def test_a_checkpoint_of_another_kernel_is_read(atlas: Atlas, tmp_path: Path) -> None:
    checkpoint = fit(load_config(*tiny_words(atlas.store, tmp_path / "run"), "trainer.max_steps=1")).checkpoint
    assert checkpoint is not None
    expected, _, _ = load_model(checkpoint)
    config = checkpoint.path / "config.yaml"
    config.write_text(config.read_text().replace("kernel: auto", "kernel: mamba_ssm"))
    model, _, loaded = load_model(Checkpoint.read(checkpoint.path))
    assert loaded.model.kernel == "mamba_ssm"
    input_ids, segment = pack([random_cells([7, 5], 0)], tail=2)
    assert torch.equal(model(input_ids, segment), expected(input_ids, segment))
