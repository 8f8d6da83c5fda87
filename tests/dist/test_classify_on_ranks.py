"""Learning a label on two ranks: the losses, scores and classes of one process."""

from pathlib import Path

import pytest

from gm_train.checkpoint.find import best_checkpoint
from gm_train.config.load import load_config
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from tests.conftest import Atlas
from tests.support.training_runs import train_ranks
from tests.unit.gm_train.train.test_classify import words


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_are_one_process(atlas: Atlas, tmp_path: Path, strategy: str, frozen: bool) -> None:
    more = [f"task.frozen={str(frozen).lower()}", "optim.lr=3e-3"]
    fit(load_config(*words(atlas, tmp_path / "one", *more)))
    # Saved on two ranks half-way, and resumed there.
    on_ranks = [*words(atlas, tmp_path / "two", *more), f"trainer.strategy={strategy}"]
    assert train_ranks([*on_ranks, "trainer.max_steps=8"], 2, tmp_path / "log") == [0, 0], (
        tmp_path / "log"
    ).read_text()
    assert train_ranks(on_ranks, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    ours, theirs = (read_rows(tmp_path / run / METRICS) for run in ("two", "one"))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.get("sample_hash") == b.get("sample_hash")
        for key in ("loss", "grad_norm", "val_loss", "val_accuracy", "val_macro_f1"):
            assert (key in a) == (key in b)
            if key in a:
                assert a[key] == pytest.approx(b[key], abs=2e-5), key
    assert best_checkpoint(tmp_path / "two").classes is not None
