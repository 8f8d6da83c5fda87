"""Weights go out and come in bit for bit, and damaged or wrong ones are refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file

from gm_train.checkpoint.find import COMMIT, Checkpoint, load_model, open_checkpoint
from gm_train.checkpoint.state import hash_weights
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.config.schema import ModelConfig, TaskConfig
from gm_train.model.classes import Calibration, Classes
from gm_train.train.fit import fit
from gm_train.weights.exported_folder import write_hashes
from tests.conftest import Atlas, tiny_words
from tests.support.checkpoints import GENES, write_checkpoint
from tests.support.disks import small_disk
from tests.support.small_models import configs


def export(checkpoint: Path, out: Path, *words: str) -> Path:
    assert main(["export", str(checkpoint), str(out), *words]) == 0
    return out


def take_in(weights: Path, out: Path, *words: str) -> Checkpoint:
    assert main(["import", str(weights), str(out), *words]) == 0
    return open_checkpoint(out)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 1
    return capsys.readouterr().err


def assert_equal(ours: Checkpoint, theirs: Checkpoint) -> None:
    (a, tokenizer, _), (b, their_tokenizer, _) = load_model(ours), load_model(theirs)
    states = a.state_dict(), b.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert tokenizer.medians_hash == their_tokenizer.medians_hash


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs.filter(lambda config: config.arch != "transformer"))
def test_a_checkpoint_comes_back_from_its_export(tmp_path: Path, config: ModelConfig) -> None:
    for old in tmp_path.iterdir():
        shutil.rmtree(old)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", store_hash="5a1e", **vars(config))
    out = export(checkpoint.path, tmp_path / "out")
    back = take_in(out, tmp_path / "back")
    assert_equal(back, checkpoint)
    (_, tokenizer, settings), (_, first, of_first) = load_model(back), load_model(checkpoint)
    assert (tokenizer.hash, settings.model) == (first.hash, of_first.model)
    again = export(back.path, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    saved = [json.loads((c.path / "identity.json").read_text()) for c in (checkpoint, back)]
    assert saved[1].pop("imported") == {"layout": "gm-train", "weights": hash_weights(load_model(back)[0].state_dict())}
    assert saved[0] == saved[1]
    positions = [json.loads((c.path / "position.json").read_text()) for c in (checkpoint, back)]
    assert positions[0] == positions[1]
    assert (back.step, positions[1]["cells"], positions[1]["store_hash"]) == (7, 70, "5a1e")


CLASSES = Classes("kind", ("a", "b", "c"), (9, 4, 5), Calibration(0.7, 0.9, 0.1, 40, 30, 2))


def test_a_classifier_comes_back_from_its_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = TaskConfig("classify", "kind", head_layers=2, head_width=6)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", classes=CLASSES, task=task)
    out = export(checkpoint.path, tmp_path / "out")
    back = take_in(out, tmp_path / "back")
    assert_equal(back, checkpoint)
    assert back.classes == checkpoint.classes == CLASSES
    card = (out / "README.md").read_text()
    assert "fine-tuned for 'kind'. Training cells of each class: a (9), b (4), c (5)." in card
    assert "with a probability of 0.900 or more, 30 of them get a label, 2 of these a wrong one" in card
    # The published layout has no place for it, which is said.
    capsys.readouterr()
    published = export(checkpoint.path, tmp_path / "published", "--format", "published")
    assert "classifier of 'kind' has no place in the published layout: left out" in capsys.readouterr().out
    assert not [name for name in load_file(published / "model.safetensors") if "classifier" in name]


@pytest.mark.parametrize("aggregation", ["gate", "concat", "mean", "sum"])
def test_a_checkpoint_comes_back_from_the_published_layout(tmp_path: Path, aggregation: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", aggregation=aggregation)
    out = export(checkpoint.path, tmp_path / "out", "--format", "published")
    back = take_in(out, tmp_path / "back", "--top-k", "16")
    a, b = load_model(checkpoint), load_model(back)
    assert_equal(back, checkpoint)
    assert a[1].hash == b[1].hash
    again = export(back.path, tmp_path / "again", "--format", "published")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arch": "mamba"}, "model.arch=mamba"),
        ({"arch": "transformer"}, "model.arch=transformer"),
        ({"norm": "pre"}, "no norm before the mixer"),
        ({"aggregation": "head_gate"}, "gate, concat, mean and sum"),
        ({"gate_per_layer": True}, "one aggr for all layers"),
        ({"tie_output": True}, "weights of its own"),
    ],
)
def test_the_published_layout_refuses_other_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], reason: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", **changes)
    words = ["export", str(checkpoint.path), str(tmp_path / "out"), "--format", "published"]
    assert reason in refused(words, capsys)
    assert not (tmp_path / "out").exists()


def test_a_transformer_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", arch="transformer")
    message = refused(["export", str(checkpoint.path), str(tmp_path / "out")], capsys)
    assert "model.arch=transformer" in message
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    out = export(checkpoint.path, tmp_path / "out")
    taken = tmp_path / "taken"
    taken.mkdir()
    for words in (["export", str(checkpoint.path), str(taken)], ["import", str(out), str(taken)]):
        assert f"{taken}: exists already" in refused(words, capsys)
    assert list(taken.iterdir()) == []


def test_what_is_not_a_checkpoint_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    (checkpoint.path / COMMIT).unlink()
    message = refused(["export", str(checkpoint.path), str(tmp_path / "out")], capsys)
    assert "not a checkpoint or a run directory" in message


def test_a_checkpoint_of_zero_is_converted_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    content = json.loads((checkpoint.path / COMMIT).read_text())
    (checkpoint.path / COMMIT).write_text(json.dumps(content | {"form": "zero2", "n_ranks": 2}))
    assert "gm-train ckpt reshard" in refused(["export", str(checkpoint.path), str(tmp_path / "out")], capsys)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change tensors of an export, and its hashes too, as somebody does who writes such a folder."""
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})
    rehash(folder)


def rehash(folder: Path) -> None:
    (folder / "files.json").unlink()
    write_hashes(folder)


FIRST = "genemamba.stack.layers.0.mixer.in_proj.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state[FIRST].__setitem__((0, 0), torch.nan), f"{FIRST} has NaN"),
        (lambda state: state.update({FIRST: state[FIRST][:-1].contiguous()}), "in_proj.weight has the shape"),
        (lambda state: state.pop(FIRST), "it is missing"),
        (lambda state: state.update({"genemamba.more": torch.ones(2)}), "no such tensor"),
        (lambda state: state.update({FIRST: state[FIRST].double()}), "is of type torch.float64"),
    ],
    ids=["nan", "shape", "missing", "unknown", "type"],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, torch.Tensor]], None], reason: str
) -> None:
    out = export(write_checkpoint(tmp_path / "checkpoint").path, tmp_path / "out")
    change_weights(out, change)
    assert reason in refused(["import", str(out), str(tmp_path / "back")], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "vocabulary.json", "medians.npy", "tokenizer.json", "files.json"]
)
def test_an_export_that_lacks_a_file_or_was_changed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = export(write_checkpoint(tmp_path / "checkpoint").path, tmp_path / "out")
    words = ["import", str(out), str(tmp_path / "back")]
    content = (out / name).read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 4
    (out / name).write_bytes(bytes(flipped))
    assert str(out) in refused(words, capsys)
    (out / name).write_bytes(content[:-9])
    assert str(out) in refused(words, capsys)
    (out / name).unlink()
    assert f"{name} is missing" in refused(words, capsys)
    (out / name).write_bytes(content)
    assert main(words) == 0


def test_the_card_may_be_edited(tmp_path: Path) -> None:
    out = export(write_checkpoint(tmp_path / "checkpoint").path, tmp_path / "out")
    (out / "README.md").write_text("mine")
    take_in(out, tmp_path / "back")


def test_hashes_may_not_name_files_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export(write_checkpoint(tmp_path / "checkpoint").path, tmp_path / "out")
    files = json.loads((out / "files.json").read_text())
    files["files"]["../checkpoint/COMMIT"] = {"size": 1, "sha256": ""}
    (out / "files.json").write_text(json.dumps(files))
    assert "'../checkpoint/COMMIT'" in refused(["import", str(out), str(tmp_path / "back")], capsys)


def test_files_that_are_not_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export(write_checkpoint(tmp_path / "checkpoint").path, tmp_path / "out")
    whole = (out / "model.safetensors").read_bytes()
    cases = {
        "truncated.safetensors": (whole[:-20], "is not a whole safetensors file"),
        "alone.safetensors": (whole, "of an unknown layout"),
        "truncated.bin": (b"PK\x03\x04 and no more", "truncated.bin"),
        "weights.h5": (whole, "is not a file of weights"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert reason in refused(["import", str(tmp_path / name), str(tmp_path / "back")], capsys)
    assert "no such file or folder" in refused(["import", str(tmp_path / "nothing"), str(tmp_path / "back")], capsys)
    assert "a folder without" in refused(["import", str(tmp_path), str(tmp_path / "back")], capsys)
    assert not (tmp_path / "back").exists()


class Runs:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("by_torch", [True, False])
def test_no_pickle_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], by_torch: bool) -> None:
    file, made = tmp_path / "pytorch_model.bin", tmp_path / "made"
    content = {"mamba_mixer.layers.0.mamba.in_proj.weight": Runs(made)}
    if by_torch:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))
    assert "it was not read" in refused(["import", str(file), str(tmp_path / "back")], capsys)
    assert not made.exists()


def test_no_run_resumes_from_imported_weights(atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*tiny_words(atlas.store, tmp_path / "run"), "trainer.max_steps=4"]
    fit(load_config(*words))
    checkpoint = open_checkpoint(tmp_path / "run")
    out = export(tmp_path / "run", tmp_path / "out")
    shutil.rmtree(checkpoint.path)
    take_in(out, checkpoint.path)
    message = refused(["fit", *words, "trainer.max_steps=8"], capsys)
    assert "has no optimizer state" in message
    assert "model.init_from" in message


def test_verify_and_list_read_an_imported_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export(write_checkpoint(tmp_path / "checkpoint").path, tmp_path / "out")
    back = take_in(out, tmp_path / "back")
    assert main(["ckpt", "verify", str(back.path)]) == 0
    assert "whole" in capsys.readouterr().out
    assert replace(back, path=tmp_path) == replace(Checkpoint.read(back.path), path=tmp_path)
    assert len(GENES) == len(load_model(back)[1].vocabulary.genes)


@pytest.mark.parametrize("size_kb", [8, 24])
def test_a_full_disk_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], size_kb: int) -> None:
    """At 8 kB, the weights do not fit. At 24 kB, they do, and what comes after them does not."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", n_layers=1)
    out = export(checkpoint.path, tmp_path / "out")
    with small_disk(tmp_path / "disk", size_kb) as disk:
        for words in (["export", str(checkpoint.path)], ["import", str(out)]):
            assert "cannot be written" in refused([*words, str(disk / "new")], capsys)
            assert list(disk.iterdir()) == []
