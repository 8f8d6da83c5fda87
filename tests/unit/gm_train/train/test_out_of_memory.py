"""Running out of GPU memory ends a run with one message that says what to change."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.errors import DataError
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.config.schema import Config
from gm_train.model.genemamba import GeneMamba
from gm_train.ranks.ranks import Ranks
from gm_train.train.out_of_memory import advice, advising_on_memory
from tests.conftest import Atlas, tiny_words

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB."


def run_out(*_: Any) -> None:
    raise torch.OutOfMemoryError(f"{SAID}\nmore lines of PyTorch")


def test_a_run_ends_with_one_message(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def once(*_: Any) -> None:
        monkeypatch.undo()  # the plan in the message traces the model
        run_out()

    monkeypatch.setattr(GeneMamba, "forward", once)
    assert main(["fit", *tiny_words(atlas.store, tmp_path / "run")]) == 1
    errors = capsys.readouterr().err
    (line,) = [line for line in errors.splitlines() if "out of memory" in line]
    assert line.startswith(f"gm-train: error: rank 0: {SAID}: set ")
    assert "trainer.activation_checkpointing=true" in line
    assert "By the plan, weights and their state take 0.00" in line
    assert "`gm-train plan` compares settings" in line
    assert "Traceback" not in errors
    assert "more lines" not in errors


@pytest.fixture
def config(atlas: Atlas, tmp_path: Path) -> Config:
    words = ("data.lanes=4", "data.rows_per_lane=3", "data.micro_rows=6")
    return load_config(*tiny_words(atlas.store, tmp_path / "run"), *words)


def test_advice_names_only_what_can_still_be_lowered(config: Config) -> None:
    text = advice(config, Ranks())
    assert text.startswith("set data.micro_rows=4, which computes fewer rows at once (now 6); or trainer.activation_ch")
    assert "fsdp2" not in text
    config.data.micro_rows, config.trainer.activation_checkpointing = 1, True
    assert advice(config, Ranks()) == "set trainer.precision=bf16, in a new run: it changes the numbers"
    config.trainer.precision = "bf16"
    assert advice(config, Ranks()) == "start on GPUs with more memory, or on more of them"


def test_a_gpu_says_what_was_in_use(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "device", lambda self: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 70 << 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 80 << 30))
    # No plan can be made for a GPU that is not there; the advice is given all the same.
    said = r"up to 70\.0 GiB; 79\.0 of the GPU's 80\.0 GiB are in use"
    with pytest.raises(DataError, match=said), advising_on_memory(config, Ranks()):
        run_out()


def test_other_errors_pass(config: Config) -> None:
    with pytest.raises(RuntimeError, match="something else"), advising_on_memory(config, Ranks()):
        raise RuntimeError("something else")
