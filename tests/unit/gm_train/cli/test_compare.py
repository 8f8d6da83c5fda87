"""`gm-train compare` end to end, on tiny runs that were trained and scored."""

import json
from pathlib import Path

import pytest

from gm_train.cli.main import main
from tests.conftest import Atlas, tiny_words


def test_trained_and_scored_runs_stand_side_by_side(
    atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {}
    for name, *words in (("a", "run.seed=0"), ("b", "run.seed=1"), ("c", "run.seed=0", "optim.lr=0.03")):
        runs[name] = tmp_path / name
        assert main(["fit", *tiny_words(atlas.store, runs[name]), "trainer.max_steps=4", *words]) == 0
        scoring = ["--max-cells", "60", "--mask-seeds", "2", "--tasks", "masked,reconstruction"]
        assert main(["eval", str(runs[name]), *map(str, atlas.files), *scoring]) == 0
    capsys.readouterr()
    assert main(["compare", *map(str, runs.values()), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "WARNING" not in printed
    assert "[1], mean of 2 runs" in printed
    assert "optim.lr" in printed
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    of_run = {name: json.loads((run / "eval" / "eval.json").read_text()) for name, run in runs.items()}
    for task, key in (("masked", "cross_entropy"), ("reconstruction", "spearman")):
        a, b, c = (of_run[name][task][0][key]["mean"] for name in "abc")
        (rows,) = (t["rows"] for t in content["tables"] if (t["task"], t["ranks"]) == (task, "plain"))
        found = {row["scored"]: row[key] for row in rows}
        assert found["[1]"]["mean"] == pytest.approx((a + b) / 2)
        assert found["[1]"]["sd"] == pytest.approx(abs(a - b) / 2**0.5)
        assert found["[2] - [1]"]["mean"] == pytest.approx(c - (a + b) / 2)
    # Controls that count do not depend on the model.
    assert "order control" in found
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")

    other = ["--max-cells", "40", "--mask-seeds", "2", "--tasks", "masked", "--out", str(runs["c"] / "eval")]
    assert main(["eval", str(runs["c"]), *map(str, atlas.files), *other]) == 0
    capsys.readouterr()
    assert main(["compare", *map(str, runs.values())]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"WARNING: {runs['c']}: NOT COMPARED with {runs['a']}: it was scored on other cells")
    assert "[2] - [1]" not in printed
    assert main(["compare", str(runs["a"])]) == 2
    assert "give two or more run directories" in capsys.readouterr().err
    assert main(["compare", str(runs["a"]), str(atlas.store)]) == 1
    assert "is a token store, not a run directory" in capsys.readouterr().err
