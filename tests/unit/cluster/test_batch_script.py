"""Run the batch script of a launch in bash: what the ranks get, and what follows from their exit code.

Here, small programs stand in for srun and scontrol; tests/slurm runs the real ones.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.batch_script import MARKER, render_batch_script, resolved
from cluster.launch_problems import launch_problems
from tests.support.launch_cases import configured, executable

# Stands in for srun, with one task: records the options and runs the command.
SRUN = """\
#!{python}
import json, os, sys
words = sys.argv[1:]
command = list(words)
while command[0].startswith("--"):
    command.pop(0)
with open(os.environ["SEEN"], "a") as file:
    print(json.dumps(["srun", words]), file=file)
os.environ["SLURMD_NODENAME"] = "n1"
os.execvp(command[0], command)
"""
SCONTROL = """\
#!/bin/bash
case "$1 $2" in
    "show hostnames") printf 'n1\\nn2\\n' ;;
    "show node") echo "NodeName=$4 Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=$4" ;;
    *) echo "[\\"scontrol\\", [\\"$1\\", \\"$2\\"]]" >>"$SEEN"; exit "$SCONTROL" ;;
esac
"""
# Stands in for the interpreter of the ranks: records its input, writes the marker WRITES, and exits with CODE.
RANK = """\
#!{python}
import json, os, signal, sys
seen = {{"args": sys.argv[1:], "usr1_ignored": signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN}}
names = ("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "RANK", "SITE", "SAID", "TRITON_CACHE_DIR")
seen |= {{name: os.environ.get(name) for name in names}}
with open(os.environ["SEEN"], "a") as file:
    print(json.dumps(["rank", seen]), file=file)
if os.environ["WRITES"]:
    with open(os.environ["RUN_DIR"] + "/{marker}", "w") as file:
        file.write(os.environ["WRITES"])
sys.exit(int(os.environ["CODE"]))
"""


class Played:
    """The outcome of a batch script: exit code, output, and the calls that the programs in it recorded."""

    def __init__(self, done: "subprocess.CompletedProcess[str]", seen: Path) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.calls = [json.loads(line) for line in seen.read_text().splitlines()] if seen.exists() else []
        self.requeued = ["scontrol", ["requeue", "7"]] in self.calls

    def of(self, name: str) -> list:
        return [call[1] for call in self.calls if call[0] == name]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Played]:
    """Run the batch script of job 7, with stand-ins for its programs, in a directory with an awkward name."""
    run_dir = tmp_path / 'it\'s 100%j of "it" $HOME #1'
    run_dir.mkdir()
    bin_dir, seen = tmp_path / "bin", tmp_path / "seen"
    executable(bin_dir / "srun", SRUN.format(python=sys.executable))
    executable(bin_dir / "scontrol", SCONTROL)
    rank = executable(tmp_path / "a 'python'" / "python3", RANK.format(python=sys.executable, marker=MARKER))

    def run(*words: str, code: int, restart: str = "", writes: str = "", scontrol: int = 0) -> Played:
        config = configured(f"run.dir={run_dir}", f"cluster.python={rank}", *words)
        assert launch_problems(config) == []
        script = tmp_path / "job.sh"
        script.write_text(render_batch_script(resolved(config), 1, python="not this one"))
        environment = {
            "PATH": f"{bin_dir}:/usr/bin:/bin", "TMPDIR": str(tmp_path), "SEEN": str(seen), "RUN_DIR": str(run_dir),
            "CODE": str(code), "WRITES": writes, "SCONTROL": str(scontrol), "RANK": "5",
            "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8",
        }  # fmt: skip
        if restart:
            environment["SLURM_RESTART_COUNT"] = restart
        seen.unlink(missing_ok=True)
        done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
        assert "unbound variable" not in done.stderr
        return Played(done, seen)

    return run


def test_ranks_start_as_written(play: Callable[..., Played], tmp_path: Path) -> None:
    played = play(
        "data.workers=3",
        "cluster.env=['SITE=a \"b\" it''s']",
        "cluster.setup=['export SAID=$((40 + 2))', 'echo $UNSET']",
        "cluster.prefix=env SAID_TOO=$SAID",
        "cluster.srun=[--mpi=pmix, --container-image=site#image, '--comment=\"two words\"']",
        code=0,
    )
    run_dir = next(tmp_path.glob("it's*"))
    (rank,) = played.of("rank")
    assert rank["args"] == ["-m", "gm_train.cli", "fit", f"{run_dir}/launch/001/config.yaml"]
    assert rank["usr1_ignored"]
    assert (rank["SITE"], rank["SAID"], rank["RANK"], rank["OMP_NUM_THREADS"]) == ('a "b" it\'s', "42", None, "5")
    assert (rank["MASTER_ADDR"], rank["MASTER_PORT"]) == ("10.0.0.7", "20070")
    (srun,) = played.of("srun")
    logs = f"{run_dir}/logs".replace("%", "%%")
    for word in ("--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=8", f"--output={logs}/%j-%t.out"):
        assert word in srun
    for word in ("--mpi=pmix", "--container-image=site#image", "--comment=two words"):
        assert word in srun
    assert (played.code, played.requeued, played.err) == (0, False, "")
    assert "== job 7.0 on n1" in played.out
    assert "finished" in played.out


def test_kernels_are_compiled_into_a_folder_of_the_node_that_only_the_user_can_write_to(
    play: Callable[..., Played], tmp_path: Path
) -> None:
    folder = tmp_path / f"triton-{os.getuid()}"
    assert play(code=0).of("rank")[0]["TRITON_CACHE_DIR"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    own = tmp_path / "own kernels"
    assert play(f"cluster.env=['TRITON_CACHE_DIR={own}']", code=0).of("rank")[0]["TRITON_CACHE_DIR"] == str(own)


def test_a_folder_of_kernels_that_belongs_to_somebody_else_is_not_used(
    play: Callable[..., Played], tmp_path: Path
) -> None:
    folder = tmp_path / f"triton-{os.getuid()}"
    folder.mkdir()
    somebody = "/usr"
    if os.getuid() == 0:
        os.chown(folder, 12345, 12345)
        somebody = str(folder)
    assert play(f"cluster.env=[TRITON_CACHE_DIR={somebody}]", code=0).of("rank")[0]["TRITON_CACHE_DIR"] is None


def test_a_run_that_was_asked_to_leave_is_requeued(play: Callable[..., Played]) -> None:
    played = play(code=85, restart="3", writes="7.3")
    assert (played.code, played.requeued) == (85, True)
    assert "restart 4 of at most 100" in played.out
    assert played.of("rank")[0]["MASTER_PORT"] == "20073"
    assert "== job 7.3" in played.out


def test_failure_is_not_requeued(play: Callable[..., Played]) -> None:
    played = play(code=1)
    assert (played.code, played.requeued) == (1, False)
    assert "failed with exit code 1" in played.out
    assert "7-*.out" in played.out


def test_marker_of_this_start_is_requeued(play: Callable[..., Played]) -> None:
    assert play(code=143, writes="7.0\n").requeued
    played = play(code=143, writes="7.2", restart="2")
    assert (played.code, played.requeued) == (85, True)


@pytest.mark.parametrize("marker", ["6.0", "7.1", "77.0", ""])
def test_marker_of_another_start_is_not(play: Callable[..., Played], marker: str) -> None:
    played = play(code=143, writes=marker)
    assert (played.code, played.requeued) == (143, False)


def test_code_85_without_a_marker_hides_a_crash(play: Callable[..., Played]) -> None:
    """srun reports the highest code: a rank that exits with 85 on SIGTERM hides one that has failed with 1."""
    played = play(code=85)
    assert (played.code, played.requeued) == (1, False)
    assert "failed with exit code 85, not requeued" in played.out


def test_a_finished_run_is_finished(play: Callable[..., Played]) -> None:
    played = play(code=0, writes="7.0")
    assert (played.code, played.requeued) == (0, False)


def test_requeues_come_to_an_end(play: Callable[..., Played]) -> None:
    assert play("cluster.max_requeues=2", code=85, restart="1", writes="7.1").requeued
    played = play("cluster.max_requeues=2", code=85, restart="2", writes="7.2")
    assert (played.code, played.requeued) == (85, False)
    assert "not requeued after 2 restarts" in played.out
    # SLURM itself requeues jobs without this limit.
    played = play("cluster.max_requeues=2", code=85, restart="3")
    assert (played.code, played.of("srun")) == (1, [])
    assert "more than 2 restarts" in played.out


def test_requeue_switched_off_or_refused(play: Callable[..., Played]) -> None:
    played = play("cluster.requeue=false", code=85, writes="7.0")
    assert (played.code, played.requeued) == (85, False)
    assert "launch again to continue" in played.out
    played = play(code=85, scontrol=1, writes="7.0")
    assert (played.code, played.requeued) == (85, True)
    assert "SLURM refused" in played.out


def test_setup_that_fails_ends_the_job(play: Callable[..., Played]) -> None:
    played = play("cluster.setup=['false # no such module', 'true']", code=0)
    assert played.code == 1
    assert "cluster.setup failed at: false" in played.out
    assert not played.of("srun")


def test_script_outside_of_a_job(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(render_batch_script(resolved(configured(f"run.dir={tmp_path}")), 1, python="python3"))
    done = subprocess.run(["bash", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "give it to sbatch" in done.stderr
