"""`gm-train launch`: what it refuses, what it writes, and what it asks SLURM, which is played by small scripts here."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.problems import find_problems, seconds_of
from cluster.slurm import MARKER, render, resolved
from gm_train.cli import main
from gm_train.config import Config
from gm_train.settings import config_from_file, load_config

GOOD = ["data.store=a.zarr", "data.lanes=8", "data.micro_rows=1", "cluster.nodes=2", "cluster.gpus_per_node=2"]


def configured(*words: str) -> Config:
    return load_config([*GOOD, *words])


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["cluster.nodes=0"], ["cluster.nodes=0: must be at least 1"]),
        (["cluster.gpus_per_node=-1"], ["must be at least 0"]),
        (["cluster.gpus_per_node=0", "cluster.tasks_per_node=0"], ["cluster.tasks_per_node=0: must be at least 1"]),
        (["cluster.cpus_per_task=0"], ["at least 1"]),
        (["cluster.max_requeues=-1"], ["at least 0"]),
        (["cluster.gpu_request=gpus"], ["gpus-per-node | gres"]),
        (["cluster.gpu_type=h100:8"], ["sinfo"]),
        (["cluster.memory=all"], ["such as 900G"]),
        (["cluster.time=tomorrow"], ["not a time limit"]),
        (["cluster.time=0"], ["not a time limit"]),
        (["cluster.time=3", "cluster.signal_seconds=180"], ["told to leave before it starts", "180 s"]),
        (["cluster.signal_seconds=70000"], ["1 … 65535"]),
        (["cluster.signal_seconds=0"], ["1 … 65535"]),
        (["cluster.env=[NCCL_DEBUG]"], ["expected NAME=value"]),
        (["cluster.env=['2X=1']"], ["expected NAME=value"]),
        (["cluster.env=['PATH=/x:$PATH']"], ["put `export PATH=/x:$PATH` into cluster.setup"]),
        (["cluster.sbatch=[exclusive]"], ["expected an option of sbatch"]),
        (["cluster.sbatch=[--nodes=4]"], ["set cluster.nodes instead"]),
        (["cluster.sbatch=[-pgpu]"], ["set cluster.partition instead"]),
        (["cluster.sbatch=['--array 0-3']"], ["one run directory"]),
        (["cluster.partition=gpu\n#SBATCH --nodes=9"], ["one line of printable text"]),
        (['cluster.setup=["a\\nb"]'], ["cluster.setup[0]", "one line"]),
        (["run.dir=a\\b"], ["backslash"]),
        (["cluster.prefix=apptainer exec 'image"], ["shell words"]),
        (["cluster.prefix=true; rm"], ["would end the command"]),
        (["cluster.prefix=echo # "], ["would end the command"]),
        (["cluster.prefix=echo $(date)"], ["would end the command"]),
        (["trainer.num_nodes=4"], ["trainer.num_nodes=4 and cluster.nodes=2", "trainer.num_nodes=null"]),
        (["trainer.devices=4"], ["trainer.devices=4 and cluster.gpus_per_node=2"]),
        (["cluster.gpus_per_node=0", "trainer.devices=4"], ["trainer.devices=4 and cluster.tasks_per_node=1"]),
        (["cluster.nodes=3"], ["6 ranks", "1, 2, 4, 8"]),
        (["data.micro_rows=4"], ["2 rows", "1, 2"]),
        (["cluster.nodes=0", "cluster.time=x", "cluster.env=[A]"], ["cluster.nodes", "cluster.time", "cluster.env"]),
    ],
)
def test_refused(words: list[str], fragments: list[str]) -> None:
    text = "\n".join(find_problems(configured(*words)))
    for fragment in fragments:
        assert fragment in text


def test_nothing_to_refuse() -> None:
    words = ["trainer.num_nodes=2", "trainer.devices=2", 'cluster.prefix=apptainer exec --bind "$SCRATCH" ${IMAGE}']
    assert find_problems(configured(*words)) == []


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400), ("2:30", 150), ("24:00:00", 86400), ("1-0", 86400), ("1-02:03", 93780), ("1-02:03:04", 93784),
        ("", None), ("1-", None), ("1:2:3:4", None), ("-5", None),
    ],
)  # fmt: skip
def test_time_limits(time: str, seconds: int | None) -> None:
    assert seconds_of(time) == seconds


def test_ranks_read_absolute_paths_and_their_number() -> None:
    config = resolved(configured("run.dir=runs/a", "objective.pathways=sets.gmt"))
    here = Path.cwd()
    assert (config.run.dir, config.data.store) == (str(here / "runs/a"), str(here / "a.zarr"))
    assert config.objective.pathways == str(here / "sets.gmt")
    assert (config.trainer.num_nodes, config.trainer.devices) == (2, 2)


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# --- The script, run by bash --------------------------------------------------------------------------------------

# srun as a task sees it: the options, then the command. A probe of the nodes is a step with --overlap.
SRUN = """\
#!{python}
import json, os, sys
words = sys.argv[1:]
command = [word for word in words]
while command[0].startswith("--"):
    command.pop(0)
name = "probe" if "--overlap" in words else "srun"
with open(os.environ["SEEN"], "a") as file:
    print(json.dumps([name, words]), file=file)
if name == "probe":
    sys.exit(int(os.environ["PROBE"]))
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
# The interpreter of the ranks: notes what it was given, leaves a marker, ends as told.
RANK = """\
#!{python}
import json, os, signal, sys
seen = {{"args": sys.argv[1:], "usr1_ignored": signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN}}
seen |= {{name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "RANK", "SITE", "SAID")}}
with open(os.environ["SEEN"], "a") as file:
    print(json.dumps(["rank", seen]), file=file)
if os.environ["WRITES"]:
    with open(os.environ["RUN_DIR"] + "/{marker}", "w") as file:
        file.write(os.environ["WRITES"])
sys.exit(int(os.environ["CODE"]))
"""


class Played:
    """What happened in a batch script: its exit code, what it printed, and what the programs that it called saw."""

    def __init__(self, done: "subprocess.CompletedProcess[str]", seen: Path) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.calls = [json.loads(line) for line in seen.read_text().splitlines()] if seen.exists() else []
        self.requeued = ["scontrol", ["requeue", "7"]] in self.calls

    def of(self, name: str) -> list:
        return [call[1] for call in self.calls if call[0] == name]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Played]:
    """Run the batch script of job 7, its programs played by small ones, in a directory with an awkward name."""
    run_dir = tmp_path / 'it\'s 100%j of "it" $HOME #1'
    run_dir.mkdir()
    bin_dir, seen = tmp_path / "bin", tmp_path / "seen"
    executable(bin_dir / "srun", SRUN.format(python=sys.executable))
    executable(bin_dir / "scontrol", SCONTROL)
    executable(bin_dir / "sleep", '#!/bin/bash\necho "[\\"sleep\\", [\\"$1\\"]]" >>"$SEEN"\n')
    rank = executable(tmp_path / "a 'python'" / "python3", RANK.format(python=sys.executable, marker=MARKER))

    def run(*words: str, code: int, restart: str = "", writes: str = "", probe: int = 0, scontrol: int = 0) -> Played:
        config = configured(f"run.dir={run_dir}", f"cluster.python={rank}", *words)
        assert find_problems(config) == []
        script = tmp_path / "job.sh"
        script.write_text(render(resolved(config), 1, python="not this one"))
        environment = {
            "PATH": f"{bin_dir}:/usr/bin:/bin", "SEEN": str(seen), "RUN_DIR": str(run_dir), "CODE": str(code),
            "WRITES": writes, "PROBE": str(probe), "SCONTROL": str(scontrol), "RANK": "5",
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
        "data.workers=3", "cluster.env=['SITE=a \"b\" it''s']", "cluster.setup=['export SAID=$((40 + 2))', 'echo $UNSET']",
        "cluster.prefix=env SAID_TOO=$SAID", code=0,
    )  # fmt: skip
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
    assert (played.code, played.requeued, played.err) == (0, False, "")
    assert "== job 7.0 on n1" in played.out
    assert "finished" in played.out


def test_code_85_is_requeued(play: Callable[..., Played]) -> None:
    played = play(code=85, restart="3")
    assert (played.code, played.requeued) == (85, True)
    assert "restart 4 of at most 100" in played.out
    assert played.of("rank")[0]["MASTER_PORT"] == "20073"
    assert "== job 7.3" in played.out


def test_failure_is_not_requeued(play: Callable[..., Played]) -> None:
    played = play(code=1)
    assert (played.code, played.requeued) == (1, False)
    assert "failed with exit code 1" in played.out
    assert "7-*.out" in played.out
    assert not played.of("sleep")


def test_marker_of_this_start_is_requeued(play: Callable[..., Played]) -> None:
    assert play(code=143, writes="7.0\n").requeued
    played = play(code=143, writes="7.2", restart="2")
    assert (played.code, played.requeued) == (85, True)


@pytest.mark.parametrize("marker", ["6.0", "7.1", "77.0", ""])
def test_marker_of_another_start_is_not(play: Callable[..., Played], marker: str) -> None:
    played = play(code=143, writes=marker)
    assert (played.code, played.requeued) == (143, False)


def test_a_finished_run_is_finished(play: Callable[..., Played]) -> None:
    played = play(code=0, writes="7.0")
    assert (played.code, played.requeued) == (0, False)


def test_requeues_come_to_an_end(play: Callable[..., Played]) -> None:
    assert play("cluster.max_requeues=2", code=85, restart="1").requeued
    played = play("cluster.max_requeues=2", code=85, restart="2")
    assert (played.code, played.requeued) == (85, False)
    assert "not requeued after 2 restarts" in played.out
    # SLURM itself requeues without counting.
    played = play("cluster.max_requeues=2", code=85, restart="3")
    assert (played.code, played.of("srun")) == (1, [])
    assert "more than 2 restarts" in played.out


def test_requeue_switched_off_or_refused(play: Callable[..., Played]) -> None:
    played = play("cluster.requeue=false", code=85)
    assert (played.code, played.requeued) == (85, False)
    assert "launch again to go on" in played.out
    played = play(code=85, scontrol=1)
    assert (played.code, played.requeued) == (85, True)
    assert "SLURM refused" in played.out


def test_lost_node_is_left_to_slurm(play: Callable[..., Played]) -> None:
    """The script stays alive until SLURM notices; it requeues nothing itself, so no crash can come back for ever."""
    played = play(code=143, probe=1)
    assert (played.of("sleep"), played.requeued, played.code) == ([["900"]], False, 143)
    assert "a node does not answer" in played.out
    assert not play("cluster.nodes=1", code=143, probe=1).of("probe")
    assert not play("cluster.requeue=false", code=143, probe=1).of("probe")


def test_setup_that_fails_ends_the_job(play: Callable[..., Played]) -> None:
    played = play("cluster.setup=['false # no such module', 'true']", code=0)
    assert played.code == 1
    assert "cluster.setup failed at: false" in played.out
    assert not played.of("srun")


def test_script_outside_of_a_job(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(render(resolved(configured(f"run.dir={tmp_path}")), 1, python="python3"))
    done = subprocess.run(["bash", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "give it to sbatch" in done.stderr


# --- The command, SLURM played by scripts -------------------------------------------------------------------------

SBATCH = """\
#!/bin/bash
env | grep -c '^SLURM_CPUS_PER_TASK=' >>"$SEEN"
echo "sbatch $*" >>"$SEEN"
case "$1" in
    --test-only) cat >"$SEEN.script"; echo "$TEST_SAYS" >&2; exit "$TEST_CODE" ;;
    --parsable) echo "41;blue" ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sbatch that agrees and squeue that knows no job; the file of what they were asked."""
    executable(tmp_path / "bin/sbatch", SBATCH)
    executable(tmp_path / "bin/squeue", '#!/bin/bash\necho "squeue $*" >>"$SEEN"\necho "$QUEUE"\n')
    seen = tmp_path / "seen"
    for name, value in {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SEEN": str(seen), "TEST_CODE": "0", "QUEUE": "",
        "TEST_SAYS": "sbatch: Job 41 to start at 2026-11-22T12:00:00", "SLURM_CPUS_PER_TASK": "3",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return seen


def launch(run_dir: Path, *words: str) -> int:
    return main(["launch", *GOOD, f"run.dir={run_dir}", *words])


def test_dry_run_only_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert launch(tmp_path / "run", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n")
    assert list(tmp_path.iterdir()) == []


def test_launch_checks_writes_and_submits(tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture) -> None:
    run_dir = tmp_path / "a run"
    assert launch(run_dir) == 0
    folder = run_dir / "launch/001"
    out = capsys.readouterr().out
    script = (folder / "job.sh").read_text()
    assert script in out
    assert script == slurm.with_name("seen.script").read_text()
    assert "Job 41 to start at" in out
    assert "submitted job 41" in out
    assert f"tail -F {run_dir}/logs/41-0.out" in out
    assert (run_dir / "logs").is_dir()
    assert (folder / "job_id").read_text() == "41\n"
    # What an allocation leaves in its shells would be believed by srun in the new job.
    assert slurm.read_text().splitlines() == ["0", "sbatch --test-only", "0", f"sbatch --parsable {folder}/job.sh"]
    config = config_from_file(folder / "config.yaml")
    assert (config.run.dir, config.trainer.num_nodes, config.trainer.devices) == (str(run_dir), 2, 2)
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["words"][-1] == f"run.dir={run_dir}"
    assert "torch" in environment["packages"]


def test_launches_are_kept(tmp_path: Path, slurm: Path) -> None:
    assert launch(tmp_path / "run") == 0
    first = (tmp_path / "run/launch/001/job.sh").read_text()
    assert launch(tmp_path / "run", "cluster.nodes=1") == 0
    assert (tmp_path / "run/launch/001/job.sh").read_text() == first
    assert "--nodes=1" in (tmp_path / "run/launch/002/job.sh").read_text()


def test_what_slurm_would_not_take_is_not_submitted(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TEST_CODE", "1")
    monkeypatch.setenv("TEST_SAYS", "allocation failure: Invalid partition name specified")
    assert launch(tmp_path / "run", "cluster.partition=gup") == 1
    error = capsys.readouterr().err
    assert "Invalid partition name specified" in error
    assert "sinfo -s" in error
    assert "--parsable" not in slurm.read_text()
    assert not (tmp_path / "run").exists()


def test_second_job_of_a_run_is_refused(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_dir = tmp_path / "my run"
    assert launch(run_dir) == 0
    monkeypatch.setenv("QUEUE", f"41 PENDING {run_dir}/launch/001/job.sh")
    assert launch(run_dir) == 1
    assert "job 41 trains into it already (pending)" in capsys.readouterr().err
    assert not (run_dir / "launch/002").exists()
    # Another job with that number, after the controller lost its memory.
    monkeypatch.setenv("QUEUE", "41 RUNNING /home/else/job.sh")
    assert launch(run_dir) == 0


def test_queue_that_cannot_be_seen(tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture) -> None:
    assert launch(tmp_path / "run") == 0
    executable(
        tmp_path / "bin/squeue", "#!/bin/bash\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n"
    )
    assert launch(tmp_path / "run") == 0
    executable(tmp_path / "bin/squeue", "#!/bin/bash\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    assert launch(tmp_path / "run") == 1
    assert "cannot tell" in capsys.readouterr().err


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert launch(tmp_path / "run") == 1
    assert "--dry-run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert launch(tmp_path / "run", "cluster.time=x", "cluster.nodes=3", "--dry-run") == 2
    error = capsys.readouterr().err
    assert "not a time limit" in error
    assert "6 ranks" in error


def test_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "short")
    assert launch(Path("/tmp/run-of-a-test"), "cluster.prefix=apptainer exec a.sif", "--dry-run") == 0
    for fragment in ("all nodes share", "a.zarr: is not there", "its own", "SBATCH_PARTITION"):
        assert fragment in caplog.text
