"""Every setting is explained once, in schema.py; the command and the page show it."""

from pathlib import Path

import pytest

from gm_train.cli.main import main
from gm_train.config.load import DEFAULTS
from gm_train.config.settings import all_sections, render_settings

PAGE = Path(__file__).parents[4] / "docs" / "settings.md"


def test_every_setting_has_a_meaning() -> None:
    settings = [setting for section in all_sections() for setting in section.settings]
    assert [setting.name for setting in settings] == list(DEFAULTS)
    assert [setting.name for setting in settings if not setting.meaning] == []
    assert all(section.about.endswith(".") for section in all_sections())
    by_name = {setting.name: setting for setting in settings}
    assert (by_name["optim.lr"].type, by_name["optim.lr"].default) == ("float", 5e-4)
    assert by_name["optim.lr"].meaning == "peak learning rate of AdamW"
    assert "- `data.pool_blocks` (int | None, default `null`): blocks of a lane" in render_settings()


def test_the_command_prints_what_the_page_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--settings"]) == 0
    printed = capsys.readouterr().out
    assert PAGE.read_text() == printed, "run `gm-train fit --settings > docs/settings.md`"


def test_without_settings_fit_still_needs_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit"])
    assert stopped.value.code == 2
    assert "the following arguments are required" in capsys.readouterr().err
