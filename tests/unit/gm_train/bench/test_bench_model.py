"""The benchmark itself, on tiny models: cells, runners, alternation, and a whole run with processes of its own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch.autograd.profiler_util import FunctionEvent

from data_shards.errors import DataError
from data_shards.tokens.vocabulary import PAD, Vocabulary
from gm_train.bench.measure.peaks import Peaks
from gm_train.bench.model import bench_model, sections
from gm_train.bench.model.contenders import GENEMAMBA, Contender, ladder, option_pairs
from gm_train.bench.model.layer_runner import LayerRunner, is_installed
from gm_train.bench.model.loss_memory import LossMemoryRunner
from gm_train.bench.model.model_plan import ModelPlan
from gm_train.bench.model.model_runner import ModelRunner
from gm_train.bench.model.profile import ProfileRunner, _part_of_module, _times, profile_step
from gm_train.bench.model.rooflines import KernelRunner
from gm_train.bench.model.workload import Workload, make_batches, read_packed_rows
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.config.schema import Config, ModelConfig, ObjectiveConfig
from gm_train.model.genemamba import GeneMamba
from tests.conftest import Atlas, write_gene_sets

CPU = torch.device("cpu")
MODEL = ModelConfig(d_model=16, n_layers=2, d_state=8, head_dim=8, chunk=16, n_heads=2, d_ff=40)
MASKED = ObjectiveConfig(language="masked")
CONFIG = Config(model=MODEL, objective=MASKED)


@pytest.fixture
def load(atlas: Atlas) -> Workload:
    return Workload(atlas.store, None, row_length=64, tokens_per_step=128, n_batches=3)


def test_batches_are_the_cells_of_the_store_cut_to_a_length(load: Workload) -> None:
    rows = read_packed_rows(replace(load, length=10))
    assert len(rows) == 2 * 3
    assert rows.lengths.max() <= 10
    assert max(len(rows.part(i, i + 1).tokens) for i in range(6)) > 50


def test_padded_and_packed_are_the_same_cells(load: Workload) -> None:
    (packed, packed_shape), (padded, shape) = (make_batches(load, MASKED, p, True) for p in (False, True))
    assert (shape.cells, shape.tokens) == (packed_shape.cells, packed_shape.tokens)
    assert shape.slots == shape.cells * 64
    for narrow, wide in zip(packed, padded, strict=True):
        both = [np.sort(b.input_ids[b.input_ids != PAD].numpy()) for b in (narrow, wide)]
        np.testing.assert_array_equal(*both)
        assert wide.segment.min() == 1  # pads are tokens
        assert len(wide.targets) == wide.input_ids.shape[0] * 63
        assert (wide.targets == PAD).any()
        at = wide.target_at
        assert torch.equal(wide.targets, wide.input_ids.flatten()[at + 1])


def test_on_full_rows_there_is_nothing_to_pad(load: Workload, atlas: Atlas) -> None:
    lengths = [np.diff(zarr.open_array(path, mode="r")[:]) for path in atlas.store.glob("*/indptr")]
    shortest = int(np.concatenate(lengths).min())
    full = replace(load, length=shortest, row_length=shortest, tokens_per_step=16 * shortest)
    (packed, packed_shape), (padded, padded_shape) = (make_batches(full, MASKED, p, True) for p in (False, True))
    assert packed_shape.slots == padded_shape.slots == packed_shape.tokens
    assert torch.equal(packed[0].input_ids, padded[0].input_ids)


def test_too_few_cells_are_refused(load: Workload) -> None:
    with pytest.raises(DataError, match="--tokens-per-step"):
        make_batches(replace(load, tokens_per_step=10**6), MASKED, False, False)


def test_every_rung_and_option_trains(load: Workload, tmp_path: Path) -> None:
    racers = [*ladder(CONFIG, False, CPU), *option_pairs(CONFIG, False, write_gene_sets(tmp_path / "sets.gmt"))[1]]
    for racer in racers:
        runner = ModelRunner(racer, [load], "cpu")
        shape, flops = runner.use(0, warmup=1)
        assert len(runner.steps(3)) == 3
        assert all(np.isfinite(runner.losses))
        assert flops > 0
        assert shape.slots == (shape.cells * 64 if racer.padded else 128)


def test_rungs_with_one_loss_have_one_loss(load: Workload) -> None:
    losses = []
    for rung in ladder(CONFIG, False, CPU)[2:]:
        runner = ModelRunner(rung, [load], "cpu")
        runner.use(0, warmup=4)
        losses.append(runner.losses)
    assert len(losses) == 4
    assert all(found == pytest.approx(losses[0], rel=1e-4) for found in losses)


def test_a_loss_that_is_not_finite_ends_the_benchmark(load: Workload) -> None:
    runner = ModelRunner(Contender(GENEMAMBA, CONFIG), [load], "cpu")
    with torch.no_grad():
        runner.model.embedding.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="loss is nan"):
        runner.use(0, warmup=1)


@pytest.mark.parametrize("aggregation", ["gate", "mean", "head_gate"])
def test_each_kernel_is_timed(load: Workload, tmp_path: Path, aggregation: str) -> None:
    config = Config(model=replace(MODEL, aggregation=aggregation), objective=MASKED)
    objective = ObjectiveConfig(language="masked", pathways=str(write_gene_sets(tmp_path / "sets.gmt")))
    runner = KernelRunner(Contender(GENEMAMBA, replace(config, objective=objective)), load, "cpu", repeats=2)
    rows = runner.run()
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows)
    assert "pathway loss" in {row["name"] for row in rows}
    # The timed call computes the gradients of parameters too.
    runner._time(runner._works(torch.float32)["projections"], of_gradients=False)
    mixer = runner._model.stack.layers[0].mixer
    assert mixer.in_proj.weight.grad is not None
    assert mixer.out_proj.weight.grad is not None


def test_a_profile_names_the_parts_of_both_passes(load: Workload) -> None:
    runner = ProfileRunner(Contender(GENEMAMBA, CONFIG), load, "cpu", warmup=1)
    seconds = runner.run()
    parts = {"matmul", "scan", "convolution", "norm and gate", "aggregation", "loss", "optimizer"}
    assert parts <= set(seconds)
    assert seconds.get("other", 0.0) < 0.5 * sum(seconds.values())


def test_kernels_of_one_operation_may_belong_to_several_parts() -> None:
    mixer = FunctionEvent(1, "part: scan", 0, 0, 90)
    event = FunctionEvent(2, "gm_train::mix", 0, 0, 80)
    event.cpu_parent = mixer
    for name, duration in (("_conv_forward_kernel", 3), ("_chunk_scan_fwd_kernel", 5), ("_gated_norm_kernel", 7)):
        event.append_kernel(name, 0, duration)
    assert list(_times(event, True, {})) == [("convolution", 3), ("scan", 5), ("norm and gate", 7)]
    assert list(_times(event, False, {})) == [("scan", event.self_cpu_time_total)]


def test_the_products_of_a_gate_belong_to_it() -> None:
    model = GeneMamba(MODEL, 100)
    parts = {name: _part_of_module(name, module) for name, module in model.named_modules()}
    assert {part for name, part in parts.items() if name.startswith("stack.aggregations.")} == {"aggregation"}
    assert parts["stack.layers.0.mixer.in_proj"] == "matmul"


def test_a_profile_divides_by_the_steps_that_it_has_recorded(load: Workload) -> None:
    """On a GPU, too, where the first of some timed steps has an untimed one before it."""
    runner = ModelRunner(Contender(GENEMAMBA, CONFIG), [load], "cpu")
    runner.use(0, warmup=1)
    runner.device = torch.device("cuda")
    profile_step(runner, steps=2)
    assert len(runner.losses) == 1 + 2


def test_one_layer_of_both_packages_has_the_same_parameters() -> None:
    if not is_installed():
        pytest.skip("transformers is not installed")
    facts = []
    for theirs in (False, True):
        runner = LayerRunner(replace(MODEL, arch="mamba"), theirs, 16, 2, 48, "fp32", "cpu")
        runner.use(1)
        assert len(runner.steps(2)) == 2
        facts.append(runner.facts()["parameters"])
    assert facts[0] == facts[1]


def test_the_memory_of_the_loss_is_measured() -> None:
    found = {whole: LossMemoryRunner(whole, 20_000, 32, 9_000, "cpu").run() for whole in (True, False)}
    logits = found[True]["targets"] * 9_000 * 4  # type: ignore[operator]
    if found[True]["added"] is None:
        pytest.skip("the system does not report resident memory")
    assert found[True]["added"] > logits
    assert found[False]["added"] < found[True]["added"]


def test_a_whole_run_writes_figures_table_and_picture(atlas: Atlas, tmp_path: Path) -> None:
    plan = ModelPlan(
        CONFIG,
        parts=("race",),
        names=("genemamba", "published", "transformer"),
        lengths=(8, 16),
        tokens_per_step=64,
        steps=10,
        warmup=1,
        threads=1,
        store=atlas.store,
        out=tmp_path / "out",
        asked=("bench", "model"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "ROW", 32)
        patch.setattr(bench_model, "simulated_stores", lambda *_: pytest.fail("the store's cells are enough"))
        written = bench_model.run_bench_model(plan)
    assert [path.name for path in written] == ["bench.json", "bench.md", "bench.png"]
    results = json.loads(written[0].read_text())
    assert {(row["contender"], row["length"]) for row in results["race"]} == {
        (name, length) for name in plan.names for length in (8, 16)
    }
    for row in results["race"]:
        assert row["steps"] == len(row["seconds"]) == 10
        assert row["tokens_per_s"] > 0
        assert 0 < row["mfu"] < 1
        assert np.isfinite(row["loss"])
        low, high = row["step_s_quartiles"]
        assert low <= row["step_s"] <= high
    assert results["models"]["transformer"]["over_genemamba"] == pytest.approx(1.0, abs=0.01)
    assert results["models"]["genemamba"]["kernel"] == "torch"
    assert results["stores"][0]["vocabulary"] == Vocabulary.load(atlas.store / "vocabulary.json").size
    assert results["made"]["packages"]["torch"]
    text = written[1].read_text()
    for word in ("tokens/s", "peak memory", "MFU", "| genemamba |", "Left out", "Measured peaks"):
        assert word in text
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_a_part_that_fails_does_not_stop_the_others(atlas: Atlas, tmp_path: Path) -> None:
    """Rows of natural lengths need more cells than there are; the memory of the loss needs none."""
    plan = ModelPlan(
        CONFIG, parts=("race", "loss-memory"), names=("genemamba",), lengths=(None,), steps=10, warmup=1,
        tokens_per_step=10**6, threads=1, store=atlas.store, out=tmp_path / "out",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gm_train.bench.model.loss_memory.VOCABULARY", 100)
        patch.setattr(sections, "measure_peaks", lambda *_: Peaks(1e9, 512, 1e9))  # the other test measures them
        written = bench_model.run_bench_model(plan)
        with pytest.raises(DataError, match="--tokens-per-step"):
            bench_model.run_bench_model(replace(plan, parts=("race",)))
    results = json.loads(written[0].read_text())
    assert "race" not in results
    assert len(results["loss_memory"]) == 2
    assert "race: FAILED: " in results["left_out"][0]
    assert "--tokens-per-step" in written[1].read_text()


def test_a_preset_gives_sizes_and_neither_cells_nor_gene_sets(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[ModelPlan] = []
    out = tmp_path / "out"
    out.mkdir()
    (out / "bench.md").write_text("")
    monkeypatch.setattr(bench_model, "run_bench_model", lambda plan: plans.append(plan) or [out / "bench.md"])
    for path in sorted(Path("configs").glob("*.yaml")):
        assert main(["bench", "model", str(path), "--store", str(atlas.store), "--out", str(out)]) == 0
        config = plans[-1].config
        assert (config.objective.pathways, plans[-1].store) == ("", atlas.store)
        assert config.objective.language == "masked"
        assert config.model == load_config(str(path)).model
    assert len(plans) >= 3
