"""Configurations are merged left to right, and refused with all their problems at once."""

from pathlib import Path

import pytest

from gm_train.cli.main import main
from gm_train.config.check import ConfigError
from gm_train.config.load import load_config

GOOD = ["data.store=a.zarr", "data.lanes=4", "data.micro_rows=4"]


def problems(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*GOOD, *words)
    return str(caught.value)


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("optim:\n  lr: 0.1\nmodel:\n  n_layers: 3\n")
    config = load_config(*GOOD, "optim.lr=1", str(file), "model.n_layers=5")
    assert (config.optim.lr, config.model.n_layers, config.model.d_model) == (0.1, 5, 512)


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model:\n  width: 3\n  n_layers: many\nnonsense: 1\n")
    text = problems(str(file), "optim.learning_rate=1", "lr=3")
    for fragment in ("model.width", "n_layers", "nonsense", "optim.learning_rate", "is it optim.lr"):
        assert fragment in text
    for fragment in ("missing.yaml", "width", "greater than 0"):
        assert fragment in problems("missing.yaml", "model.width=3", "optim.lr=0")


def test_text_stays_text(tmp_path: Path) -> None:
    """YAML would read these as a number, a boolean and a number of another base."""
    for text in ("2024_01", "no", "0123"):
        assert load_config(*GOOD, f"run.dir={text}").run.dir == text
    file = tmp_path / "a.yaml"
    file.write_text("run:\n  dir: 2024_01\nmodel:\n")
    assert "put it in quotes" in problems(str(file))


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["objective.language=next_token"], "already seen the token"),
        (["objective.language=next_token", "model.arch=transformer"], "model.arch=transformer: every position"),
        (["model.d_model=100"], "does not divide"),
        (["model.arch=transformer", "model.n_heads=7"], "model.n_heads=7"),
        (["model.arch=transformer", "model.d_model=72"], "must be a whole, even number, not 9"),
        (["model.aggregation=head_gate", "model.gate_per_layer=true"], "already has one per layer"),
        (["model.arch=lstm"], "bimamba | mamba"),
        (["model.aggregation=max"], "gate | mean | sum | concat"),
        (["data.micro_rows=3"], "these do: 1, 2, 4"),
        (["trainer.devices=3"], "share; these numbers of ranks do: 1, 2, 4"),
        (["trainer.devices=2", "trainer.num_nodes=4"], "8 ranks: do not divide"),
        (["trainer.devices=2"], "does not divide the 2 rows that each of 2 ranks takes in a step"),
        (["trainer.devices=0"], "greater than 0"),
        (["trainer.strategy=deepspeed"], "zero2 | zero3"),
        (["optim.lr=0"], "greater than 0"),
        (["objective.language=masked", "objective.mask_rate=1"], "between 0 and 1"),
        (["objective.pathway_size=[5]"], "smallest, largest"),
        (["data.workers=-1"], "not be negative"),
        (["data.store="], "data.store is empty"),
        (["optim.lr=.inf"], "must be finite"),
        (["optim.warmup_steps=50", "optim.schedule_steps=40"], "longer than the schedule"),
        (["objective.pathway_genes=1"], "at least 2"),
        (["tracking.mlflow=off"], "auto | none"),
        (["objective.pathway_size=[5"], "not YAML"),
        (["optim.lr=${nope}"], "optim.lr"),
        (["nonsense"], "neither a .yaml file nor key=value"),
        (["missing.yaml"], "cannot be read"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], fragment: str) -> None:
    assert fragment in problems(*words)


def test_next_token_is_for_the_unidirectional_model_or_for_the_paper() -> None:
    load_config(*GOOD, "objective.language=next_token", "model.arch=mamba")
    load_config(*GOOD, "objective.language=next_token", "objective.paper_compat=true")


def test_settings_of_the_other_architecture_do_not_matter() -> None:
    load_config(*GOOD, "model.arch=transformer", "model.head_dim=60")
    load_config(*GOOD, "model.n_heads=7")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    assert "broken.yaml" in problems(str(file))


def test_the_command_leaves_with_2_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *GOOD, f"run.dir={tmp_path / 'run'}", "model.width=3"]) == 2
    assert "unknown key model.width" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["demo", "genemamba-66m", "genemamba-66m-4096"])
def test_presets_are_valid(name: str) -> None:
    load_config(f"configs/{name}.yaml")
