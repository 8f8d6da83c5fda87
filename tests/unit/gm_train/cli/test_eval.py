"""`gm-train eval` and the report of a run, end to end on a tiny run."""

import json
import shutil
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import latest_whole
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.evaluation import score_table
from gm_train.evaluation.masked_task import MaskedGenesTask
from gm_train.evaluation.probe_task import ProbeTask
from gm_train.train.fit import fit
from gm_train.train.run_report import write_report
from tests.conftest import Atlas, tiny_words


@pytest.fixture(scope="module")
def trained(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    fit(load_config(*tiny_words(atlas.store, run_dir)))
    return run_dir


def evaluate(run: Path, atlas: Atlas, *words: str) -> int:
    return main(["eval", str(run), *map(str, atlas.files), "--max-cells", "80", "--mask-seeds", "2", *words])


def test_the_command_writes_tables_pictures_and_report(
    trained: Path, atlas: Atlas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(trained, atlas, "--label", "cell_type") == 0
    tokenizer = Tokenizer.load(atlas.store)
    printed = capsys.readouterr().out
    results = json.loads((trained / "eval" / "eval.json").read_text())
    assert score_table.render_text(results) in printed
    assert (trained / "eval" / "eval.md").read_text() == score_table.render_markdown(results)
    assert (results["cells"]["train"], results["cells"]["held_out"]) == (60, 20)
    assert results["cells"]["genes"] == len(tokenizer.vocabulary.genes)
    assert results["cells"]["data_sets_left_out"] == []
    for name in ("eval-scores.png", "eval-embedding.png"):
        assert (trained / "eval" / name).read_bytes().startswith(b"\x89PNG")
    report = (trained / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 3
    assert all(name in report for name in (*MaskedGenesTask.controls, *ProbeTask.controls))
    assert "http" not in report  # nothing is fetched


def test_the_same_checkpoint_scores_the_same_and_out_moves_the_files(
    trained: Path, atlas: Atlas, tmp_path: Path
) -> None:
    checkpoint = latest_whole(trained / "checkpoints")
    assert checkpoint is not None
    for out in ("first", "second"):
        assert evaluate(checkpoint.path, atlas, "--out", str(tmp_path / out)) == 0
    first, second = ((tmp_path / out / "eval.json").read_text() for out in ("first", "second"))
    assert first == second
    assert json.loads(first)["probes"] == []
    assert not (tmp_path / "first" / "eval-embedding.png").exists()


def test_wrong_words_are_refused_with_one_message(
    trained: Path, atlas: Atlas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(trained / "nowhere", atlas) == 1
    assert evaluate(trained, atlas, "--label", "nothing") == 1
    assert evaluate(trained, atlas, "--mask-seeds", "0") == 2
    errors = capsys.readouterr().err
    assert "--label can be one of" in errors
    assert "--mask-seeds 0" in errors
    assert "Traceback" not in errors


def test_a_report_before_any_evaluation_says_how_to_get_one(trained: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run <1>"
    run_dir.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "environment.json"):
        shutil.copy(trained / name, run_dir / name)
    (run_dir / "skipped.jsonl").write_text('{"event": "skipped", "step": 3}\n{"event": "rollback", "step": 3}\n')
    text = write_report(run_dir).read_text()
    assert "gm-train eval" in text
    assert "1 (rollbacks: 1)" in text
    assert "run &lt;1&gt;" in text
    assert "best validation loss" in text


def test_a_directory_without_steps_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no step"):
        write_report(tmp_path)
