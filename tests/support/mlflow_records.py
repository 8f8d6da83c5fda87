"""Read the metrics of a run from MLflow and from `metrics.jsonl`, to compare them."""

import json
from pathlib import Path

from mlflow.tracking import MlflowClient

from gm_train.run.records import METRICS, read_rows


def mirrored(client: MlflowClient, run: Path, key: str) -> dict[int, float]:
    run_id = json.loads((run / "tracking.json").read_text())["run_id"]
    return {metric.step: metric.value for metric in client.get_metric_history(run_id, key)}


def expected(run: Path, key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in read_rows(run / METRICS) if key in row}
