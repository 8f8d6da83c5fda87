"""`gm-train plan`: its parts, its advice and what it refuses."""

import re
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from data_shards.errors import DataError
from data_shards.store.manifest import Manifest
from gm_train.cli.main import main
from gm_train.config.check import ConfigError
from gm_train.config.load import load_config
from gm_train.config.schema import Config
from gm_train.model.genemamba import GeneMamba
from gm_train.model.kernels import scan_kernels
from gm_train.model.kernels.fake_gpu import as_on_a_gpu, use_kernels
from gm_train.objective.loss import computing_in
from gm_train.plan import traced_memory
from gm_train.plan.advice import refuse_too_large, tight
from gm_train.plan.devices import DEVICES, device_of_cluster, known_device
from gm_train.plan.make_plan import Plan, make_plan
from gm_train.plan.rank_memory import rank_memory
from gm_train.plan.render_plan import render_plan, summary
from gm_train.plan.step_time import Measured
from gm_train.plan.traced_memory import pass_memory
from tests.conftest import Atlas, tiny_words

PRESET = "configs/genemamba-66m.yaml"


def preset(*words: str) -> Config:
    return load_config(PRESET, *words)


def test_the_published_model_keeps_about_26_kB_a_token_and_layer_on_a_gpu() -> None:
    kept = pass_memory(preset(), 25_426, 24, on_gpu=True).activations / (24 * 2048 * 24)
    assert 15e3 < kept < 30e3
    # In plain PyTorch, scores and decays are kept as well; in fp32, everything is twice as wide.
    assert pass_memory(preset(), 25_426, 24, on_gpu=False).activations > 1.5 * kept * 24 * 2048 * 24
    wide = pass_memory(preset("trainer.precision=fp32"), 25_426, 24, on_gpu=True)
    assert 1.7 < wide.activations / (kept * 24 * 2048 * 24) < 2.3


@pytest.mark.parametrize("words", [[], ["model.aggregation=head_gate", "model.norm=pre"], ["trainer.precision=fp32"]])
def test_the_kernels_of_a_gpu_keep_what_autograd_saves(words: list[str]) -> None:
    """Counted in another way: the storages that the forward pass of one more layer saves for the backward pass."""
    config = preset(*words)
    rows, length = 2, 1024

    def saved(n_layers: int) -> int:
        kept: dict[int, int] = {}
        alive: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            alive.append(tensor)  # so that no other storage gets its address
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with FakeTensorMode(), as_on_a_gpu():
            model = GeneMamba(replace(config.model, n_layers=n_layers), 1000)
            use_kernels(model)
            ids = torch.zeros((rows, length), dtype=torch.int64)
            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            with hooks, computing_in(config.trainer.precision, torch.device("cpu")):
                model(ids, torch.ones_like(ids))
            own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
            return sum(size for storage, size in kept.items() if storage not in own)

    def planned_for(n_layers: int) -> int:
        few = replace(
            config, model=replace(config.model, n_layers=n_layers), data=replace(config.data, row_length=1024)
        )
        return pass_memory(few, 1000, rows, on_gpu=True).activations

    layer = saved(2) - saved(1)
    assert planned_for(2) - planned_for(1) == pytest.approx(layer, rel=0.05)


def test_without_the_kernels_a_plan_counts_more_and_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*WIDE, "model.n_layers=40"]
    exact = planned(*words)
    assert exact.is_traced
    assert exact.cannot_fit
    monkeypatch.setattr(scan_kernels, "package_problem", lambda: "is not installed")
    by_hand = planned(*words)
    assert by_hand.memory.total > exact.memory.total
    refuse_too_large(by_hand)
    text = tight(by_hand)
    assert text is not None
    assert "The kernels of a GPU are not installed here" in text


def test_layers_and_rows_add_memory_in_proportion_and_checkpointing_saves_it() -> None:
    whole = pass_memory(preset(), 25_426, 24, on_gpu=True)
    half_rows = pass_memory(preset(), 25_426, 12, on_gpu=True)
    half_layers = pass_memory(preset("model.n_layers=12"), 25_426, 24, on_gpu=True)
    assert whole.activations == pytest.approx(2 * half_rows.activations, rel=0.05)
    assert whole.activations == pytest.approx(2 * half_layers.activations, rel=0.05)
    checkpointed = pass_memory(preset("trainer.activation_checkpointing=true"), 25_426, 24, on_gpu=True)
    assert checkpointed.activations + checkpointed.working < 0.2 * whole.activations


@pytest.mark.parametrize("checkpointing", [False, True])
def test_many_rows_on_a_cpu_need_what_a_trace_of_all_of_them_finds(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(
        "data.store=unused", "run.dir=unused", "data.row_length=256", "model.d_model=64", "model.n_layers=3",
        "model.d_state=16", "trainer.precision=bf16", f"trainer.activation_checkpointing={checkpointing}",
    )  # fmt: skip
    from_few = pass_memory(config, 765, 30, on_gpu=False)
    monkeypatch.setattr(traced_memory, "_MOST_ROWS", 30)
    assert astuple(from_few) == pytest.approx(astuple(pass_memory(config, 765, 30, on_gpu=False)), rel=1e-4)


@pytest.mark.parametrize(
    ("strategy", "weights", "gradients", "moments"),
    [("ddp", 4, 4, 8), ("fsdp2", 1, 1, 2), ("zero2", 4, 1, 2), ("zero3", 1, 1, 2)],
)
def test_what_strategies_hold(strategy: str, weights: int, gradients: int, moments: int) -> None:
    """In bytes a parameter, on four ranks."""
    pytest.importorskip("deepspeed")
    plan = make_plan(preset(f"trainer.strategy={strategy}"), 1, 4, "h100")
    held = [plan.memory.weights, plan.memory.gradients, plan.memory.moments]
    assert held == pytest.approx([n * plan.size.whole for n in (weights, gradients, moments)], rel=1e-6)
    assert (plan.memory.gathered > 0) == (weights == 1)
    assert plan.size.whole == plan.size.root + 24 * plan.size.layer == 66_269_138


def test_speed_of_a_data_sheet_scales_with_the_share_and_the_ranks() -> None:
    of_step = preset("data.rows_per_lane=1")
    plan = make_plan(of_step, 1, 8, "h100", share=0.5)
    one = make_plan(of_step, 1, 8, "h100", share=0.25)
    assert plan.step_s is not None
    assert one.step_s is not None
    assert one.step_s == pytest.approx(2 * plan.step_s)
    slower = make_plan(of_step, 1, 8, "a100", share=0.5)
    assert slower.step_s is not None
    assert slower.step_s > 1.5 * plan.step_s
    many = make_plan(of_step, 8, 8, "h100", share=0.5)
    assert many.step_s is not None
    assert plan.step_s / many.step_s == pytest.approx(8, rel=0.2)  # the update is not divided
    text = render_plan(many)
    assert "modelled, not measured: 50% of the roofline" in text
    assert "NVIDIA H100" in text
    assert "64 on 8 nodes" in text


def test_an_epoch_is_that_of_the_store(atlas: Atlas, tmp_path: Path) -> None:
    """As many steps as it takes to read as many cells as it has for training."""
    config = load_config(*tiny_words(atlas.store, tmp_path / "run"))
    measured = Measured(192, 2.0, 1.0, 10**9, "a machine", 10**12, False)
    plan = make_plan(config, 1, 1, measured=measured)
    n_train = sum(entry.n_train for entry in Manifest.load(atlas.store).datasets)
    assert plan.facts.n_cells == n_train
    assert plan.epoch_steps == pytest.approx(n_train / (4 * plan.facts.cells_per_row))
    # Four rows of 96 tokens: two forward passes as large as the measured one.
    assert plan.step_s == 2 * 2.0 + 1.0
    text = render_plan(plan)
    assert re.search(r"an epoch +\d+ steps", text)
    assert "measured on this machine (a machine) with 192 tokens" in text
    weighted = replace(config, data=replace(config.data, weights={"first": 3}))
    names = [entry.name for entry in Manifest.load(atlas.store).datasets]
    if "first" in names:
        again = make_plan(weighted, 1, 1, measured=measured).facts.n_cells
        assert again is not None
        assert again > n_train


WIDE = ["trainer.precision=fp32", "data.micro_rows=24"]


def planned(*words: str) -> Plan:
    """As `gm-train launch` plans it."""
    config = preset("cluster.gpu_type=h100", "data.rows_per_lane=1", *words)
    cluster = config.cluster
    return make_plan(config, cluster.nodes, cluster.gpus_per_node, device_of_cluster(cluster))


def refusal(*words: str) -> str:
    with pytest.raises(DataError) as caught:
        refuse_too_large(planned(*words))
    return str(caught.value)


def advised(text: str) -> list[list[str]]:
    """The words of each way out that a message names."""
    ways = re.split(r", or ", text.split(": set ")[1].split("set ")[-1])
    return [way.split(" (")[0].split(" ") for way in ways]


def test_what_cannot_fit_is_refused_with_settings_that_help() -> None:
    too_large = [*WIDE, "model.n_layers=40"]
    text = refusal(*too_large)
    assert re.search(r"a rank needs [\d.]+ GB by the plan \(± 25%\), and H100 SXM 80 GB has 73\.6 GB for it", text)
    ways = advised(text)
    assert [way[0].split("=")[0] for way in ways] == ["data.micro_rows", "trainer.activation_checkpointing"]
    for way in ways:
        assert planned(*too_large, *way).fits


def test_a_plan_refuses_only_beyond_its_error() -> None:
    """The plan may be wrong by a quarter: in between, it warns."""
    large = [*WIDE, "model.n_layers=32"]
    plan = planned(*large)
    assert not plan.fits
    assert not plan.cannot_fit
    refuse_too_large(plan)
    text = tight(plan)
    assert text is not None
    assert "may run out of memory: if it does, set data.micro_rows=12" in text
    assert planned(*large, *advised(text.replace("does, set", "does: set"))[0]).fits
    small = planned("data.micro_rows=1")
    refuse_too_large(small)
    assert tight(small) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "way"),
    [
        # One setting alone helps; only several together; only more nodes.
        (["model.d_model=4096", "model.n_layers=40", "data.micro_rows=1"], "trainer.activation_checkpointing=true"),
        (
            ["model.d_model=4096", "model.n_layers=48", "data.micro_rows=24"],
            "trainer.strategy=fsdp2 trainer.activation",
        ),
        (["model.d_model=8192", "model.n_layers=24", "cluster.gpu_memory_gb=64"], "cluster.nodes="),
    ],
)
def test_the_way_out_of_a_large_model_is_one(words: list[str], way: str) -> None:
    words = [*words, "trainer.strategy=ddp", "cluster.nodes=1"]
    text = refusal(*words)
    assert f"set {way}" in text
    for settings in advised(text):
        assert planned(*words, *settings).fits


def test_a_model_that_fits_nowhere() -> None:
    text = refusal("model.d_model=16384", "model.n_layers=2", "data.lanes=8", "cluster.gpu_memory_gb=2")
    assert text.endswith("no setting makes it fit: make the model smaller")


@pytest.mark.parametrize(
    ("words", "memory", "name"),
    [
        ([], None, "a GPU of unknown memory, taken to be as fast as H100 SXM 80 GB"),
        (["cluster.gpu_type=v100"], None, "a GPU of unknown memory, taken to be as fast as H100 SXM 80 GB"),
        (["cluster.gpu_type=v100", "cluster.gpu_memory_gb=32"], 32e9, "a GPU of 32 GB, taken to be as fast as H100"),
        (["cluster.gpu_type=nvidia_h100_80gb"], 80e9, "H100 SXM 80 GB"),
        (["cluster.gpu_type=a100_40gb"], 40e9, "a GPU of 40 GB, taken to be as fast as A100 SXM 80 GB"),
        (["cluster.gpu_type=a100_3g.20gb"], 20e9, "a GPU of 20 GB, taken"),
        (["cluster.gpu_type=h200", "cluster.gpu_memory_gb=141"], 141e9, "H200 SXM 141 GB"),
        (["cluster.gpu_type=gh200"], None, "a GPU of unknown memory"),
    ],
)
def test_the_memory_of_the_gpus_of_a_cluster(words: list[str], memory: float | None, name: str) -> None:
    device = device_of_cluster(preset(*words).cluster)
    assert device.memory == memory
    assert device.name.startswith(name)


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    for words, fragment, code in (
        (["--device", "b9000"], "expected one of a100, h100, h200", 2),
        (["--share", "2"], "must lie in 0 … 1", 2),
        (["--measured", "--share", "0.5"], "leave --device and --share out", 2),
        (["cluster.nodes=5"], "40 ranks: do not divide data.lanes=192", 2),
        (["model.arch=transformer"], "memory is planned for bimamba and mamba only", 1),
    ):
        assert main(["plan", PRESET, *words]) == code
        assert fragment in capsys.readouterr().err
    with pytest.raises(ConfigError):
        make_plan(preset(), 5, 1, "h100")


def test_the_command_prints_the_plan_and_leaves_with_1_if_it_cannot_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", PRESET, "cluster.nodes=8", "cluster.gpu_type=nvidia_h200"]) == 0
    out = capsys.readouterr().out
    for fragment in ("H200 SXM 141 GB", "activations", "checkpoints 795.2 MB", "max_steps", "GPU-hours"):
        assert fragment in out
    large = [PRESET, "trainer.precision=fp32", "data.micro_rows=24", "model.n_layers=40"]
    assert main(["plan", *large, "--device", "h100"]) == 1
    captured = capsys.readouterr()
    assert "sum" in captured.out
    assert "a rank needs" in captured.err
    assert main(["plan", *large]) == 0  # nothing says which GPU it is
    assert "a GPU of unknown memory" in capsys.readouterr().out


@pytest.mark.slow
def test_a_measured_plan_of_this_machine(capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path) -> None:
    words = [*tiny_words(atlas.store, tmp_path / "run"), "trainer.devices=1"]
    assert main(["plan", *words, "--measured"]) == 0
    out = capsys.readouterr().out
    assert "measured on this machine" in out
    assert "at the peak of a step with" in out
    assert not (tmp_path / "run").exists()


def test_ranks_on_cpus_have_memory_but_no_data_sheet() -> None:
    plan = make_plan(preset("trainer.precision=fp32", "data.micro_rows=1"), 2, 1)
    assert (plan.step_s, plan.fits, plan.on_gpu) == (None, True, False)
    assert "--measured takes a few steps" in render_plan(plan)
    assert "a CPU" in summary(plan)
    cpu = rank_memory(plan.config, 25_426, "ddp", 2, 1, on_gpu=False)
    assert cpu == plan.memory


def test_names_of_gpus() -> None:
    known = {"h100": "h100", "nvidia_h200": "h200", "A100": "a100", "gh200": None, "v100": None, "": None}
    assert {name: known_device(name) for name in known} == known
    assert set(DEVICES) == {"a100", "h100", "h200"}
