"""Promise 4 on many ranks: bit for bit on the same number of ranks, the same samples on any other."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gm_train.checkpoint.find import BY_NAME, list_checkpoints
from gm_train.cli.main import main
from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import RankProcesses, assert_close, history, start_ranks, train, train_ranks


def wait_for(run: Path, n_rows: int, ranks: RankProcesses) -> None:
    while ranks.alive() and len(history(run)) < n_rows:
        time.sleep(0.01)


def test_promise_04_killed_ranks_resume_bit_for_bit(
    atlas: Atlas, words: list[str], two_ranks: tuple[str, Path], tmp_path: Path
) -> None:
    """kill -9 of one rank at random steps, three times; then the run is finished."""
    strategy, undisturbed = two_ranks
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*tiny_words(atlas.store, run), *words, f"trainer.strategy={strategy}"]
    rng = random.Random(strategy)
    for kill in range(3):
        # Starting loader processes takes seconds, so only one start of each run has them.
        workers = ["data.workers=1"] if kill == 1 else []
        ranks = start_ranks([*command, *workers], 2, log)
        wait_for(run, len(history(run)) + rng.randrange(2, 9), ranks)
        time.sleep(rng.random() * 0.05)
        ranks.signal(signal.SIGKILL, rank=rng.randrange(2))
        codes = ranks.join()
        assert -signal.SIGKILL in codes
        assert 0 not in codes
    assert train_ranks(command, 2, log) == [0, 0], log.read_text()
    assert history(run) == history(undisturbed)
    assert log.read_text().count("resuming") >= 2


@pytest.mark.parametrize(("moment", "rank"), [("save_by_name", 0), ("save_by_name", 1), ("_commit", 0)])
def test_promise_05_a_rank_lost_in_a_save_leaves_the_checkpoint_before(
    atlas: Atlas, words: list[str], tmp_path: Path, moment: str, rank: int
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*tiny_words(atlas.store, run), *words, "trainer.strategy=fsdp2"]
    codes = start_ranks(command, 2, log, die_at={rank: (moment, 2)}).join()
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] != 0
    assert [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")] == [4]
    assert train_ranks(command, 2, log) == [0, 0], log.read_text()
    assert "from step 4 " in log.read_text()


# Strategy and ranks before, strategy and ranks after, and whether the case belongs to the fast tests.
ELASTIC = [
    ("ddp", 2, "ddp", 1, True),
    ("ddp", 1, "ddp", 2, False),
    ("ddp", 2, "ddp", 4, False),
    ("ddp", 4, "ddp", 2, False),
    ("fsdp2", 2, "fsdp2", 1, False),
    ("fsdp2", 1, "fsdp2", 2, False),
    ("fsdp2", 2, "fsdp2", 4, True),
    ("fsdp2", 4, "fsdp2", 2, False),
    ("ddp", 2, "fsdp2", 4, False),
    ("fsdp2", 4, "ddp", 1, True),
    ("ddp", 2, "zero2", 2, True),
    ("fsdp2", 2, "zero3", 4, False),
]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param((a, n), (b, m), id=f"{a}x{n}-{b}x{m}", marks=[] if fast else pytest.mark.slow)
        for a, n, b, m, fast in ELASTIC
    ],
)
def test_promise_04_elastic(
    atlas: Atlas,
    words: list[str],
    one_process: Path,
    tmp_path: Path,
    before: tuple[str, int],
    after: tuple[str, int],
) -> None:
    """Half of the run on some ranks, half on others: the same samples as in one process, and its losses to 1e-5."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*tiny_words(atlas.store, run), *words]
    for (strategy, n_ranks), budget in ((before, ["trainer.max_steps=14"]), (after, [])):
        codes = train_ranks([*command, f"trainer.strategy={strategy}", *budget], n_ranks, log)
        assert codes == [0] * n_ranks, log.read_text()
    assert "resuming" in log.read_text()
    assert_close(run, one_process)


@pytest.mark.parametrize("strategy", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_promise_04_zero_is_elastic_by_reshard(
    atlas: Atlas,
    words: list[str],
    one_process: Path,
    tmp_path: Path,
    strategy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After the conversion, ZeRO on two ranks continues as ZeRO on one, two and four ranks, as DDP and as FSDP2."""
    run, log = tmp_path / "run", tmp_path / "log"

    def command(run: Path, strategy: str) -> list[str]:
        return [*tiny_words(atlas.store, run), *words, f"trainer.strategy={strategy}"]

    half = [*command(run, strategy), "trainer.max_steps=14"]
    assert train_ranks(half, 2, log) == [0, 0], log.read_text()
    # Refused; the message holds a command that can be copied.
    assert train_ranks(command(run, strategy), 4, log) == [1] * 4
    line = f"gm-train ckpt reshard {run / 'checkpoints' / 'step-00000014'}"
    assert line in log.read_text()
    assert train(command(run, "ddp"), log) == 1
    assert log.read_text().count(line) >= 2

    assert main(line.split()[1:]) == 0
    assert "-> by name" in capsys.readouterr().out
    assert main(["ckpt", "verify", str(run)]) == 0
    (newest,) = [c for c in list_checkpoints(run / "checkpoints") if c.step == 14]
    assert newest.form == BY_NAME
    assert "store/zarr.json" in newest.files  # the list of its data sets
    for other, n_ranks in ((strategy, 1), (strategy, 4), (strategy, 2), ("ddp", 2), ("fsdp2", 2), ("ddp", 1)):
        copy = tmp_path / f"{other}x{n_ranks}"
        shutil.copytree(run, copy)
        assert train_ranks(command(copy, other), n_ranks, log) == [0] * n_ranks, log.read_text()
        assert_close(copy, one_process)


@pytest.mark.slow
def test_torchrun_starts_ranks(atlas: Atlas, words: list[str], one_process: Path, tmp_path: Path) -> None:
    """gm-train reads torchrun's variables. (torchrun itself returns 1 when ranks leave with 85.)"""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "gm_train.cli",
        "fit", *tiny_words(atlas.store, tmp_path / "run"), *words,
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ranks: 2 on 1 node" in done.stdout
    assert_close(tmp_path / "run", one_process)
