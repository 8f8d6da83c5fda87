"""Labels of the cells of a file: those of the model for each cell alone, or unknown."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from data_shards.counts.count_file import open_counts
from data_shards.errors import DataError, OptionError
from gm_train.annotation import predict_file as module
from gm_train.annotation.predict_file import PredictOptions, predict_file
from gm_train.checkpoint.find import best_checkpoint, load_model, open_checkpoint
from gm_train.cli.main import main
from gm_train.model.genemamba import cell_embeddings
from tests.conftest import Atlas
from tests.support.count_files import draw_counts, write_counts


def quiet(line: str) -> None:
    """Drop a line of the report."""


def predict(run: Path, source: Path, out: Path, threshold: float | None = None) -> Any:
    """The output, as anndata or pandas read it."""
    predict_file(run, source, out, PredictOptions(threshold), quiet)
    readers = {".h5ad": ad.read_h5ad, ".zarr": ad.read_zarr, ".csv": pd.read_csv}
    return readers[out.suffix](out)


def test_probabilities_are_those_of_each_cell_alone(annotator: Path, atlas: Atlas, tmp_path: Path) -> None:
    found = predict(annotator, atlas.files[0], tmp_path / "out.h5ad")
    checkpoint = best_checkpoint(annotator)
    classes = checkpoint.classes
    assert classes is not None
    calibration = classes.calibration
    assert calibration is not None
    assert calibration.threshold is not None
    model, tokenizer, _ = load_model(checkpoint)
    expected = []
    with open_counts(atlas.files[0]) as counts, torch.no_grad():
        columns = tokenizer.bind(counts)
        for _, chunk in counts.chunks():
            tokens, indptr = tokenizer.encode(chunk, columns)
            for cell in np.split(tokens.astype(np.int64), indptr[1:-1]):
                ids = torch.from_numpy(cell)[None]
                logits = model.class_logits(cell_embeddings(model(ids, torch.ones_like(ids)), torch.ones_like(ids)))
                expected.append(torch.softmax(logits[0] / calibration.temperature, 0).numpy())
    probabilities = found.obsm["genemamba_probabilities"]
    assert np.abs(probabilities - np.array(expected)).max() < 1e-6
    best = np.array(expected).argmax(1)
    sure = np.array(expected).max(1) >= calibration.threshold
    assert sure.any()
    labels = [classes.names[b] if s else "unknown" for b, s in zip(best, sure, strict=True)]
    assert found.obs["genemamba_label"].tolist() == labels
    assert found.obs["genemamba_probability"].to_numpy() == pytest.approx(probabilities.max(1))
    record = found.uns["genemamba_annotation"]
    assert (record["step"], record["threshold"]) == (checkpoint.step, calibration.threshold)
    assert list(record["classes"]) == ["type 0", "type 1"]
    # The rest is what it was.
    before = ad.read_h5ad(atlas.files[0])
    pd.testing.assert_frame_equal(found.obs.iloc[:, :-2], before.obs)
    assert (found.X != before.X).nnz == 0


def test_every_output_says_the_same(annotator: Path, atlas: Atlas, tmp_path: Path) -> None:
    a, b, table = (predict(annotator, atlas.files[1], tmp_path / f"out{end}") for end in (".h5ad", ".zarr", ".csv"))
    assert a.obs["genemamba_label"].tolist() == b.obs["genemamba_label"].tolist() == table["label"].tolist()
    assert table["cell_id"].tolist() == a.obs_names.tolist()
    assert table.columns.tolist() == ["cell_id", "label", "probability", "P(type 0)", "P(type 1)"]
    for found in (b.obsm["genemamba_probabilities"], table.iloc[:, 3:].to_numpy()):
        assert np.abs(found - a.obsm["genemamba_probabilities"]).max() < 1e-6


def test_the_same_cell_in_another_file(annotator: Path, atlas: Atlas, tmp_path: Path) -> None:
    whole = predict(annotator, atlas.files[0], tmp_path / "whole.h5ad")
    some = np.random.default_rng(0).permutation(150)[:17]
    ad.read_h5ad(atlas.files[0])[some].copy().write_h5ad(tmp_path / "some.h5ad")
    found = predict(annotator, tmp_path / "some.h5ad", tmp_path / "out.h5ad")
    expected = whole.obsm["genemamba_probabilities"][some]
    assert np.abs(found.obsm["genemamba_probabilities"] - expected).max() < 1e-6


def test_cells_without_a_gene_are_unknown(annotator: Path, atlas: Atlas, tmp_path: Path) -> None:
    cells = ad.read_h5ad(atlas.files[1])
    kept = np.ones(cells.n_obs, np.float32)
    kept[[2, 7]] = 0
    cells.X = sp.csr_matrix(sp.diags(kept) @ cells.X)
    cells.write_h5ad(tmp_path / "in.h5ad")
    done = predict_file(annotator, tmp_path / "in.h5ad", tmp_path / "out.h5ad", PredictOptions(0.0), quiet)
    found = ad.read_h5ad(tmp_path / "out.h5ad").obs
    assert np.flatnonzero(found["genemamba_label"] == "unknown").tolist() == [2, 7]
    assert np.flatnonzero(found["genemamba_probability"].isna()).tolist() == [2, 7]
    assert (done.n_empty, int(done.n_of_class.sum())) == (2, cells.n_obs - 2)


def test_the_threshold_that_is_given(annotator: Path, atlas: Atlas, tmp_path: Path) -> None:
    middle = predict(annotator, atlas.files[0], tmp_path / "first.csv")["probability"].median()
    table = predict(annotator, atlas.files[0], tmp_path / "out.csv", threshold=middle)
    assert ((table["label"] == "unknown") == (table["probability"] < middle)).all()
    assert 0 < (table["label"] == "unknown").sum() < len(table)


def test_columns_that_are_there_are_replaced(
    annotator: Path, atlas: Atlas, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predict(annotator, atlas.files[1], tmp_path / "once.h5ad")
    with caplog.at_level(logging.WARNING):
        twice = predict(annotator, tmp_path / "once.h5ad", tmp_path / "twice.h5ad", threshold=0.0)
    assert "obs['genemamba_label'] of the input is replaced" in caplog.text
    assert twice.obs.columns.tolist() == ["cell_type", "donor_id", "genemamba_label", "genemamba_probability"]
    assert "unknown" not in twice.obs["genemamba_label"].tolist()


def refused(run: Path, source: Path, out: Path, message: str, **options: Any) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(DataError, match=message):
        predict_file(run, source, out, PredictOptions(**options), quiet)
    assert sorted(out.parent.iterdir()) == before


def test_a_run_without_a_classifier(pretrained: Path, atlas: Atlas, tmp_path: Path) -> None:
    message = r"step-00000012: has no classifier: fine-tune it .* `gm-train annotate .*--label COLUMN --out OUT`"
    refused(pretrained, atlas.files[0], tmp_path / "out.csv", message)


def test_a_checkpoint_that_was_not_validated(annotator: Path, atlas: Atlas, tmp_path: Path) -> None:
    last = open_checkpoint(annotator)
    assert last.step == 16
    message = r"step-00000016: was saved without a validation, so its probabilities are not calibrated: give the run"
    refused(last.path, atlas.files[0], tmp_path / "out.csv", message)


def test_without_a_threshold_every_cell_is_unknown(
    annotator: Path, atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = module.calibration_of
    monkeypatch.setattr(module, "calibration_of", lambda *given: replace(real(*given), threshold=None))
    assert main(["predict", str(annotator), str(atlas.files[0]), str(tmp_path / "out.csv")]) == 0
    assert set(pd.read_csv(tmp_path / "out.csv")["label"]) == {"unknown"}
    assert "every cell will be unknown: 37 validation cells cannot show" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr", "out.csv"])
def test_outputs_that_cannot_be_written(annotator: Path, atlas: Atlas, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused(annotator, atlas.files[0], tmp_path / name, rf"{name}: exists already: remove it or choose another name")
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr", "out.csv"])
def test_a_failure_on_the_way_leaves_nothing(
    annotator: Path, atlas: Atlas, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise DataError("the disk is full")

    monkeypatch.setattr(module, "choose_classes", failing)
    refused(annotator, atlas.files[0], tmp_path / name, "the disk is full")


def test_files_and_options_that_cannot_be_used(annotator: Path, atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"let its name end in .h5ad or .zarr \(a copy of first.h5ad\) or .csv"):
        predict(annotator, atlas.files[0], tmp_path / "out.tsv")
    with pytest.raises(OptionError, match="--threshold 1\\.5: is a probability"):
        PredictOptions(1.5)
    log = ad.read_h5ad(atlas.files[0])
    log.X = log.X.log1p()
    log.write_h5ad(tmp_path / "log.h5ad")
    refused(annotator, tmp_path / "log.h5ad", tmp_path / "out.csv", "is not a whole count")
    other = write_counts(tmp_path / "other.h5ad", draw_counts(5, 9), genes=[f"other{i}" for i in range(9)])
    refused(annotator, other, tmp_path / "out.csv", "genes")


def test_the_command_counts_labels(
    annotator: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(annotator), str(atlas.files[0]), str(tmp_path / "out.csv")]) == 0
    printed = capsys.readouterr().out
    counts = pd.read_csv(tmp_path / "out.csv")["label"].value_counts()
    for label, n in counts.items():
        assert f"{n:>12,}  {label}\n" in printed
    assert "labels were wrong: at most 40% of cells like these, with 90% confidence" in printed
    assert main(["predict", str(annotator), str(atlas.files[0]), str(tmp_path / "out.csv")]) == 1
