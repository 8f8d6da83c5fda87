"""`gm-train ablate`: the list, and options that cannot work. Trainings: tests/unit/gm_train/ablation."""

from pathlib import Path

import pytest

from gm_train.ablation.definition import FOLDER
from gm_train.cli.main import main
from tests.support.tiny_ablations import write_definition


def test_without_a_name_it_lists_the_ablations_with_their_questions(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert main(["ablate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names
    assert all(line.endswith("?") for line in lines)
    monkeypatch.chdir(tmp_path)
    assert main(["ablate"]) == 2
    assert "no ablations in configs/ablations: give this command where that folder is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "nonsense: no such ablation: there are"),
        (["objectives-blood", "--data", "mine.h5ad"], "--data mine.h5ad: the cells of this ablation come with scanpy"),
        (["objectives-gut"], "the cells of this ablation are in a file: name it with --data FILE"),
        (["norms", "--data", "mine.h5ad"], "--data mine.h5ad: the cells of this ablation are simulated"),
        (["norms", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (
            ["norms", "--variants", "batch"],
            "--variants batch: not in configs/ablations/norms.yaml: there are pre, none",
        ),
        (["norms", "--seeds", "9"], "--seeds 9: not in"),
    ],
)
def test_options_that_cannot_work_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_definition_with_an_unknown_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_definition(tmp_path, {"colour": "red"})
    assert main(["ablate", str(path), "--out", str(tmp_path / "out")]) == 1
    assert f"{path}: unknown key colour: there are question, cells" in capsys.readouterr().err
