"""Names and values from PyTorch, Lightning and Hugging Face lead to the settings of gm-train."""

from pathlib import Path

import pytest

from gm_train.cli.main import main
from gm_train.config.check import ConfigError
from gm_train.config.load import DEFAULTS, advice_on_key, load_config
from gm_train.config.other_names import NO_SETTING, SETTINGS, VALUES

GOOD = ["data.store=a.zarr", "data.lanes=4", "data.micro_rows=4"]


def test_every_advice_names_a_setting_and_no_name_is_one_itself() -> None:
    names = [name for names in SETTINGS.values() for name in names.split()]
    assert len(names) == len(set(names))
    for settings in SETTINGS:
        assert set(settings.split(", ")) <= set(DEFAULTS)
    own = {name.rsplit(".", 1)[-1] for name in DEFAULTS}
    assert own.isdisjoint([*names, *NO_SETTING])
    assert set(VALUES) <= set(DEFAULTS)


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("optim.learning_rate", "is it optim.lr?"),
        ("learning_rate", "is it optim.lr?"),
        ("lr", "is it optim.lr?"),
        ("weight_decay", "is it optim.weight_decay?"),
        ("batch_size", "is it data.lanes, data.rows_per_lane?"),
        ("data.batch_size", "is it data.lanes, data.rows_per_lane?"),
        ("max_epochs", "a run is as long as trainer.max_steps, in optimizer steps"),
        ("trainer.max_epochs", "a run is as long as trainer.max_steps, in optimizer steps"),
        ("trainer.accelerator", "a GPU is used if there is one; CUDA_VISIBLE_DEVICES='' hides it"),
        ("trainer.gpus", "is it trainer.devices?"),
        ("trainer.gradient_clip_val", "is it optim.clip?"),
        ("data.num_workers", "is it data.workers?"),
        ("model.hidden_size", "is it model.d_model?"),
        ("model.dropout", "there is no dropout: a resumed run would depend on how many ranks drew it"),
        ("seed", "is it run.seed?"),
        ("trainer.seed", "is it run.seed?"),
        ("trainer.max_step", "is it trainer.max_steps?"),
        ("objective.pathway", "is it objective.pathways?"),
        ("optim.momentum", "`gm-train fit --settings` lists all"),
    ],
)
def test_an_unknown_key_leads_to_the_right_one(key: str, advice: str) -> None:
    assert advice_on_key(key) == advice
    with pytest.raises(ConfigError) as caught:
        load_config(*GOOD, f"{key}=1")
    assert f"unknown key {key} ({advice})" in str(caught.value)


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("trainer.precision=bf16-mixed", "expected fp32 | bf16 (is it bf16?)"),
        ("trainer.precision=bf16-true", "expected fp32 | bf16 (is it bf16?)"),
        ("trainer.precision=16-mixed", "expected fp32 | bf16 (fp16 is not supported: use bf16)"),
        ("trainer.precision=16", "expected fp32 | bf16 (fp16 is not supported: use bf16)"),
        ("trainer.precision=FP16", "expected fp32 | bf16 (fp16 is not supported: use bf16)"),
        ("trainer.precision=32-true", "expected fp32 | bf16 (is it fp32?)"),
        ("trainer.precision=fp8", "expected fp32 | bf16\n"),
        ("trainer.devices=auto", "(null takes as many as the launcher started)"),
        ("trainer.strategy=fsdp", "(is it fsdp2?)"),
        ("trainer.strategy=deepspeed_stage_3", "(is it zero3?)"),
        ("objective.language=mlm", "(is it masked?)"),
        ("model.kernel=triton", "(is it mamba_ssm?)"),
    ],
)
def test_an_unknown_value_leads_to_the_right_one(word: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(*GOOD, word)
    assert advice in f"{caught.value}\n"


def test_a_number_in_a_file_where_other_programs_take_one_leads_to_the_value(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("trainer:\n  precision: 16\n")
    with pytest.raises(ConfigError, match="precision: 16 is not text: fp16 is not supported: use bf16"):
        load_config(*GOOD, str(file))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "a.yaml", "--optim.lr", "1e-3"], "write optim.lr=1e-3"),
        (["fit", "--optim.lr", "1e-3", "a.yaml"], "write optim.lr=1e-3"),
        (["fit", "a.yaml", "--optim.lr=1e-3"], "write optim.lr=1e-3"),
        (["fit", "a.yaml", "--lr", "1e-3"], "write optim.lr=1e-3"),
        (["fit", "a.yaml", "--max-steps", "5"], "write trainer.max_steps=5"),
        (["fit", "a.yaml", "--learning-rate", "1e-3"], "learning-rate: is it optim.lr?"),
        (["fit", "a.yaml", "--model.tie_output"], "write model.tie_output=VALUE"),
        (["launch", "a.yaml", "--cluster.nodes", "2"], "write cluster.nodes=2"),
        (["doctor", "a.yaml", "--trainer.devices=2"], "write trainer.devices=2"),
        (["bench", "model", "--model.n_layers=2"], "write model.n_layers=2"),
        (["eval", "run", "a.h5ad", "--labels", "x", "--out", "o"], "unrecognized arguments: --labels"),
        (["data", "inspect", "s.zarr", "--picture"], "unrecognized arguments: --picture"),
    ],
)
def test_an_unknown_option_is_refused_with_the_usage_of_its_command(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    command = " ".join(words[: 2 if words[0] in ("data", "bench") else 1])
    error = capsys.readouterr().err
    assert error.startswith(f"usage: gm-train {command} ")
    assert message in error
    assert ("settings have no dashes" in error) == ("write" in message or "is it" in message)
