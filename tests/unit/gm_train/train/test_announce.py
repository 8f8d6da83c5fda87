"""What a run prints before it trains."""

from pathlib import Path

import pytest

from gm_train.config.load import load_config
from gm_train.train.announce import warn_of_other_kernels
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words


def test_a_run_that_goes_beyond_its_schedule_says_so(
    atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny_words(atlas.store, tmp_path / "run"), "optim.schedule_steps=null", "optim.min_lr_ratio=0.1"]

    def printed(max_steps: int) -> str:
        capsys.readouterr()
        fit(load_config(*words, f"trainer.max_steps={max_steps}"))
        return capsys.readouterr().out

    line = "steps after 6 train at the final learning rate, 0.0003: optim.schedule_steps ends there"
    # The first start fixes the schedule. It ends where the run does, and so does a start that has nothing to do.
    assert "learning rate" not in printed(6)
    assert "learning rate" not in printed(6)
    out = printed(8)
    assert out.splitlines().count(line) == 1
    assert out.index("resuming") < out.index(line) < out.index("finished")
    assert line in printed(9)
    # A schedule that was given is as its first start wanted it.
    words[1] = f"run.dir={tmp_path / 'other'}"
    words.append("optim.schedule_steps=6")
    assert "final learning rate" not in printed(8)
    assert line in printed(9)


def test_the_objective_is_named_with_settings_that_do_nothing(
    atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for language, note in (("masked", False), ("missing", True)):
        chosen = [f"objective.language={language}", "objective.mask_rate=0.4", "trainer.max_steps=1"]
        fit(load_config(*tiny_words(atlas.store, tmp_path / language), *chosen))
        out = capsys.readouterr().out
        assert f"\nobjective {language}: " in out
        assert ("objective.mask_rate has no effect: it is for objective.language=masked" in out) is note
        assert "random_rate" not in out


def test_ranks_with_another_kernel_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = ("mamba_ssm", "auto: on a GPU"), ("torch", "auto: mamba_ssm cannot run here (no gcc)")
    warn_of_other_kernels([good, good])
    assert caplog.text == ""
    warn_of_other_kernels([good, bad, bad])
    assert "2 of 3 ranks do not compute with mamba_ssm as rank 0 does: rank 1 computes with torch (a" in caplog.text
