"""Running tasks: the same results in the same order anywhere, and clear errors when a worker or scheduler is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.workers import interrupts
from data_shards.workers import workers as workers_module
from data_shards.workers.workers import Workers
from tests.support.dask_cluster import dask_cluster


def square(x: int) -> int:
    """Return x²."""
    return x * x


def fail_at_three(x: int) -> int:
    """Return x; raise DataError for 3."""
    if x == 3:
        raise DataError("three is not liked")
    return x


def wait_and_square(x: int) -> int:
    """Return x² after 0.2 seconds."""
    time.sleep(0.2)
    return x * x


def die_at_three(x: int) -> int:
    """Return x; kill the process for 3."""
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@pytest.mark.parametrize("count", [1, 2])
def test_results_stand_in_the_order_of_tasks(count: int) -> None:
    with Workers(count) as workers:
        assert list(workers.map_in_order(square, range(20))) == [x * x for x in range(20)]
        assert workers.at_once == count
        results = workers.map_in_order(fail_at_three, range(20))
        with pytest.raises(DataError, match="three is not liked"):
            list(results)
        assert list(workers.map_in_order(square, range(3))) == [0, 1, 4]


def test_few_tasks_are_taken_ahead() -> None:
    taken: list[int] = []

    def tasks():  # type: ignore[no-untyped-def]
        for x in range(100):
            taken.append(x)
            yield x

    with Workers(2) as workers:
        results = workers.map_in_order(square, tasks())
        next(results)
        assert len(taken) <= 5
        results.close()


def test_a_killed_worker_is_told() -> None:
    with Workers(2) as workers, pytest.raises(DataError, match=r"a worker process was killed.*fewer --workers"):
        list(workers.map_in_order(die_at_three, range(20)))


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text("""
import os, signal
from data_shards.workers.workers import Workers
from tests.unit.data_shards.workers.test_workers import square
if __name__ == "__main__":
    print(*Workers(2).map_in_order(square, range(8)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    # Workers inherit the pipe of standard output, so `run` returns only after all of them have ended.
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == "0 1 4 9 16 25 36 49\n"


@pytest.mark.parametrize("start", ["fork server", "spawn"])
@pytest.mark.parametrize("after_s", [0.0, 0.3, 1.0])
def test_an_interrupt_of_the_group_is_one_of_this_process(after_s: float, start: str, tmp_path: Path) -> None:
    """Ctrl-C sends SIGINT to the whole group while the fork server imports or workers run; they print no traceback."""
    program = """
import time
from data_shards.workers.workers import Workers
try:
    with Workers(2) as pool:
        print("begun", flush=True)
        list(pool.map_in_order(time.sleep, [0.1] * 200))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    environment = dict(os.environ)
    if start == "spawn":
        # This path is too long for a socket.
        environment["TMPDIR"] = str(tmp_path / ("x" * 80))
        os.mkdir(environment["TMPDIR"])
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=120)
    assert out == "interrupted\n"
    assert "Traceback" not in errors
    assert process.returncode == 0


class Careless:
    """Raises SIGINT in a finalizer, where Python drops exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def drop_an_interrupt(x: int) -> int:
    """Return x; for 3 raise SIGINT where Python drops the KeyboardInterrupt."""
    if x == 3:
        Careless()
    return x


def mistake_an_interrupt(x: int) -> int:
    """Convert a KeyboardInterrupt to SystemError, as compiled code may do."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise SystemError("a result with an exception set") from error
    return x


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("task", [drop_an_interrupt, mistake_an_interrupt])
@pytest.mark.usefixtures("usual_ctrl_c")
def test_an_interrupt_that_a_library_swallows_or_mistakes_is_one(task: Callable[[int], int]) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Workers() as workers:
        done.extend(workers.map_in_order(task, range(100)))
    assert len(done) < 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("usual_ctrl_c")
def test_an_interrupt_that_is_swallowed_beside_workers_is_one() -> None:
    done = []

    def resume() -> None:
        with Workers(2) as workers:
            for x in workers.map_in_order(square, range(100)):
                done.append(drop_an_interrupt(int(x == 9) * 3))

    with pytest.raises(KeyboardInterrupt):
        resume()
    assert len(done) == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("usual_ctrl_c")
def test_an_interrupt_that_is_swallowed_ends_the_wait_for_a_result_that_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "_ANSWER_S", 0.2)

    class Hanging:
        def result(self, timeout: float) -> int:
            drop_an_interrupt(3)
            time.sleep(timeout)
            raise TimeoutError

        def done(self) -> bool:
            return False

    with pytest.raises(KeyboardInterrupt), Workers() as workers:
        workers._result(Hanging())


@pytest.mark.usefixtures("usual_ctrl_c")
def test_what_an_interrupt_waits_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_PATIENCE_S", 0.2)
    lines: list[str] = []
    interrupt = threading.Timer(1.0, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])

    def resume() -> None:
        with Workers(2, say=lines.append) as workers:
            assert list(workers.map_in_order(square, [2])) == [4]  # start a worker
            interrupt.start()
            list(workers.map_in_order(time.sleep, [3.0]))

    with pytest.raises(KeyboardInterrupt):
        resume()
    assert lines == ["stopping: waiting for workers to finish their tasks"]


@pytest.mark.usefixtures("usual_ctrl_c")
def test_an_interrupt_is_not_that_of_an_earlier_block() -> None:
    """Even if an interrupt arrived in the last lines of the earlier block."""

    def end_as_it_is_interrupted() -> None:
        with interrupts.noted():
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        end_as_it_is_interrupted()
    signal.signal(signal.SIGINT, interrupts._note)
    with interrupts.noted():
        interrupts.check()
        with interrupts.noted():
            pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("usual_ctrl_c")
def test_an_interrupt_waits_while_a_process_starts() -> None:
    """It waits whichever thread receives the signal; the mask of the main thread alone would not delay it."""
    steps = []

    def resume() -> None:
        with interrupts.held():
            other = threading.Thread(target=send)
            other.start()
            other.join()
            time.sleep(0.05)
            steps.append("held")
        steps.append("never")

    def send() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a new thread inherits the mask of its parent
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        resume()
    assert steps == ["held"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_lies_in_the_current_folder_is_not_imported(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("threading", "signal", "data_shards"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    script = tmp_path / "main.py"
    script.write_text("""
from data_shards.workers.workers import Workers
if __name__ == "__main__":
    with Workers(2) as pool:
        print(*pool.map_in_order(abs, range(-3, 0)))
""")
    done = subprocess.run([sys.executable, script], cwd=here, capture_output=True, text=True)
    assert done.stdout == "3 2 1\n", done.stderr
    assert not (tmp_path / "imported").exists()


def test_dask_workers_come_and_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing worker is reported, a killed worker's tasks run on others, and a lost scheduler ends the work."""
    monkeypatch.setattr(workers_module, "_ANSWER_S", 5)
    lines: list[str] = []
    with dask_cluster() as cluster, Workers(dask=cluster.address, say=lines.append) as workers:
        assert workers.at_once == 1
        assert lines == [f"{cluster.address}: the scheduler has no workers: waiting for some to join"]
        first = cluster.add_worker()
        cluster.add_worker()
        results = workers.map_in_order(wait_and_square, range(12))
        assert next(results) == 0
        first.kill()
        assert list(results) == [x * x for x in range(1, 12)]
        with pytest.raises(DataError, match="three is not liked"):
            list(workers.map_in_order(fail_at_three, range(5)))
        assert len(lines) == 1
        results = workers.map_in_order(wait_and_square, range(12))
        next(results)
        cluster.scheduler.kill()
        with pytest.raises(DataError, match=r"the Dask scheduler is gone: start it again"):
            list(results)


def test_a_scheduler_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_ANSWER_S", 1)
    with pytest.raises(DataError, match=r"--dask tcp://127.0.0.1:9: no scheduler answers .*dask scheduler"):
        Workers(dask="tcp://127.0.0.1:9")
    with pytest.raises(DataError, match=r"--dask head: no scheduler answers"):
        Workers(dask="head")
    with pytest.raises(DataError, match=r"--dask tls://127.0.0.1:9: the connection needs TLS keys .*ca-file"):
        Workers(dask="tls://127.0.0.1:9")


def test_dask_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DataError, match=r"pip install 'gm-train\[dask\]'"):
        Workers(dask="tcp://127.0.0.1:9")
