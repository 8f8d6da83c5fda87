"""Every example of docs/extending.md runs, as if its code stood in its file and its line in its table."""

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster import sbatch_options
from cluster.batch_script import render_batch_script, resolved
from data_shards.counts import formats
from data_shards.counts.count_file import open_counts
from gm_train.cli.main import main
from gm_train.config import parts
from gm_train.config.check import ConfigError
from gm_train.config.load import load_config
from gm_train.evaluation import score_pictures, score_table, tasks
from gm_train.run.records import METRICS, read_rows
from gm_train.train import columns
from tests.conftest import Atlas, tiny_words
from tests.support.launch_cases import configured
from tests.support.training_runs import start

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = {
    title: re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
}
#: The tables of the page, and the modules that hold them.
TABLES: dict[str, ModuleType] = {
    "FORMATS": formats,
    "MIXERS": parts,
    "AGGREGATIONS": parts,
    "OBJECTIVES": parts,
    "STRATEGIES": parts,
    "TASKS": tasks,
    "COLUMNS": columns,
    "OPTIONS": sbatch_options,
}


def add(title: str) -> None:
    """Run the code of a section in the module of the file that it names, and its last line in the table's module."""
    *code, line = SECTIONS[title]
    scope: dict[str, Any] = {"shlex": shlex}
    for block in code:
        name = re.match(r"# (\S+)\.py\n", block).group(1).replace("/", ".")  # type: ignore[union-attr]
        module = importlib.import_module(name) if (ROOT / f"{name.replace('.', '/')}.py").is_file() else None
        if module is None:
            module = sys.modules[name] = ModuleType(name)
        exec(compile(block, name, "exec"), vars(module))
        scope |= vars(module)
    table = re.match(r"[A-Z]+", line).group()  # type: ignore[union-attr]
    scope[table] = getattr(TABLES[table], table)
    exec(line, scope)
    setattr(TABLES[table], table, scope[table])


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore the tables after each test."""
    before = {name: getattr(module, name) for name, module in TABLES.items()}
    copies = {name: dict(table) if isinstance(table, dict) else table for name, table in before.items()}
    modules = set(sys.modules)
    yield
    for name, table in before.items():
        if isinstance(table, dict):
            table.clear()
            table.update(copies[name])
        setattr(TABLES[name], name, table)
    for name in set(sys.modules) - modules:
        if not hasattr(sys.modules[name], "__file__"):
            del sys.modules[name]


def test_the_page_has_an_example_for_each_table_and_files_that_exist() -> None:
    assert len(SECTIONS) == len(TABLES) == 8
    named = {re.match(r"[A-Z]+", blocks[-1]).group() for blocks in SECTIONS.values()}  # type: ignore[union-attr]
    assert named == set(TABLES)
    rows = re.findall(r"^\| \[.*\|$", PAGE, re.M)
    assert len(rows) == 8
    for path in re.findall(r"`((?:gm_train|data_shards|cluster|tests)/[^`]*)`", "\n".join(rows)):
        assert (ROOT / path).exists(), path


def test_a_reader_of_counts(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(1.0, (7, 5))
    counts[:, 0] += 1
    path = tmp_path / "cells.csv"
    pd.DataFrame(counts, [f"cell {i}" for i in range(7)], [f"gene {i}" for i in range(5)]).to_csv(path)
    add("A reader of counts")
    with open_counts(path) as file:
        ((_, chunk),) = file.chunks()
        assert chunk.toarray().tolist() == counts.tolist()
        assert file.gene_names == [f"gene {i}" for i in range(5)]
    assert main(["data", "medians", str(path), "--out", str(tmp_path / "medians.zarr")]) == 0


@pytest.mark.parametrize(
    ("title", "word"),
    [
        ("A mixer", "model.mixer=conv"),
        ("An aggregation", "model.aggregation=maximum"),
        ("An objective", "objective.language=tail"),
        ("A strategy", "trainer.strategy=ddp_small"),
    ],
)
def test_a_part_that_a_setting_names_is_trained_with(title: str, word: str, atlas: Atlas, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*tiny_words(atlas.store, run), "trainer.max_steps=3", word]
    process = start(words, log, prepare=partial(add, title))
    process.join()
    assert process.exitcode == 0, log.read_text()
    steps = [row for row in read_rows(run / METRICS) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(row["loss"] > 0 for row in steps)


def test_a_part_is_refused_until_it_is_listed(atlas: Atlas, tmp_path: Path) -> None:
    words = [*tiny_words(atlas.store, tmp_path / "run"), "model.mixer=conv"]
    with pytest.raises(ConfigError, match=r"model.mixer=conv: expected mamba2$"):
        load_config(*words)
    add("A mixer")
    assert load_config(*words).model.mixer == "conv"


def test_the_objective_hides_a_quarter_and_shows_the_rest(atlas: Atlas) -> None:
    add("An objective")
    predict = parts.load_part("objective.language", "tail").predict
    lengths = np.array([8, 3, 5])
    tokens = np.arange(2, 18)
    found = predict(tokens, lengths, np.zeros(3, np.uint64), None)
    assert found.states.tolist() == [6, 7, 15]
    assert found.targets.tolist() == [8, 9, 17]
    assert found.visible[found.states].tolist() == [1, 1, 1]
    assert found.visible[~found.hidden].tolist() == tokens[~found.hidden].tolist()


def test_an_evaluation_task(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start([*tiny_words(atlas.store, run), "trainer.max_steps=3"], log)
    process.join()
    add("An evaluation task")
    for module in (score_table, score_pictures):
        monkeypatch.setattr(module, "TASKS", tasks.TASKS)
    assert main(["eval", str(run), *map(str, atlas.files), "--tasks", "size"]) == 0
    rows = json.loads((run / "eval" / "eval.json").read_text())["size"]
    assert {(row["ranks"], row["scored"]) for row in rows} == {
        (ranks, name) for ranks in ("plain", "dithered") for name in ("model", "random weights")
    }
    assert "Number of genes of" in (run / "eval" / "eval.md").read_text()
    results = json.loads((run / "eval" / "eval.json").read_text())
    assert results["tasks"] == {"asked": ["size"], "scored": ["size"]}
    assert "R² is that of ridge regression." in results["notes"]
    results["size"] = [row for row in rows if row["scored"] == "model"]
    with pytest.raises(ValueError, match="size scores on plain ranks lack: random weights"):
        score_table.check_controls(results)


def test_a_column(atlas: Atlas, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*tiny_words(atlas.store, run), "trainer.max_steps=3"]
    process = start(words, log, prepare=partial(add, "A column of metrics.jsonl"))
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert [row["pairs"] for row in read_rows(run / METRICS) if "loss" in row] == [0, 0, 0]


def test_an_sbatch_option(tmp_path: Path) -> None:
    config = resolved(configured(f"run.dir={tmp_path / 'my run'}"))
    before = render_batch_script(config, 1, python="python3")
    add("An sbatch option")
    lines = set(render_batch_script(config, 1, python="python3").splitlines()) - set(before.splitlines())
    assert lines == {f"#SBATCH --comment='{tmp_path / 'my run'}'"}
