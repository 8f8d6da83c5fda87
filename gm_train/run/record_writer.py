"""Write the records of a run while it trains."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from gm_train.run.lock import RunLock
from gm_train.run.loggers import LoggerThread
from gm_train.run.records import METRICS, QUARANTINE, SKIPPED, append_rows, sync_rows

#: Rows of `metrics.jsonl` are written at most so often, since the run directory may be on a slow file system.
_EVERY_S = 1.0


class RecordWriter:
    """Writes records, as long as this start holds the lock of the run directory.

    Rows of `metrics.jsonl` wait until one comes a second or more after the last write, or until `flush`. Other records
    are written at once.

    Args:
        directory: the run directory.
        lock: its lock.
        loggers: get each row of `metrics.jsonl`.
    """

    def __init__(self, directory: Path, lock: RunLock, loggers: Sequence[LoggerThread]) -> None:
        self._directory, self._lock, self._loggers = directory, lock, loggers
        self._waiting: list[dict[str, Any]] = []
        self._written = -float("inf")

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Append a row to `skipped.jsonl` or `quarantine.jsonl`.

        Raises:
            DataError: another start has taken over, or the disk is full or cannot be written.
        """
        self._write(name, [row])

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append a row to `metrics.jsonl`; the loggers get it once it is written.

        Raises:
            DataError: another start has taken over, or the disk is full or cannot be written.
        """
        self._waiting.append(row)
        if time.monotonic() - self._written >= _EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait.

        Raises:
            DataError: another start has taken over, or the disk is full or cannot be written.
        """
        if self._waiting:
            self._write(METRICS, self._waiting)
            rows, self._waiting = self._waiting, []
            self._written = time.monotonic()
            for row in rows:
                for logger in self._loggers:
                    logger.send(row)

    def sync(self) -> None:
        """Write the rows that wait and flush all records to the disk, so that a checkpoint never outlives its rows."""
        self.flush()
        for name in (METRICS, SKIPPED, QUARANTINE):
            sync_rows(self._directory / name)

    def give_up(self) -> None:
        """Write what can be written of the rows that wait: the run ends with another error."""
        with contextlib.suppress(DataError):
            self.flush()

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        self._lock.check()
        append_rows(self._directory / name, rows)
