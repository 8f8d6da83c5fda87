"""The run directory: it has one writer, and its records survive a kill."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from data_shards.errors import DataError
from gm_train.run.lock import locked
from gm_train.run.records import append_rows, forget_after, read_rows, repair_rows


def _try_to_lock(directory: Path, answer) -> None:  # type: ignore[no-untyped-def]
    try:
        with locked(directory):
            answer.put("held")
    except DataError as error:
        answer.put(str(error))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    for holder, expected in ((True, "another process"), (False, "held")):
        process = context.Process(target=_try_to_lock, args=(tmp_path, answer))
        if holder:
            with locked(tmp_path):
                process.start()
                assert expected in answer.get(timeout=300)
        else:
            process.start()
            assert answer.get(timeout=300) == expected
        process.join()


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"run\.dir"), locked(tmp_path / "file" / "run"):
        pass


def test_an_incomplete_last_line_is_not_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for step in range(1, 6):
        append_rows(path, [{"step": step}])
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 5]
    assert forget_after(path, 3) == 2
    append_rows(path, [{"step": 4}])
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]


def test_an_incomplete_line_is_dropped_before_rows_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    repair_rows(path)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"step": 9, "lo')
    repair_rows(path)
    for step in (2, 3):
        append_rows(path, [{"step": step}])
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]


FULL = """
import resource, signal, sys
from pathlib import Path
from data_shards.errors import DataError
from gm_train.run.records import append_rows
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
append_rows(path, [{"step": 1}])
size = path.stat().st_size + 7  # a part of a row fits
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
try:
    append_rows(path, [{"step": 2}, {"step": 3}])
except DataError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
append_rows(path, [{"step": 2}, {"step": 3}])
"""


def test_a_disk_that_is_full_for_a_while_damages_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert f"{path}: cannot be written" in done.stdout
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
