"""Promise 10: the gradient of both losses is the same on one rank and on many, with every strategy."""

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from gm_train.checkpoint.find import open_checkpoint
from gm_train.run.records import METRICS, read_rows
from tests.conftest import Atlas, tiny_words
from tests.dist.conftest import SPREADING, STEPS
from tests.support.training_runs import assert_close, history, train, train_ranks


def test_promise_10_two_ranks_train_as_one(two_ranks: tuple[str, Path], one_process: Path) -> None:
    """The same losses, gradient norms and validations, on the same samples."""
    _, run = two_ranks
    assert_close(run, one_process)
    rows = [row for row in history(run) if "loss" in row]
    assert len(rows) == STEPS
    # Without clipped gradients, or with a loss of zero, the comparison would prove little.
    assert min(row["l_pathway"] for row in rows) > 0.1
    assert sum(row["grad_norm"] > 1.0 for row in rows) > 3
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1


def test_promise_10_tokens_of_all_ranks_are_counted(two_ranks: tuple[str, Path], one_process: Path) -> None:
    _, run = two_ranks
    ours, theirs = (
        [(row["tokens"], row["fill"]) for row in read_rows(path / METRICS) if "tokens" in row]
        for path in (run, one_process)
    )
    assert ours == theirs


@pytest.mark.parametrize("strategy", SPREADING)
def test_promise_10_four_ranks_and_uneven_shards(
    atlas: Atlas, words: list[str], one_process: Path, tmp_path: Path, strategy: str
) -> None:
    """A vector over 82 genes and two heads cannot be divided evenly among four ranks."""
    command = [*tiny_words(atlas.store, tmp_path / "run"), *words, f"trainer.strategy={strategy}"]
    assert train_ranks(command, 4, tmp_path / "log") == [0] * 4, (tmp_path / "log").read_text()
    assert_close(tmp_path / "run", one_process)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
@pytest.mark.parametrize(
    "variant",
    [
        ["model.tie_output=true", "model.gate_per_layer=true"],
        ["model.arch=mamba", "objective.language=next_token", "model.norm=none"],
        ["model.aggregation=concat", "data.micro_rows=2"],
        ["model.arch=transformer", "model.d_ff=96", "model.tie_output=true"],
        ["objective.language=missing"],
    ],
    ids=["tied", "unidirectional", "concat", "transformer", "missing"],
)
def test_promise_10_variants_of_the_model(
    atlas: Atlas, words: list[str], tmp_path: Path, strategy: str, variant: list[str]
) -> None:
    short = [*words, "trainer.max_steps=6", "optim.schedule_steps=30", "trainer.validate_every_steps=3", *variant]
    assert train([*tiny_words(atlas.store, tmp_path / "one"), *short], tmp_path / "log") == 0
    command = [*tiny_words(atlas.store, tmp_path / "two"), *short, f"trainer.strategy={strategy}"]
    assert train_ranks(command, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    assert_close(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("option", ["activation_checkpointing", pytest.param("compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2", "zero3"])
def test_promise_10_with_other_blocks(
    atlas: Atlas, words: list[str], one_process: Path, tmp_path: Path, strategy: str, option: str
) -> None:
    """Checkpointed blocks are computed again in the backward pass, so sharded weights must be gathered again."""
    command = [*tiny_words(atlas.store, tmp_path / "run"), *words, f"trainer.strategy={strategy}"]
    command.append(f"trainer.{option}=true")
    assert train_ranks(command, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    assert_close(tmp_path / "run", one_process)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", pytest.param("zero2", marks=pytest.mark.slow)])
def test_bf16_computes_narrow_and_keeps_parameters_wide(
    atlas: Atlas, words: list[str], one_process: Path, tmp_path: Path, strategy: str
) -> None:
    """Two ranks in bf16 are as one process in bf16, which differs far more from float32. Saved weights are float32.

    Only three steps: later the last bit of a float32 weight, which depends on the order of a sum, rounds to another
    bf16 number. ZeRO's stage 3 is left out: it adds a layer's bias after its matrix product, which rounds once more.
    """
    short = [*words, "trainer.max_steps=3", "trainer.validate_every_steps=3", "trainer.precision=bf16"]
    assert train([*tiny_words(atlas.store, tmp_path / "one"), *short], tmp_path / "log") == 0
    command = [*tiny_words(atlas.store, tmp_path / "two"), *short, f"trainer.strategy={strategy}"]
    assert train_ranks(command, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    assert_close(tmp_path / "two", tmp_path / "one")
    narrow, wide = (
        [row[name] for row in history(run) if "loss" in row and row["step"] <= 3 for name in ("loss", "grad_norm")]
        for run in (tmp_path / "one", one_process)
    )
    # A single number may agree by chance.
    assert max(abs(ours - theirs) for ours, theirs in zip(narrow, wide, strict=True)) > 1e-3
    state = open_checkpoint(tmp_path / "two").state
    if strategy == "zero2":
        weights = torch.load(state / "zero" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    else:
        saved = FileSystemReader(state).read_metadata().state_dict_metadata
        assert {entry.properties.dtype for name, entry in saved.items() if name.startswith("model.")} == {torch.float32}
