"""`gm-train ckpt list | verify | reshard` on checkpoints of one process, and a conversion that was killed."""

from pathlib import Path

import pytest

from gm_train.checkpoint.find import Checkpoint, recover
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words


@pytest.fixture
def run(atlas: Atlas, tmp_path: Path) -> Path:
    fit(load_config(*tiny_words(atlas.store, tmp_path / "run"), "trainer.max_steps=5"))
    return tmp_path / "run"


def test_list_shows_form_size_and_validation_loss(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ckpt", "list", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step-00000004", "step-00000005"]
    assert all("by name, written by 1 rank" in line and "MB" in line for line in lines)
    # Only step 5 was validated.
    assert " - " in lines[0]
    assert " - " not in lines[1]


def test_verify_names_what_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ckpt", "verify", str(run)]) == 0
    assert capsys.readouterr().out.count(": whole") == 2
    file = next((run / "checkpoints" / "step-00000005" / "state").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (run / "checkpoints" / "step-00000004" / "COMMIT").write_text("{")
    assert main(["ckpt", "verify", str(run)]) == 1
    printed = capsys.readouterr()
    assert f"state/{file.name} does not have the hash that was committed" in printed.out
    assert "its COMMIT is missing or damaged" in printed.out
    assert "2 not whole" in printed.err


def test_a_missing_checkpoint_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("list", "verify", "reshard"):
        assert main(["ckpt", action, str(tmp_path)]) == 1
        assert str(tmp_path) in capsys.readouterr().err


def test_a_checkpoint_by_name_needs_no_conversion(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Checkpoint.read(run / "checkpoints" / "step-00000005")
    assert main(["ckpt", "reshard", str(run)]) == 0
    assert "by name already" in capsys.readouterr().out
    assert Checkpoint.read(before.path) == before


@pytest.mark.parametrize("moment", ["between the two renames", "before the old one is deleted"])
def test_a_conversion_that_was_killed_loses_nothing(run: Path, moment: str) -> None:
    folder = run / "checkpoints"
    path, replaced = folder / "step-00000005", folder / ".step-00000005.replaced"
    if moment == "between the two renames":
        path.rename(replaced)
    else:
        replaced.mkdir()
        (replaced / "COMMIT").write_text("of the form before")
    (folder / ".reshard-abc").mkdir()
    found = recover(folder)
    assert found is not None
    assert (found.path, found.damage()) == (path, None)
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000004", "step-00000005"]
