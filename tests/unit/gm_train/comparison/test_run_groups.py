"""Groups of repeated runs, the settings that differ, and what a run has cost."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gm_train.checkpoint.find import COMMIT, SCHEMA
from gm_train.comparison.compared_run import read_run
from gm_train.comparison.run_groups import different_settings, group_runs
from tests.support.run_folders import TOKENS, write_run, write_scores


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path: Path) -> None:
    words = [("run.seed=0",), ("run.seed=1",), ("optim.lr=1e-3",), ("optim.lr=1e-3", "run.seed=4")]
    runs = [read_run(write_run(tmp_path / f"run{number}", *given)) for number, given in enumerate(words)]
    first, second = group_runs(runs)
    assert [run.config.run.seed for run in first.runs] == [0, 1]
    assert [run.config.run.seed for run in second.runs] == [0, 4]
    assert (first.label, second.label) == ("[1]", "[2]")
    assert different_settings([first, second]) == {"optim.lr": [5e-4, 1e-3], "run.seed": [[0, 1], [0, 4]]}


def test_a_run_of_another_length_or_a_second_one_of_a_seed_is_another_group(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a", "run.seed=1")),
        read_run(write_run(tmp_path / "b", "run.seed=2", steps=6)),
        read_run(write_run(tmp_path / "c", "run.seed=1")),
        read_run(write_run(tmp_path / "d", "run.seed=3")),
    ]
    names = [[Path(run.name).name for run in group.runs] for group in group_runs(runs)]
    assert names == [["a", "d"], ["b"], ["c"]]


def test_runs_of_stores_that_differ_are_no_repeats(tmp_path: Path) -> None:
    """The path of a store tells nothing of its content."""
    runs = [read_run(write_run(tmp_path / f"run{seed}", f"run.seed={seed}")) for seed in range(4)]
    stores = (None, "a" * 64, "b" * 64, "a" * 64)
    groups = group_runs([replace(run, store=store) for run, store in zip(runs, stores, strict=True)])
    assert [[run.config.run.seed for run in group.runs] for group in groups] == [[0, 1, 3], [2]]


def test_the_store_is_that_of_the_newest_checkpoint(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_scores(run, 20.0)
    assert read_run(run).store is None
    for step in (2, 4):
        checkpoint = run / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "identity.json").write_text(json.dumps({"store": f"hash {step}"}))
        content = {"schema": SCHEMA, "form": "full", "n_ranks": 1, "step": step, "val_loss": None, "files": {}}
        (checkpoint / COMMIT).write_text(json.dumps(content))
    assert read_run(run).store == "hash 4"


def test_only_settings_that_differ_are_listed(tmp_path: Path) -> None:
    a = read_run(write_run(tmp_path / "a", "objective.language=missing", "objective.shown=[0.1, 0.9]"))
    b = read_run(write_run(tmp_path / "b", "objective.language=missing"))
    assert different_settings(group_runs([a, b])) == {"objective.shown": [[0.1, 0.9], [0.2, 0.8]]}
    assert different_settings(group_runs([a])) == {}


def test_compute_is_that_of_all_starts(tmp_path: Path) -> None:
    """Two steps on one rank, then two on four, of half an hour each."""
    run = read_run(write_run(tmp_path / "a", starts=((0, 1), (2, 4))))
    compute = run.compute()
    assert (compute["steps"], compute["cells"], compute["tokens"]) == (4, 28, 4 * TOKENS)
    assert (compute["hours"], compute["rank_hours"]) == pytest.approx((2.0, 5.0))
    assert (compute["processor"], compute["revision"]) == ("EPYC", "abc")
    assert (compute["parameters"], compute["scored_step"]) == (None, None)
    assert run.validation() == [(2 * TOKENS, 4.0), (4 * TOKENS, 2.0)]


def test_a_run_without_a_record_of_its_starts_counts_one_rank(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", starts=((0, 4),))
    (run / "environment.json").unlink()
    compute = read_run(run).compute()
    assert compute["rank_hours"] == compute["hours"] == pytest.approx(2.0)
    assert compute["processor"] is None
