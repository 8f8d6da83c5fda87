"""All ranks act on what happens on one: signals, bad numbers, errors, wrong use."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gm_train.checkpoint.find import list_checkpoints
from gm_train.cli.main import main
from gm_train.config.load import config_from_file as read_config
from gm_train.run.records import QUARANTINE, SKIPPED, read_rows
from tests.conftest import Atlas, tiny_words
from tests.dist.conftest import SPREADING
from tests.support import rank_hooks
from tests.support.training_runs import history, start_ranks, train, train_ranks


@pytest.mark.parametrize(
    ("number", "rank", "code"),
    [(signal.SIGUSR1, 1, 85), (signal.SIGTERM, 0, 85), (signal.SIGTERM, None, 85), (signal.SIGINT, None, 1)],
    ids=["usr1-to-one", "term-to-the-first", "term-to-all", "ctrl-c"],
)
def test_promise_06_a_signal_to_any_rank_saves_and_leaves_on_all(
    atlas: Atlas, words: list[str], tmp_path: Path, number: int, rank: int | None, code: int
) -> None:
    """No checkpoint is due for 10,000 steps, but no step is lost."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*tiny_words(atlas.store, run), *words, "trainer.max_steps=5000", "checkpoint.every_steps=10000"]
    ranks = start_ranks([*command, "trainer.strategy=ddp"], 2, log)
    while ranks.alive() and len(history(run)) < 6:
        time.sleep(0.002)
    seen = history(run)[-1]["step"]
    ranks.signal(number, rank)
    assert ranks.join() == [code, code], log.read_text()
    last = history(run)[-1]["step"]
    assert [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")] == [last]
    # The ranks finish the current step; some more steps may pass between reading `seen` and sending the signal.
    assert seen <= last < 5000
    assert "stopped by" in log.read_text()


@pytest.mark.parametrize("strategy", SPREADING)
def test_promise_08_a_bad_number_on_one_rank_skips_the_step_on_all(
    atlas: Atlas, words: list[str], tmp_path: Path, strategy: str
) -> None:
    """A skipped step leaves the weights unchanged, and every rank continues."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = [
        *tiny_words(atlas.store, run), *words, f"trainer.strategy={strategy}", "trainer.max_steps=12",
        "trainer.validate_every_steps=1",
    ]  # fmt: skip
    codes = train_ranks(command, 2, log, prepare=rank_hooks.poison_rank_1)
    assert codes == [0, 0], log.read_text()
    assert [(row["event"], row["step"]) for row in read_rows(run / SKIPPED)] == [
        ("skipped", 4), ("skipped", 7), ("skipped", 9),
    ]  # fmt: skip
    rows = history(run)
    val = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    for step in (4, 7, 9):
        assert val[step] == val[step - 1]
    for step in (5, 6, 8, 10):
        assert val[step] != val[step - 1]
    assert len(rows) == 24


@pytest.mark.parametrize("strategy", SPREADING)
def test_promise_08_all_ranks_roll_back_together(atlas: Atlas, words: list[str], tmp_path: Path, strategy: str) -> None:
    """Past the budget all ranks load the weights of step 4 again, and continue with the data after the bad steps."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = [
        *tiny_words(atlas.store, run), *words, f"trainer.strategy={strategy}", "trainer.max_steps=12",
        "trainer.max_bad_steps=2", "trainer.validate_every_steps=1",
    ]  # fmt: skip
    codes = train_ranks(command, 2, log, prepare=rank_hooks.poison_steps_6_to_8_of_rank_1)
    assert codes == [0, 0], log.read_text()
    events = [(row["event"], row["step"], row.get("to_step")) for row in read_rows(run / SKIPPED)]
    assert events == [("skipped", 6, None), ("skipped", 7, None), ("skipped", 8, None), ("rollback", 9, 4)]
    val = {row["step"]: row["val_loss"] for row in history(run) if "val_loss" in row}
    assert val[8] == val[7] == val[6] == val[5] != val[4]
    assert val[9] == val[4]
    assert sorted(val) == list(range(1, 13))
    assert len({val[step] for step in range(9, 13)}) == 4


def test_an_error_that_all_ranks_find_is_reported_once(atlas: Atlas, words: list[str], tmp_path: Path) -> None:
    """A bad step past the budget, before there is a checkpoint to go back to."""
    log = tmp_path / "log"
    settings = ["trainer.max_bad_steps=0", "checkpoint.every_steps=99"]
    command = [*tiny_words(atlas.store, tmp_path / "run"), *words, *settings]
    assert train_ranks(command, 2, log, prepare=rank_hooks.poison_rank_1) == [1, 1]
    assert log.read_text().count("there is no checkpoint to go back to: training stops") == 1


def test_an_error_of_one_rank_ends_all_with_one_message(atlas: Atlas, words: list[str], tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*tiny_words(atlas.store, run), *words]
    assert train_ranks(command, 2, log, prepare=rank_hooks.lose_the_store_on_rank_1) == [1, 1]
    assert log.read_text().count("gm-train: error") == 1
    assert "store.zarr.not-here: no such store" in log.read_text()
    assert not (run / "metrics.jsonl").exists()


@pytest.mark.parametrize("strategy", SPREADING)
def test_promise_05_a_full_disk_on_one_rank_leaves_the_checkpoint_before(
    atlas: Atlas, words: list[str], tmp_path: Path, strategy: str
) -> None:
    """The other ranks do not wait for the one that could not write."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*tiny_words(atlas.store, run), *words, f"trainer.strategy={strategy}", "trainer.max_steps=10"]
    env = {"GM_TEST_STRATEGY": strategy}
    assert train_ranks(command, 2, log, prepare=rank_hooks.fill_the_disk_on_rank_1, env=env) == [1, 1]
    assert "step-00000008: the checkpoint could not be written" in log.read_text()
    assert "No space left" in log.read_text()
    assert [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")] == [4]
    assert train_ranks(command, 2, log) == [0, 0]
    assert "from step 4 " in log.read_text()
    assert not list((run / "checkpoints").glob(".*"))


def test_ranks_that_were_given_different_runs_are_refused(atlas: Atlas, words: list[str], tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*tiny_words(atlas.store, run), *words]
    assert train_ranks(command, 2, log, prepare=rank_hooks.another_seed_on_rank_1) == [1, 1]
    assert log.read_text().count("run.seed: 0 on rank 0, 1 on rank 1") == 1
    assert not (run / "checkpoints").exists()


def test_a_configuration_that_one_rank_cannot_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["fit", str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("n_ranks", "more", "message"),
    [
        (3, [], "3 ranks: do not divide data.lanes=4, which the ranks share; these numbers of ranks do: 1, 2, 4"),
        (4, ["data.micro_rows=2"], "data.micro_rows=2: does not divide the 1 rows that each of 4 ranks takes"),
        (2, ["trainer.devices=4"], "trainer.devices=4, trainer.num_nodes=1: the launcher started 2 ranks, 2 on each"),
    ],
)
def test_a_number_of_ranks_that_does_not_fit_is_refused(
    atlas: Atlas, words: list[str], tmp_path: Path, n_ranks: int, more: list[str], message: str
) -> None:
    command = [*tiny_words(atlas.store, tmp_path / "run"), *words, *more]
    assert train_ranks(command, n_ranks, tmp_path / "log") == [2] * n_ranks
    assert (tmp_path / "log").read_text().count(message) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_directory_in_use_is_refused(atlas: Atlas, words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*tiny_words(atlas.store, run), *words, "trainer.max_steps=5000"]
    first = start_ranks(command, 2, tmp_path / "first")
    while first.alive() and len(history(run)) < 3:
        time.sleep(0.01)
    assert train_ranks(command, 2, tmp_path / "second") == [1, 1]
    assert train(command, tmp_path / "third") == 1
    for log in ("second", "third"):
        text = (tmp_path / log).read_text()
        assert text.count("another process is training into it") == 1
        assert f"process {first.processes[0].pid} on " in text
    assert first.alive()
    first.signal(signal.SIGTERM)
    assert first.join() == [85, 85]


def test_a_changed_model_or_store_is_refused_with_a_diff(atlas: Atlas, words: list[str], tmp_path: Path) -> None:
    command = [*tiny_words(atlas.store, tmp_path / "run"), *words, "trainer.max_steps=5"]
    assert train_ranks(command, 2, tmp_path / "log") == [0, 0]
    other = [*command, "trainer.max_steps=9", "model.n_layers=3", "data.rows_per_lane=2"]
    assert train_ranks(other, 2, tmp_path / "log") == [1, 1]
    text = (tmp_path / "log").read_text()
    assert text.count("model.n_layers: 2 in the checkpoint, 3 now") == 1
    assert text.count("data.rows_per_lane: 1 in the checkpoint, 2 now") == 1


def test_a_refused_start_changes_nothing(atlas: Atlas, words: list[str], tmp_path: Path) -> None:
    """Not even config.yaml of the run, from which it can be resumed."""
    run = tmp_path / "run"
    command = [*tiny_words(atlas.store, run), *words, "trainer.strategy=zero2", "trainer.max_steps=5"]
    assert train_ranks(command, 2, tmp_path / "log") == [0, 0]

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}

    before = contents()
    assert train([*command, "trainer.max_steps=9", "trainer.strategy=ddp"], tmp_path / "log") == 1
    assert train([*command, "trainer.max_steps=9", "optim.lr=1"], tmp_path / "log") == 1
    assert train_ranks([*command, "trainer.max_steps=9"], 4, tmp_path / "log") == [1] * 4
    assert contents() == before
    # The run can be resumed from its config.yaml, in any working directory.
    assert read_config(run / "config.yaml").data.store == str(atlas.store.absolute())
    assert train_ranks([str(run / "config.yaml"), "trainer.max_steps=7"], 2, tmp_path / "log") == [0, 0]


def test_a_strategy_without_its_package_names_the_line_that_installs_it(
    atlas: Atlas, words: list[str], tmp_path: Path
) -> None:
    command = [*tiny_words(atlas.store, tmp_path / "run"), *words, "trainer.strategy=zero2"]
    codes = train_ranks(command, 2, tmp_path / "log", prepare=rank_hooks.forget_deepspeed)
    assert codes == [1, 1]
    assert "pip install 'gm-train[deepspeed]'" in (tmp_path / "log").read_text()


def supervised(folder: Path, words: list[str]) -> "subprocess.Popen[bytes]":
    """Start a `gm-train fit` that starts its ranks itself, with its output in `folder/log`."""
    return subprocess.Popen(
        [sys.executable, "-m", "gm_train.cli", "fit", *words], stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip


def ranks_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_ranks_of_one_machine_start_leave_and_end_together(atlas: Atlas, words: list[str], tmp_path: Path) -> None:
    """Signals to the main process, during the start and later; kill -9 of one rank; kill -9 of the main process."""
    run = tmp_path / "run"
    command = [*tiny_words(atlas.store, run), *words, "trainer.devices=2", "trainer.max_steps=5000"]

    def wait(process: "subprocess.Popen[bytes]", more: int) -> None:
        target = len(history(run)) + more
        while process.poll() is None and len(history(run)) < target:
            time.sleep(0.01)

    process = supervised(tmp_path, command)
    wait(process, 5)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 85, (tmp_path / "log").read_text()
    assert list_checkpoints(run / "checkpoints")[-1].step == max(row["step"] for row in history(run))

    # A signal that comes while the ranks are still importing stays pending until they have handlers.
    process = supervised(tmp_path, command)
    while len(ranks_of(process.pid)) < 2:
        time.sleep(0.001)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 85, (tmp_path / "log").read_text()

    process = supervised(tmp_path, command)
    wait(process, 5)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 1
    assert "stopped by SIGINT" in (tmp_path / "log").read_text()

    process = supervised(tmp_path, command)
    wait(process, 5)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    assert process.wait(90) == 137
    assert "lost the connection to another rank" in (tmp_path / "log").read_text()

    process = supervised(tmp_path, command)
    wait(process, 5)
    pids = ranks_of(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 300
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("budget", [0, 1])
def test_a_chunk_that_one_rank_finds_damaged_in_validation_counts_on_all(
    atlas: Atlas, words: list[str], tmp_path: Path, budget: int
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = [
        *tiny_words(atlas.store, run), *words, "trainer.strategy=ddp", "trainer.max_steps=4",
        "trainer.validate_every_steps=2", f"data.max_damaged_chunks={budget}",
    ]  # fmt: skip
    codes = train_ranks(command, 2, log, prepare=rank_hooks.damage_the_validation_of_rank_1)
    assert codes == ([0, 0] if budget else [1, 1]), log.read_text()
    assert ("1 chunks of tokens are damaged" in log.read_text()) == (budget == 0)
    assert [(row["step"], row["chunk"]) for row in read_rows(run / QUARANTINE)] == [(2, 3)]
