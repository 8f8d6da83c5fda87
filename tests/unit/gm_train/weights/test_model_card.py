"""The card of an export says what the weights were trained on, and shows scores only of these weights."""

import json
import shutil
import stat
from pathlib import Path

import pytest
import yaml

from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store.manifest import Manifest
from gm_train.checkpoint.find import list_checkpoints, load_model, open_checkpoint
from gm_train.checkpoint.state import hash_weights
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words, write_cells


@pytest.fixture(scope="module")
def run(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "run"
    fit(load_config(*tiny_words(atlas.store, folder), "trainer.max_steps=5"))
    return folder


def card_of(path: Path, out: Path, *words: str) -> str:
    assert main(["export", str(path), str(out), *words]) == 0
    return (out / "README.md").read_text()


def test_it_names_data_training_environment_and_licence(run: Path, atlas: Atlas, tmp_path: Path) -> None:
    card = card_of(run, tmp_path / "out", "--license", 'mine: "all"')
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == 'mine: "all"'
    manifest = Manifest.load(atlas.store)
    assert manifest.hash in card
    for entry in manifest.datasets:
        counts = f"| {entry.name} | {entry.n_cells:,} | {entry.n_train:,} | {entry.n_validation:,} | {entry.n_test:,} |"
        assert counts in card
        assert entry.content_hash in card
    steps = [row for row in read_rows(run / METRICS) if "tokens" in row]
    assert f"5 steps, {steps[-1]['position']:,} cells (a cell that was read twice counts twice)" in card
    assert f"{sum(row['tokens'] for row in steps):,} tokens" in card
    assert hash_weights(load_model(open_checkpoint(run))[0].state_dict()) in card
    start = json.loads((run / "environment.json").read_text())["starts"][-1]
    assert f"torch {start['packages']['torch']}" in card
    assert "1 rank on 1 node, strategy single" in card
    assert "was not scored" in card
    # An earlier checkpoint has seen less.
    early = list_checkpoints(run / "checkpoints")[0]
    assert f"{sum(row['tokens'] for row in steps[: early.step]):,} tokens" in card_of(early.path, tmp_path / "early")


def test_it_counts_ranks_and_nodes(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    content = json.loads((copy / "environment.json").read_text())
    content["starts"][-1] |= {"ranks": 1_024, "nodes": 128}
    (copy / "environment.json").write_text(json.dumps(content))
    assert "1,024 ranks on 128 nodes, strategy single" in card_of(copy, tmp_path / "out")


def test_it_says_what_is_not_known(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "weights")]) == 0
    card = card_of(tmp_path / "weights", tmp_path / "again")
    assert "The store was not named" in card
    assert "the number of tokens is not recorded" in card
    assert "imported from the gm-train layout" in card
    assert "The environment of the training is not recorded" in card
    assert "No licence was named" in card
    assert "license" not in yaml.safe_load(card.split("---")[1])


def test_a_store_that_is_missing_or_another_one_is_not_listed(run: Path, atlas: Atlas, tmp_path: Path) -> None:
    # The run's checkpoints hold the list themselves, and what is imported does not.
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "weights")]) == 0
    weights = tmp_path / "weights"
    assert "could not be read" in card_of(weights, tmp_path / "a", "--store", str(tmp_path / "gone.zarr"))
    assert "split by" in card_of(weights, tmp_path / "b", "--store", str(atlas.store))
    content = json.loads((open_checkpoint(run).path / "identity.json").read_text())
    assert content["store"] in (tmp_path / "a" / "README.md").read_text()
    medians = atlas.store.parent / "medians.zarr"
    splits = SplitOptions(by="cell", validation=0.2)
    for name, files in (("other", atlas.files[1:]), ("grown", atlas.files)):
        make_store(files, medians, tmp_path / f"{name}.zarr", top_k=48, splits=splits, say=lambda line: None)
    assert "another one" in card_of(weights, tmp_path / "c", "--store", str(tmp_path / "other.zarr"))
    more = write_cells(tmp_path / "more.h5ad", 40, 80, seed=9)
    make_store([more], None, tmp_path / "grown.zarr", add=True, splits=splits, say=lambda line: None)
    card = card_of(weights, tmp_path / "d", "--store", str(tmp_path / "grown.zarr"))
    assert "| second |" in card
    assert "| more |" not in card


def test_scores_are_shown_with_their_controls_and_only_of_this_checkpoint(
    run: Path, atlas: Atlas, tmp_path: Path
) -> None:
    words = [*map(str, atlas.files), "--max-cells", "60", "--mask-seeds", "1", "--tasks", "masked"]
    assert main(["eval", str(run), *words]) == 0
    file = run / "eval" / "eval.json"
    results = json.loads(file.read_text())
    card = card_of(run, tmp_path / "scored")
    assert all(name in card for name in ("| model |", "order control", "random weights"))
    early = list_checkpoints(run / "checkpoints")[0]
    assert early.step == 4
    assert "scored step 5, not these weights" in card_of(early.path, tmp_path / "early")
    del results["checkpoint"]
    file.write_text(json.dumps(results))
    assert "does not say which checkpoint it scored" in card_of(run, tmp_path / "damaged")


def test_no_path_of_this_machine_leaves_with_the_weights(run: Path, atlas: Atlas, tmp_path: Path) -> None:
    card_of(run, tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        assert not any(str(path).encode() in content for path in (run.parent, atlas.store.parent)), file
        assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "out" / "config.json").stat().st_mode)
