"""`gm-train annotate`: from labelled counts to a scored annotator."""

import json
import re
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from data_shards.store.manifest import TEST, VALIDATION, Manifest
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.annotation.fine_tuning import PROTOCOLS, fine_tuning_settings
from gm_train.annotation.predict_file import PredictOptions, predict_file
from gm_train.checkpoint.find import best_checkpoint, open_checkpoint
from gm_train.cli.main import main
from gm_train.config.load import config_from_file, load_config
from gm_train.loading.position import Position
from gm_train.train.fit import fit
from gm_train.train.run_report import write_report
from tests.conftest import Atlas, tiny_words, write_cells
from tests.support.counts_to_stores import read

WORDS = ["--label", "cell_type", "--split-by", "cell", "--epochs", "4"]
SETTINGS = ["--set", "tracking.mlflow=none", "optim.lr=3e-3"]


@pytest.fixture(scope="module")
def annotated(atlas: Atlas, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What `annotate` has made of other cells than the pretrained model has seen, and their file."""
    folder = tmp_path_factory.mktemp("annotated")
    cells = write_cells(folder / "cells.h5ad", 200, 80, seed=3)
    labelled = ad.read_h5ad(cells)
    labelled.obs["cell_type"] = labelled.obs["cell_type"].astype(object)
    labelled.obs.iloc[::25, 0] = np.nan
    labelled.write_h5ad(cells)
    assert main(["annotate", str(pretrained), str(cells), *WORDS, "--out", str(folder / "out"), *SETTINGS]) == 0
    return folder / "out", cells


def test_cells_are_ranked_as_the_model_expects(annotated: tuple[Path, Path], pretrained: Path) -> None:
    store = annotated[0] / "store.zarr"
    tokenizer = Tokenizer.load(open_checkpoint(pretrained).path / "tokenizer")
    assert Tokenizer.load(store).hash == Manifest.load(store).tokenizer_hash == tokenizer.hash


def test_scores_are_those_of_its_own_predictions(annotated: tuple[Path, Path], tmp_path: Path) -> None:
    out, cells = annotated
    results = json.loads((out / "annotation.json").read_text())
    predict_file(out, cells, tmp_path / "all.csv", PredictOptions(0.0), lambda line: None)
    table = pd.read_csv(tmp_path / "all.csv").set_index("cell_id")
    obs = pd.read_parquet(out / "store.zarr/cells/obs.parquet").set_index("cell_id")
    test = (read(out / "store.zarr", "cells/split") == TEST) & obs["cell_type"].notna().to_numpy()
    truth, guesses = obs["cell_type"][test].astype(str), table["label"].loc[obs.index][test]
    assert results["split"] == "test"
    assert results["cells"]["held_out"] == test.sum()
    train = (read(out / "store.zarr", "cells/split") == 0) & obs["cell_type"].notna().to_numpy()
    assert (results["cells"]["train"], results["cells"]["probes_train"]) == (train.sum(), round(0.8 * train.sum()))
    own = results["scores"][0]
    assert own["scored"] == "annotator"
    assert own["accuracy"]["mean"] == pytest.approx(100 * accuracy_score(truth, guesses))
    assert own["macro_f1"]["mean"] == pytest.approx(100 * f1_score(truth, guesses, average="macro"))
    assert [row["scored"] for row in results["scores"][1:]] == [
        "linear probe of the pretrained embedding", "linear probe of PCA", "linear probe of random weights",
        "largest class",
    ]  # fmt: skip
    assert results["checkpoint"]["step"] == best_checkpoint(out).step
    # Unknown cells, with the threshold of the checkpoint.
    predict_file(out, cells, tmp_path / "sure.csv", None, lambda line: None)
    sure = pd.read_csv(tmp_path / "sure.csv").set_index("cell_id")["label"].loc[obs.index][test]
    assert results["unknown"]["labelled"] == (sure != "unknown").sum()
    assert results["unknown"]["wrong"] == ((sure != "unknown") & (sure != truth.to_numpy())).sum()
    confusion = np.array(results["confusion"])
    assert confusion.sum() == test.sum()
    assert np.trace(confusion) == (truth.to_numpy() == guesses.to_numpy()).sum()
    assert "| type 0 |" in (out / "annotation.md").read_text()
    assert (out / "annotation.png").stat().st_size > 1_000
    report = (out / "report.html").read_text()
    assert f"of {test.sum()} test cells" in report
    assert re.search(rf"<td>annotator</td><td[^>]*>{own['accuracy']['mean']:.1f}</td>", report)
    assert report.count('alt="curve: ') == 8
    assert report.count('alt="confusion matrix"') == 1


def test_scores_of_an_older_checkpoint_are_marked(annotated: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(annotated[0], tmp_path / "run"))
    assert "Not of the present model" not in write_report(run).read_text()
    best = best_checkpoint(run)
    results = json.loads((run / "annotation.json").read_text())
    results["checkpoint"]["step"] += 1
    (run / "annotation.json").write_text(json.dumps(results))
    page = write_report(run).read_text()
    assert f"<b>Not of the present model.</b> step {best.step} is the best one now" in page
    assert f"Scores of the checkpoint of step {best.step + 1}." in page


def test_the_same_command_again_goes_on(
    annotated: tuple[Path, Path], pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cells = annotated
    before = (out / "annotation.json").read_text()
    assert main(["annotate", str(pretrained), str(cells), *WORDS, "--out", str(out), *SETTINGS]) == 0
    printed = capsys.readouterr().out
    assert "its store and settings are used again" in printed
    assert "nothing to do at step" in printed
    assert (out / "annotation.json").read_text() == before
    # Its settings are those of `gm-train fit`.
    settings = load_config(str(out / "annotate.yaml"))
    assert settings.model == config_from_file(best_checkpoint(out).path / "config.yaml").model


def test_other_files_need_another_out(
    annotated: tuple[Path, Path], atlas: Atlas, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cells = annotated
    for file, key, *more in (
        (atlas.files[0], "files"), (cells, "split_seed", "--split-seed", "1"), (cells, "layer", "--layer", "x"),
        (cells, "epochs", "--epochs", "5"),
    ):  # fmt: skip
        assert main(["annotate", str(pretrained), str(file), *WORDS, "--out", str(out), *more]) == 1
        message = capsys.readouterr().err
        assert "annotate.yaml: was made by another command:" in message
        assert f"  {key}: " in message
        assert "choose another --out, or repeat that command" in message


def test_it_goes_on_though_the_pretraining_has_newer_checkpoints(
    pretrained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = Path(shutil.copytree(pretrained, tmp_path / "pretrained"))
    cells = write_cells(tmp_path / "in.h5ad", 120, 80, seed=5)
    words = ["annotate", str(begun), str(cells), *WORDS, "--out", str(tmp_path / "out")]
    assert main([*words, *SETTINGS, "trainer.max_steps=5", "optim.schedule_steps=12"]) == 0
    # The checkpoint that it began with is gone.
    shutil.rmtree(begun / "checkpoints")
    fit(load_config(*tiny_words(atlas.store, begun), "trainer.max_steps=14"))
    assert open_checkpoint(begun).step == 14
    shutil.rmtree(begun / "checkpoints/step-00000012")
    assert main([*words, *SETTINGS, "optim.schedule_steps=12"]) == 0
    printed = capsys.readouterr().out
    assert "resuming" in printed
    # Its probe cannot be made any more, the others can.
    scored = json.loads((tmp_path / "out/annotation.json").read_text())["scores"]
    assert [row["scored"] for row in scored][1:3] == ["linear probe of PCA", "linear probe of random weights"]


def test_its_export_is_what_was_scored(annotated: tuple[Path, Path], tmp_path: Path) -> None:
    out = annotated[0]
    assert main(["export", str(out), str(tmp_path / "exported")]) == 0
    best = best_checkpoint(out)
    config = json.loads((tmp_path / "exported/config.json").read_text())
    assert config["gm_train"]["step"] == best.step
    assert config["gm_train"]["classes"]["calibration"] is not None
    card = (tmp_path / "exported/README.md").read_text()
    accuracy = json.loads((out / "annotation.json").read_text())["scores"][0]["accuracy"]["mean"]
    assert re.search(rf"\| annotator \| {accuracy:.1f}", card)
    # Another checkpoint was not scored.
    other = next(path for path in sorted((out / "checkpoints").glob("step-*")) if path != best.path)
    assert main(["export", str(other), str(tmp_path / "other")]) == 0
    assert "| annotator |" not in (tmp_path / "other/README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell_type": "type 0"}, "'type 0' alone has at least task.min_cells=5 training cells"),
        ({"cell_type": np.nan}, "no training cell has a label"),
        (None, "no column 'kind' in obs: --label can be one of cell_type, donor_id"),
    ],
)
def test_labels_that_cannot_be_learned(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object] | None, message: str
) -> None:
    cells = ad.read_h5ad(write_cells(tmp_path / "in.h5ad", 60, 80, seed=4))
    if change is not None:
        cells.obs["cell_type"] = pd.Categorical([change["cell_type"]] * 60, ["type 0"])
    cells.write_h5ad(tmp_path / "in.h5ad")
    words = [*WORDS[2:], "--label", "cell_type" if change is not None else "kind", "--out", str(tmp_path / "out")]
    assert main(["annotate", str(pretrained), str(tmp_path / "in.h5ad"), *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/checkpoints").exists()


def test_without_test_cells_the_validation_cells_are_scored(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = write_cells(tmp_path / "in.h5ad", 120, 80, seed=5)
    out = tmp_path / "out"
    words = [*WORDS, "--test", "0", "--frozen", "--out", str(out), *SETTINGS]
    assert main(["annotate", str(pretrained), str(cells), *words]) == 0
    assert "these cells also chose the checkpoint, so its score is too good" in capsys.readouterr().out
    results = json.loads((out / "annotation.json").read_text())
    assert (results["split"], results["cells"]["held_out"]) == (
        "validation", int((read(out / "store.zarr", "in/split") == VALIDATION).sum()),
    )  # fmt: skip


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_settings_of_a_protocol_are_a_configuration(atlas: Atlas, pretrained: Path, name: str, tmp_path: Path) -> None:
    checkpoint, protocol = open_checkpoint(pretrained), PROTOCOLS[name]
    settings = fine_tuning_settings(checkpoint, atlas.store, protocol, "cell_type", frozen=False, epochs=None)
    words = [f"{key}={value}" for key, value in settings.items()]
    config = load_config(*words, f"data.store={atlas.store}", f"run.dir={tmp_path / 'run'}", "tracking.mlflow=none")
    assert (config.optim.lr, config.task.balanced) == ((1e-4, False) if name == "published" else (9e-5, True))
    assert config.model.init_from == str(checkpoint.path.resolve())
    # What is read: about as many cells a step as the protocol says, and about as many epochs.
    config.trainer.patience = 0
    steps, config.trainer.max_steps = config.trainer.max_steps, 12
    fit(config)
    position = Position.load(open_checkpoint(tmp_path / "run").path / "position.json")
    n_train = sum(entry.n_train for entry in Manifest.load(atlas.store).datasets)
    assert position.cells / position.step * steps / n_train == pytest.approx(protocol.epochs, rel=0.1)
    assert position.cells / position.step == pytest.approx(protocol.cells, rel=0.3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "task.label=donor_id"], "--set task.label=donor_id: `annotate` sets this itself"),
        (["--set", "optim.lr=1", "--set", "run.dir=x"], "--set run.dir=x: `annotate` sets this itself"),
        (["--split-by", "none"], "no donors to hold out: name their column of obs with --donor-key"),
    ],
)
def test_words_that_cannot_be_used(
    annotated: tuple[Path, Path], pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    words: list[str], message: str,
) -> None:  # fmt: skip
    cells = annotated[1]
    given = ["annotate", str(pretrained), str(cells), "--label", "cell_type", "--out", str(tmp_path / "out"), *words]
    assert main(given) > 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_cells_without_donors(
    annotated: tuple[Path, Path], pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ad.read_h5ad(annotated[1])
    del cells.obs["donor_id"]
    cells.write_h5ad(tmp_path / "in.h5ad")
    given = [
        "annotate",
        str(pretrained),
        str(tmp_path / "in.h5ad"),
        "--label",
        "cell_type",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(given) == 1
    assert "divide the cells with --split-by cell, which is a weaker test" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
