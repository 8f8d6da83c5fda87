"""MLflow gets a copy of metrics.jsonl; training runs without it as well."""

import json
from pathlib import Path

from mlflow.tracking import MlflowClient

from gm_train.run.records import METRICS, read_rows
from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import train


def words(atlas: Atlas, run: Path, mlflow: str, steps: int) -> list[str]:
    return [*tiny_words(atlas.store, run), f"tracking.mlflow={mlflow}", f"trainer.max_steps={steps}"]


def mirrored(client: MlflowClient, run: Path, key: str) -> dict[int, float]:
    run_id = json.loads((run / "tracking.json").read_text())["run_id"]
    return {metric.step: metric.value for metric in client.get_metric_history(run_id, key)}


def expected(run: Path, key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in read_rows(run / METRICS) if key in row}


def test_a_run_and_its_resume_are_one_mlflow_run(atlas: Atlas, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    assert train(words(atlas, run, "auto", 6), log) == 0
    first_id = json.loads((run / "tracking.json").read_text())["run_id"]
    assert train(words(atlas, run, "auto", 12), log) == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gm-train")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [one.info.run_id for one in runs] == [first_id]
    assert runs[0].info.status == "FINISHED"
    assert runs[0].data.params["model.d_model"] == "32"
    for key in ("loss", "l_lang", "grad_norm", "lr", "tokens_per_s", "val_loss"):
        assert mirrored(client, run, key) == expected(run, key)
    artifacts = {artifact.path for artifact in client.list_artifacts(first_id)}
    assert {"config.yaml", "environment.json", "report.html"} <= artifacts


def test_training_does_not_need_mlflow_and_delivers_later(atlas: Atlas, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    # Nothing listens on the discard port.
    assert train(words(atlas, run, "http://127.0.0.1:9", 6), log) == 0
    assert "MLflow" in log.read_text()
    assert len(expected(run, "loss")) == 6
    assert train(words(atlas, run, "auto", 12), log) == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert mirrored(client, run, "loss") == expected(run, "loss")
    assert len(expected(run, "loss")) == 12
