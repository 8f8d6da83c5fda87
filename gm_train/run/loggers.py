"""Send the rows of `metrics.jsonl` to Lightning's loggers. Training never waits for one and never fails with it."""

import hashlib
import logging
import queue
import threading
from pathlib import Path
from typing import Any

from gm_train.config.load import flat
from gm_train.config.schema import Config

log = logging.getLogger(__name__)

_NOT_METRICS = ("step", "time", "sample_hash")
_MOST_WAITING = 100_000  # rows


def _make(name: str, config: Config, first_step: int) -> Any:
    """Make a logger; its package is imported only here."""
    from lightning.pytorch import loggers

    directory = Path(config.run.dir).absolute()
    if name == "csv":
        # One folder for each start: CSVLogger would delete the file of an earlier one.
        version = f"from-step-{first_step:08d}"
        return loggers.CSVLogger(directory, name="csv", version=version, flush_logs_every_n_steps=1)
    if name == "tensorboard":
        # TensorBoard hides what an earlier start wrote of the steps that are done again.
        return loggers.TensorBoardLogger(directory, name="tensorboard", version="", purge_step=first_step + 1)
    assert name == "wandb", name
    # The same id at each start, and another one for a run of the same name elsewhere.
    run_id = f"{directory.name}-{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]}"
    return loggers.WandbLogger(
        name=directory.name, save_dir=directory, project=config.tracking.experiment, id=run_id, resume="allow"
    )


class LoggerThread(threading.Thread):
    """Sends rows to one logger, in the background. A logger that fails is reported once and gets no more rows.

    Args:
        name: csv, tensorboard or wandb.
        config: the run's configuration.
        first_step: the step that training continues from.
    """

    def __init__(self, name: str, config: Config, first_step: int) -> None:
        super().__init__(name=f"logger-{name}", daemon=True)
        self._logger_name, self._config, self._first_step = name, config, first_step
        self._rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._status = "success"
        self._takes_rows = True

    def send(self, row: dict[str, Any]) -> None:
        """Hand over a row of `metrics.jsonl`."""
        if self._takes_rows and self._rows.qsize() >= _MOST_WAITING:
            self._takes_rows = False
            log.warning("tracking.loggers: %s has not taken a row for long and gets no more", self._logger_name)
        if self._takes_rows:
            self._rows.put(row)

    def finish(self, succeeded: bool, patience_s: float) -> None:
        """Close the logger, but wait no longer than `patience_s` seconds."""
        self._status = "success" if succeeded else "failed"
        self._rows.put(None)
        self.join(patience_s)
        if self.is_alive():
            log.warning("tracking.loggers: %s is not done after %g s and is left", self._logger_name, patience_s)

    def run(self) -> None:
        """Make the logger, and send rows until `finish` is called."""
        try:
            logger = _make(self._logger_name, self._config, self._first_step)
            logger.log_hyperparams(flat(self._config))
            while (row := self._rows.get()) is not None:
                metrics = {key: value for key, value in row.items() if key not in _NOT_METRICS and value is not None}
                logger.log_metrics(metrics, step=row["step"])
            logger.save()
            logger.finalize(self._status)
        except Exception as error:
            self._takes_rows = False
            log.warning(
                "tracking.loggers: %s failed (%s: %s) and gets no more rows; training goes on, metrics.jsonl has all",
                self._logger_name, type(error).__name__, str(error).strip().split("\n")[0],
            )  # fmt: skip
