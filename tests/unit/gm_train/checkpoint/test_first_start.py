"""What is fixed at the first start of a run: the rows of a step, where the configuration leaves them open."""

import dataclasses
from pathlib import Path

import pytest

from gm_train.checkpoint.first_start import fix_rows_of_run, fix_rows_per_lane
from gm_train.config import rows_per_lane
from gm_train.config.load import config_from_file, load_config
from gm_train.config.schema import Config
from gm_train.loading.datamodule import CellDataModule
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import EXACT, history


def open_config(atlas: Atlas, run: Path, *words: str) -> Config:
    return load_config(*tiny_words(atlas.store, run), "data.rows_per_lane=null", *words)


def test_a_run_keeps_the_rows_of_its_first_start(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another choice at a later start would read other cells: the losses are those of a run that names the number."""
    rest = ["data.micro_rows=null"]
    monkeypatch.setattr(rows_per_lane, "FEW_TOKENS", 600)
    fit(open_config(atlas, tmp_path / "open", *rest, "trainer.max_steps=4"))
    assert "data.rows_per_lane=2, chosen for 1 ranks" in capsys.readouterr().out
    monkeypatch.setattr(rows_per_lane, "FEW_TOKENS", 5000)
    for text in (
        tmp_path / "open" / "config.yaml",
        tmp_path / "open" / "checkpoints" / "step-00000004" / "config.yaml",
    ):
        assert config_from_file(text).data.rows_per_lane == 2
    fit(open_config(atlas, tmp_path / "open", *rest, "trainer.max_steps=8"))
    assert "chosen for" not in capsys.readouterr().out
    named = load_config(*tiny_words(atlas.store, tmp_path / "named"), "data.rows_per_lane=2", *rest)
    fit(dataclasses.replace(named, trainer=dataclasses.replace(named.trainer, max_steps=8)))
    rows = [[{key: row.get(key) for key in EXACT} for row in history(tmp_path / name)] for name in ("open", "named")]
    assert len(rows[0]) == 9  # with a validation
    assert rows[0] == rows[1]


def test_a_run_that_is_only_planned_is_looked_up(atlas: Atlas, tmp_path: Path) -> None:
    fit(load_config(*tiny_words(atlas.store, tmp_path), "data.rows_per_lane=3", "trainer.max_steps=1"))
    later = open_config(atlas, tmp_path)
    assert fix_rows_of_run(later, 4) == ""
    assert later.data.rows_per_lane == 3
    other = open_config(atlas, tmp_path / "other")
    # A rank has one lane, and two rows in a forward pass.
    assert "data.rows_per_lane=2, chosen for 4 ranks" in fix_rows_of_run(other, 4)
    named = load_config(*tiny_words(atlas.store, tmp_path), "data.rows_per_lane=5")
    assert fix_rows_per_lane(named, 4, None) == ""
    assert named.data.rows_per_lane == 5


def test_a_data_module_chooses_for_the_ranks_of_its_trainer(atlas: Atlas, tmp_path: Path) -> None:
    import lightning as L

    from gm_train.train.module import GeneMambaModule

    config = open_config(atlas, tmp_path, "data.micro_rows=8")
    data = CellDataModule(config)
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.fit(GeneMambaModule(config), datamodule=data)
    assert data.config.data.rows_per_lane == 2
    assert trainer.accumulate_grad_batches == 1
    assert config.data.rows_per_lane is None
