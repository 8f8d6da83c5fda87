"""Copy `metrics.jsonl` to MLflow.

A separate thread reads the rows that training has written and sends them. Training never waits for it and never sees
its errors: rows that could not be sent stay in `metrics.jsonl`, and the next start of the run sends them.
"""

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from data_shards.files.atomic import replace_file
from gm_train.config.load import flat
from gm_train.config.schema import Config
from gm_train.run.records import METRICS, parse_rows

log = logging.getLogger(__name__)

REPORT = "report.html"
_NOT_METRICS = ("step", "time", "sample_hash")
_BATCH = 900  # MLflow takes at most 1,000 values in one request


def tracking_uri(config: Config) -> str | None:
    """Return the URI of the MLflow server or database of a run; None if the run has no MLflow logger."""
    if config.tracking.mlflow == "none" or "mlflow" not in config.tracking.loggers:
        return None
    if config.tracking.mlflow == "auto":
        return f"sqlite:///{Path(config.run.dir).resolve().parent / 'mlflow.db'}"
    return config.tracking.mlflow


class MlflowMirror(threading.Thread):
    """Sends a run directory's metrics to MLflow in the background.

    `tracking.json` holds the id of the MLflow run and the last step that was sent, so that a resumed run continues the
    same MLflow run.

    Args:
        config: the run's configuration; `tracking_uri(config)` must not be None.
        first_step: the step that training continues from. Later steps are sent again, because their numbers may differ
            when they are computed again.
        interval_s: seconds between two looks at `metrics.jsonl`.
    """

    def __init__(self, config: Config, first_step: int, interval_s: float = 2.0) -> None:
        super().__init__(name="mlflow-mirror", daemon=True)
        self._config = config
        self._uri = tracking_uri(config)
        self._directory = Path(config.run.dir)
        self._state_path = self._directory / "tracking.json"
        self._interval_s = interval_s
        self._ending = threading.Event()
        self._status = "FINISHED"
        self._client: Any = None
        self._offset = 0  # bytes of metrics.jsonl that have been read
        self._waiting: list[dict[str, Any]] = []  # rows read but not delivered
        self._state = self._load_state()
        self._state["delivered_step"] = min(self._state["delivered_step"], first_step)
        self._warned = False
        self._undelivered = True

    def run(self) -> None:
        """Send new rows every `interval_s` seconds, until `finish` is called."""
        while True:
            ending = self._ending.wait(self._interval_s)
            try:
                self._deliver(ending)
                self._undelivered = False
            except Exception as error:
                self._undelivered = True
                if not self._warned:
                    self._warned = True
                    log.warning("MLflow cannot be reached (%s); metrics stay in %s", _short(error), METRICS)
            if ending:
                return

    def finish(self, status: str, patience_s: float = 30.0) -> None:
        """Send the remaining rows, but wait no longer than `patience_s`.

        Args:
            status: how the run ended, in MLflow's words: FINISHED, FAILED or KILLED.
            patience_s: seconds.
        """
        self._status = status
        self._ending.set()
        self.join(patience_s)
        if self.is_alive() or self._undelivered:
            log.warning("MLflow did not take all metrics; the next `gm-train fit` of this run sends the rest")

    def _load_state(self) -> dict[str, Any]:
        """The state in `tracking.json`; a fresh one if that is of another server or cannot be read."""
        fresh = self._fresh_state()
        try:
            state = json.loads(self._state_path.read_text())
            return fresh | state if state["uri"] == self._uri else fresh
        except (OSError, ValueError, KeyError, TypeError):
            return fresh

    def _fresh_state(self) -> dict[str, Any]:
        return {"uri": self._uri, "run_id": None, "described": False, "delivered_step": 0}

    def _save_state(self) -> None:
        replace_file(self._state_path, json.dumps(self._state) + "\n")

    def _read_new_rows(self) -> None:
        path = self._directory / METRICS
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = parse_rows(whole.decode(), path)
        self._waiting += [row for row in rows if row["step"] > self._state["delivered_step"]]

    def _deliver(self, ending: bool) -> None:
        if self._client is None:
            self._connect()
        self._read_new_rows()
        # The validation row of the last step may still come: leave that step for the next round.
        last = self._waiting[-1]["step"] if self._waiting and not ending else float("inf")
        rows = [row for row in self._waiting if row["step"] < last]
        from mlflow.entities import Metric

        values = [
            Metric(key, float(value), int(row["time"] * 1000), row["step"])
            for row in rows
            for key, value in row.items()
            if key not in _NOT_METRICS and value is not None
        ]
        for start in range(0, len(values), _BATCH):
            self._client.log_batch(self._state["run_id"], metrics=values[start : start + _BATCH])
        if rows:
            self._waiting = self._waiting[len(rows) :]
            self._state["delivered_step"] = rows[-1]["step"]
            self._save_state()
        if ending:
            for name in ("config.yaml", "environment.json", REPORT):
                if (self._directory / name).is_file():
                    self._client.log_artifact(self._state["run_id"], str(self._directory / name))
            self._client.set_terminated(self._state["run_id"], self._status)

    def _connect(self) -> None:
        client = _client(self._uri)
        from mlflow.entities import Param, RunTag
        from mlflow.exceptions import MlflowException

        if self._state["run_id"] is not None:
            try:
                client.get_run(self._state["run_id"])
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                # Somebody deleted the MLflow run: send everything again, to a new one.
                self._state = self._fresh_state()
                self._offset, self._waiting = 0, []
        if self._state["run_id"] is None:
            run = client.create_run(self._experiment_id(client), run_name=self._directory.name)
            self._state["run_id"] = str(run.info.run_id)
            self._save_state()
        run_id = self._state["run_id"]
        if not self._state["described"]:
            params = [Param(key, str(value)[:500]) for key, value in flat(self._config).items()]
            client.log_batch(run_id, params=params, tags=[RunTag("run.dir", str(self._directory.resolve()))])
            self._state["described"] = True
            self._save_state()
        client.update_run(run_id, status="RUNNING")
        self._client = client

    def _experiment_id(self, client: Any) -> str:
        experiment = client.get_experiment_by_name(self._config.tracking.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        # Artifacts go beside the database; a server stores them itself.
        artifacts = self._directory.resolve().parent / "mlartifacts"
        location = artifacts.as_uri() if str(self._uri).startswith("sqlite:") else None
        return str(client.create_experiment(self._config.tracking.experiment, artifact_location=location))


def send_report(directory: Path) -> None:
    """Replace the report in a run's MLflow run, after an evaluation has changed it. A failure is only logged.

    Args:
        directory: the run directory. If the run was never tracked, nothing is sent.
    """
    try:
        state = json.loads((directory / "tracking.json").read_text())
        database = str(state["uri"]).removeprefix("sqlite:///")
        # A database that is not there any more would be made anew, empty.
        if state["run_id"] is not None and (database == state["uri"] or Path(database).is_file()):
            _client(state["uri"]).log_artifact(state["run_id"], str(directory / REPORT))
    except FileNotFoundError:
        return
    except Exception as error:
        log.warning("MLflow did not take the new %s (%s)", directory / REPORT, _short(error))


def _client(uri: str | None) -> Any:
    """Connect to MLflow, quickly and quietly."""
    # By default MLflow retries for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow.tracking import MlflowClient

    # After the import, which sets these levels itself. They hide the messages about creating tables.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(uri)


def _short(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
