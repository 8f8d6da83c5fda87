"""Rows of the metrics wait a moment; nothing is written once another start holds the lock."""

from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataError
from gm_train.run import record_writer
from gm_train.run.lock import RunLock, locked
from gm_train.run.record_writer import RecordWriter
from gm_train.run.records import METRICS, SKIPPED, read_rows


class Logger:
    """Keeps the rows that it is sent."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def send(self, row: dict[str, Any]) -> None:
        self.steps.append(row["step"])


def steps(directory: Path, name: str = METRICS) -> list[int]:
    return [row["step"] for row in read_rows(directory / name)]


def writer_of(directory: Path, lock: RunLock) -> tuple[RecordWriter, Logger]:
    logger: Any = Logger()
    return RecordWriter(directory, lock, [logger]), logger


def test_rows_wait_until_they_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(record_writer.time, "monotonic", lambda: now)
    with locked(tmp_path) as lock:
        writer, logger = writer_of(tmp_path, lock)
        for step in (1, 2, 3):
            writer.append_metrics({"step": step})
        # The first row is written at once: the last writing is long ago.
        assert steps(tmp_path) == logger.steps == [1]
        now += 1.0
        writer.append_metrics({"step": 4})
        assert steps(tmp_path) == logger.steps == [1, 2, 3, 4]
        writer.append_metrics({"step": 5})
        writer.append(SKIPPED, {"step": 5})
        assert (steps(tmp_path)[-1], steps(tmp_path, SKIPPED)) == (4, [5])
        writer.sync()
        writer.flush()
        assert steps(tmp_path) == logger.steps == [1, 2, 3, 4, 5]


def test_nothing_is_written_after_another_start_has_taken_over(tmp_path: Path) -> None:
    with locked(tmp_path) as lock:
        writer, logger = writer_of(tmp_path, lock)
        writer.append_metrics({"step": 1})
        writer.append_metrics({"step": 2})
        (tmp_path / ".lock").write_text("{}")
        for way in (writer.flush, writer.sync, lambda: writer.append(SKIPPED, {"step": 2})):
            writer.append_metrics({"step": 3})
            with pytest.raises(DataError, match="another start of this run has taken over"):
                way()
        writer.append_metrics({"step": 4})
        writer.give_up()
    assert steps(tmp_path) == logger.steps == [1]
    assert not (tmp_path / SKIPPED).exists()


def test_rows_that_could_not_be_written_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path) as lock:
        writer, logger = writer_of(tmp_path, lock)
        with monkeypatch.context() as full:
            full.setattr(record_writer, "append_rows", lambda path, rows: _raise(DataError("the disk is full")))
            with pytest.raises(DataError, match="the disk is full"):
                writer.append_metrics({"step": 1})
        writer.give_up()
    assert steps(tmp_path) == logger.steps == [1]


def _raise(error: Exception) -> None:
    raise error
