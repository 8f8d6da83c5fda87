"""The commands and the Python of docs/weights.md run as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from gm_train.cli.main import build_parser, main
from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words
from tests.support.checkpoints import run_isolated

PAGE = Path(__file__).parents[4] / "docs" / "weights.md"


def test_the_page_runs(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (gm-train .*)$", PAGE.read_text(), re.M)
    ]
    assert [line[0] for line in lines] == ["export", "import", "fit", "export", "import", "import"]
    for line in lines:
        build_parser().parse_args(line)
    plain = ["model.norm=none", "trainer.max_steps=2"]
    for run in ("runs/demo", "runs/66m"):
        fit(load_config(*tiny_words(atlas.store, Path(run)), *plain))
    out, back, onward, published, published_back, _ = lines
    assert main(out) == main(back) == 0
    # The run of the page needs the demo's cells; this one has other data and the same last words.
    assert main(["fit", *tiny_words(atlas.store, tmp_path), *plain, *onward[2:]]) == 0
    assert main(published) == 0
    assert main([*published_back[:2], "again"]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    printed = run_isolated(code + "\nprint(*states.shape, *logits.shape, *embeddings.shape)", tmp_path, tmp_path)
    assert printed.split()[:3] == ["2", "4", "32"]
    assert printed.split()[-2:] == ["2", "32"]
