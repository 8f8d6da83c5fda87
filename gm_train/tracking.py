"""MLflow as a mirror of `metrics.jsonl`.

A thread of its own reads the rows that training has written and delivers them. Training never waits for it and never
sees its errors: what could not be delivered stays in `metrics.jsonl` and is delivered by the next start of the run.
"""

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gm_train.config import Config
from gm_train.rundir import METRICS, read_rows

log = logging.getLogger(__name__)

_NOT_METRICS = ("step", "time", "sample_hash")
_BATCH = 900  # MLflow takes at most 1,000 values in one request


def tracking_uri(config: Config) -> str | None:
    """Where the run is mirrored, or None for `tracking.mlflow=none`."""
    if config.tracking.mlflow == "none":
        return None
    if config.tracking.mlflow == "auto":
        return f"sqlite:///{Path(config.run.dir).resolve().parent / 'mlflow.db'}"
    return config.tracking.mlflow


class MlflowMirror(threading.Thread):
    """Delivers a run directory's metrics to MLflow, in the background.

    The MLflow run's id and the last delivered step are kept in `tracking.json`, so that a resumed run goes on in the
    same MLflow run.

    Args:
        config: the run's configuration; `tracking_uri(config)` must not be None.
        first_step: the step that this start begins at; rows up to it are delivered if an earlier start could not.
    """

    def __init__(self, config: Config, first_step: int, interval_s: float = 2.0) -> None:
        super().__init__(name="mlflow-mirror", daemon=True)
        self._config = config
        self._directory = Path(config.run.dir)
        self._state_path = self._directory / "tracking.json"
        self._interval_s = interval_s
        self._ending = threading.Event()
        self._client: Any = None
        state = json.loads(self._state_path.read_text()) if self._state_path.is_file() else {}
        self._run_id: str | None = state.get("run_id")
        self._delivered = min(int(state.get("delivered_step", 0)), first_step)
        self._warned = False
        self.undelivered = True

    def run(self) -> None:
        while True:
            ending = self._ending.wait(self._interval_s)
            try:
                self._deliver(ending)
                self.undelivered = False
            except Exception as error:
                self.undelivered = True
                if not self._warned:
                    self._warned = True
                    log.warning("MLflow cannot be reached (%s); metrics stay in %s", _short(error), METRICS)
            if ending:
                return

    def finish(self, patience_s: float = 30.0) -> None:
        """Deliver what is left, but do not wait for longer than `patience_s`."""
        self._ending.set()
        self.join(patience_s)
        if self.is_alive() or self.undelivered:
            log.warning("MLflow did not take all metrics; the next start of this run delivers them from %s", METRICS)

    def _deliver(self, ending: bool) -> None:
        if self._client is None:
            self._connect()
        rows = [row for row in read_rows(self._directory / METRICS) if row["step"] > self._delivered]
        if not ending:
            # The last step may still get its validation row: leave it for the next round.
            rows = [row for row in rows if row["step"] < rows[-1]["step"]]
        from mlflow.entities import Metric

        values = [
            Metric(key, float(value), int(row["time"] * 1000), row["step"])
            for row in rows
            for key, value in row.items()
            if key not in _NOT_METRICS and value is not None
        ]
        for start in range(0, len(values), _BATCH):
            self._client.log_batch(self._run_id, metrics=values[start : start + _BATCH])
        if rows:
            self._delivered = rows[-1]["step"]
            self._save()
        if ending:
            for name in ("config.yaml", "environment.json", "report.html"):
                if (self._directory / name).is_file():
                    self._client.log_artifact(self._run_id, str(self._directory / name))
            self._client.set_terminated(self._run_id, "FINISHED")

    def _connect(self) -> None:
        # MLflow retries for minutes by default; this thread comes back by itself.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        # Behind the import, which sets levels of its own: creating the tables is not news.
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        uri = tracking_uri(self._config)
        client = MlflowClient(uri)
        if self._run_id is None:
            experiment = client.get_experiment_by_name(self._config.tracking.experiment)
            if experiment is None:
                artifacts = self._directory.resolve().parent / "mlartifacts"
                location = artifacts.as_uri() if str(uri).startswith("sqlite:") else None
                experiment_id = client.create_experiment(self._config.tracking.experiment, artifact_location=location)
            else:
                experiment_id = experiment.experiment_id
            run = client.create_run(str(experiment_id), run_name=self._directory.name)
            self._run_id = str(run.info.run_id)
            params = [Param(key, str(value)[:500]) for key, value in _flat(OmegaConf.structured(self._config)).items()]
            client.log_batch(self._run_id, params=params, tags=[RunTag("run.dir", str(self._directory.resolve()))])
            self._save()
        client.update_run(self._run_id, status="RUNNING")
        self._client = client

    def _save(self) -> None:
        content = {"run_id": self._run_id, "delivered_step": self._delivered}
        temporary = self._state_path.with_name(".tracking.json.tmp")
        temporary.write_text(json.dumps(content) + "\n")
        temporary.rename(self._state_path)


def _flat(config: Any) -> dict[str, Any]:
    container: Any = OmegaConf.to_container(config)
    return {f"{section}.{key}": value for section, values in container.items() for key, value in values.items()}


def _short(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
