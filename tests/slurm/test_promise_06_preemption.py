"""Promise 6 on a real SLURM: a job that gets a signal loses no step, restarts by itself and remains the same run."""

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from cluster.submit import check_launch
from gm_train.checkpoint.find import load_model, open_checkpoint
from gm_train.cli.main import main
from gm_train.run.lock import MARKER
from tests.conftest import Atlas, tiny_words
from tests.slurm.conftest import Slurm, poll
from tests.support.mlflow_records import expected, mirrored
from tests.support.slurm_jobs import LOCAL_CPU, PATIENCE, Job, launch
from tests.support.training_runs import history, train_ranks
from tests.support.training_runs import start as begin

CLUSTERS = Path(LOCAL_CPU).parent
#: A job must still run when it is asked to leave: this many steps take some seconds.
STEPS = 250
# No checkpoint is due before the end: any earlier one was saved because the job got a signal.
WORDS = [f"trainer.max_steps={STEPS}", f"optim.schedule_steps={STEPS}", "checkpoint.every_steps=1000"]
Launch = Callable[..., Job]


@pytest.fixture(scope="module")
def undisturbed(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two ranks, outside of SLURM and never interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    codes = train_ranks([*tiny_words(atlas.store, folder / "run"), *WORDS], 2, folder / "log")
    assert codes == [0, 0], (folder / "log").read_text()
    return folder / "run"


@pytest.fixture
def here(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this process act like one on a login node of the cluster; all jobs are ended after the test."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environment[name])
    yield
    slurm.scancel("--partition=debug")
    poll(lambda: not slurm.cluster.run("squeue", "--noheader"), PATIENCE, lambda: slurm.cluster.run("squeue"))
    for node in ("n1", "n2"):
        slurm.revive_node(node)


@pytest.fixture
def start(here: None, slurm: Slurm, atlas: Atlas, tmp_path: Path) -> Launch:
    """Return a function that launches a job of two ranks, which trains into `run`."""

    def start(*words: str) -> Job:
        return launch(slurm, tmp_path / "run", *tiny_words(atlas.store, tmp_path / "run"), *WORDS, *words)

    return start


def send_usr1(job: Job, who: str, restart: int = 0) -> float:
    """Halt all ranks, send USR1 to all of them or to one, and let them continue.

    Args:
        job: the job.
        who: "all", or a rank.
        restart: number of the job's restart.

    Returns:
        When the ranks had halted, in seconds since 1970.
    """
    job.halt(restart=restart)
    when = time.time()
    if who == "all":
        job.slurm.scancel("--signal=USR1", job.number)
        job.wait_for_usr1(0, 1, restart=restart)
    else:
        os.kill(job.ranks(restart)[int(who)], signal.SIGUSR1)
    job.wake(restart)
    return when


@pytest.mark.parametrize("who", ["all", "1"])
def test_promise_06_asked_to_leave_and_back(start: Launch, undisturbed: Path, tmp_path: Path, who: str) -> None:
    """After the signal, to any rank, training ends at the next exchange of the ranks; no step is lost or repeated."""
    mlflow = who == "all"
    job = start(*(["tracking.mlflow=auto"] if mlflow else []))
    job.wait_for_step(3)
    if mlflow:
        job.halt(1)  # rank 0 waits for this rank, and MLflow starts slowly
        poll((job.run / "tracking.json").exists, PATIENCE, lambda: f"no MLflow run\n{job}")
    when = send_usr1(job, who)
    job.wait_for_requeue(1)
    step = job.step(when) + 1  # its row is made in the next step
    assert (job.run / MARKER).read_text() == f"{job.number}.0\n"
    saved = job.saved()
    # Rank 0 had not ended step + 1, but may have sent its part of that step's exchange: then the signal is in the next
    # one. If rank 1 had ended step + 1, it may have sent its part of step + 2.
    latest = step + 2 if who == "all" else step + 3
    assert len(saved) == 1
    assert step <= saved[0] <= latest
    assert "and saved: back into the queue, restart 1 of at most 100" in job.output("batch")
    run_id = json.loads((job.run / "tracking.json").read_text())["run_id"] if mlflow else None
    job.come_back(1)
    job.wait("COMPLETED")
    assert history(job.run) == history(undisturbed)
    assert [(one["job"], one["step"], one["ranks"]) for one in job.starts()] == [
        (str(job.number), 0, 2),
        (str(job.number), saved[0], 2),
    ]
    if mlflow:
        client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("gm-train")
        assert experiment is not None
        (found,) = client.search_runs([experiment.experiment_id])
        assert (found.info.run_id, found.info.status) == (run_id, "FINISHED")
        assert mirrored(client, job.run, "loss") == expected(job.run, "loss")


@pytest.mark.slow
def test_promise_06_the_time_limit(slurm: Slurm, start: Launch, undisturbed: Path) -> None:
    """SLURM itself sends USR1 to all processes of the ranks, including loader workers."""
    # USR1 comes 90 to 120 s after the start. The next start may get it, too; then there is a third one.
    job = start("cluster.time=3", "cluster.signal_seconds=60", "data.workers=1")
    job.wait_for_step(3)
    step = job.halt()  # so that the job does not finish first; SLURM wakes the ranks before it signals them
    job.wait_for_requeue(1)
    saved = job.saved()
    assert len(saved) == 1
    assert step <= saved[0] < STEPS
    assert "and saved: back into the queue, restart 1 of at most 100" in job.output("batch")
    for restart in range(1, 6):
        job.come_back(restart)
        poll(lambda n=restart: job.is_over() or job.restarts() > n, PATIENCE, lambda: f"still running\n{job}")
        if job.is_over():
            break
    assert slurm.state(job.number) == "COMPLETED", str(job)
    assert job.starts()[1]["step"] == saved[0]
    assert history(job.run) == history(undisturbed)


@pytest.mark.slow
def test_promise_06_a_signal_before_python_is_up_kills_nothing(
    slurm: Slurm, start: Launch, undisturbed: Path, tmp_path: Path
) -> None:
    """The ranks ignore the signal while they start: the job continues as if nothing had happened."""
    slow = tmp_path / "slow.sh"
    slow.write_text(
        f'touch {tmp_path}/starting.$SLURM_PROCID\nuntil [ -e {tmp_path}/go ]; do sleep 0.1; done\nexec "$@"\n'
    )
    job = start(f"cluster.prefix=bash {slow}")
    poll(lambda: len(list(tmp_path.glob("starting.*"))) == 2, PATIENCE, lambda: f"not starting\n{job}")
    slurm.scancel("--signal=USR1", job.number)
    time.sleep(2)  # the arrival of an ignored signal cannot be observed
    (tmp_path / "go").touch()
    job.wait("COMPLETED")
    assert job.restarts() == 0
    assert history(job.run) == history(undisturbed)


@pytest.mark.slow
def test_promise_06_four_requeues_end_with_the_same_weights(start: Launch, undisturbed: Path) -> None:
    job = start()
    for restart in range(4):
        job.wait_for_step(job.step() + 1)  # the first row of a start is written at once
        when = send_usr1(job, ["all", "0", "1"][restart % 3], restart)
        job.wait_for_requeue(restart + 1)
        step = job.step(when) + 1
        assert step <= job.saved()[-1] <= step + 3
        job.come_back(restart + 1)
    job.wait("COMPLETED")
    assert [one["job"] for one in job.starts()] == [str(job.number)] * 5
    assert history(job.run) == history(undisturbed)
    ours, theirs = (load_model(open_checkpoint(run))[0].state_dict() for run in (job.run, undisturbed))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_killed_rank_fails_the_job(slurm: Slurm, start: Launch) -> None:
    """It is not requeued, not even if an earlier job of the run left a marker."""
    job = start()
    job.wait_for_step(3)
    (job.run / MARKER).write_text(f"{job.number - 1}.0\n")
    os.kill(job.ranks()[1], signal.SIGKILL)
    job.wait("FAILED")
    assert job.restarts() == 0
    assert f"not requeued: the reason is at the end of {job.run}/logs/{job.number}-*.out" in job.output("batch")


def test_a_run_without_its_store_fails(slurm: Slurm, start: Launch, atlas: Atlas, tmp_path: Path) -> None:
    store = tmp_path / "copied.zarr"
    shutil.copytree(atlas.store, store)
    job = start(f"data.store={store}", "cluster.sbatch=[--hold]")
    store.rename(tmp_path / "elsewhere.zarr")
    slurm.scontrol("release", str(job.number))
    job.wait("FAILED")
    assert job.restarts() == 0
    assert f"not requeued: the reason is at the end of {job.run}/logs/{job.number}-*.out" in job.output("batch")
    assert str(store) in job.output("0")


def test_one_job_at_a_time_until_scancel(
    slurm: Slurm, start: Launch, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While a job waits or runs, no other may train into its directory. scancel ends it for good, with a checkpoint."""
    words = [*tiny_words(atlas.store, tmp_path / "run"), *WORDS]
    job = start("cluster.sbatch=[--hold]")
    capsys.readouterr()
    assert main(["launch", LOCAL_CPU, *words]) == 1
    assert f"job {job.number} trains into it already (pending)" in capsys.readouterr().err
    slurm.scontrol("release", str(job.number))
    job.wait_for_step(3)
    step = job.halt()  # so that the job does not finish before the next line
    assert main(["launch", LOCAL_CPU, *words]) == 1
    assert f"job {job.number} trains into it already (running)" in capsys.readouterr().err
    # Where SLURM's commands do not reach it, the lock refuses the run.
    process = begin(words, tmp_path / "log", env={"PATH": ""})
    process.join()
    assert process.exitcode == 1
    holder = f"process {job.ranks()[0]} on {os.uname().nodename}, job {job.number}, restart 0"
    assert f"another process is training into it ({holder})" in (tmp_path / "log").read_text()
    assert [path.name for path in (job.run / "launch").iterdir()] == ["001"]
    assert slurm.cluster.run("squeue", "--noheader", "--format=%i").split() == [str(job.number)]

    job.wake()
    slurm.scancel(job.number)
    poll(lambda: not slurm.processes(job.number), PATIENCE, lambda: f"still there\n{job}")
    job.wait("CANCELLED")
    assert job.restarts() == 0
    assert not slurm.cluster.run("squeue", "--noheader")
    assert len(job.saved()) == 1
    assert step <= job.saved()[0] < STEPS
    assert start("cluster.sbatch=[--hold]").number > job.number


@pytest.mark.slow
@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_lost_node(slurm: Slurm, start: Launch, undisturbed: Path, node: str) -> None:
    """SLURM notices by itself, while the job waits for the lost rank. n1 has rank 0 and the batch script."""
    job = start("checkpoint.every_steps=10")
    job.wait_for_step(25)
    slurm.kill_node(node)
    job.wait_for_requeue(1)
    assert not (job.run / MARKER).exists()
    saved = job.saved()[-1]
    assert saved >= 20
    slurm.revive_node(node)
    job.come_back(1)
    job.wait("COMPLETED")
    assert [(one["job"], one["step"]) for one in job.starts()] == [(str(job.number), 0), (str(job.number), saved)]
    assert history(job.run) == history(undisturbed)


@pytest.mark.slow
def test_ranks_that_outlived_their_job_write_nothing_more(slurm: Slurm, start: Launch, undisturbed: Path) -> None:
    """A node has only lost its network: its ranks live, and continue after the next start has taken over."""
    job = start("checkpoint.every_steps=10", "cluster.nodes=1", "cluster.tasks_per_node=2")
    job.wait_for_step(25)
    node = slurm.field(job.number, "BatchHost")
    step = job.halt()
    old = job.ranks()
    slurm.kill_node(node, tasks=False)
    slurm.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=test")
    job.come_back(1)
    saved = job.saved()[-1]
    poll(lambda: len(job.starts()) == 2, PATIENCE, lambda: f"no second start\n{job}")
    job.wait_for_step(saved + 1)
    job.halt(restart=1)
    new = job.ranks(restart=1)
    assert slurm.field(job.number, "BatchHost") != node
    before = {path: path.read_bytes() for path in job.run.rglob("*") if path.is_file() and "logs" not in path.parts}
    job.wake()
    poll(lambda: not job.ranks(), PATIENCE, lambda: f"{old} continue from {step}\n{job}")
    assert f"another start of this run has taken over (process {new[0]} on" in job.output("0")
    after = {path: path.read_bytes() for path in job.run.rglob("*") if path.is_file() and "logs" not in path.parts}
    assert after == before
    job.wake(restart=1)
    job.wait("COMPLETED")
    assert job.restarts() == 1
    assert history(job.run) == history(undisturbed)


FITS = ["cluster.partition=debug", "cluster.qos=", "cluster.gpu_type=", "cluster.memory=32G", "data.micro_rows=1"]
#: The settings with which each file of configs/cluster fits this cluster, and the CPUs that it then asks for.
ADJUSTED = {
    "local-cpu.yaml": (["data.micro_rows=1"], 2),
    "h100-infiniband.yaml": ([*FITS, "cluster.nodes=2", "cluster.gpus_per_node=2", "cluster.cpus_per_task=8"], 32),
    # sbatch does not read the options of srun: this cluster has no Pyxis.
    "h100-pyxis.yaml": ([*FITS, "cluster.nodes=2", "cluster.gpus_per_node=2", "cluster.cpus_per_task=8"], 32),
    "a100-apptainer.yaml": ([*FITS, "cluster.gpus_per_node=2", "cluster.cpus_per_task=4"], 8),
    "preemptible.yaml": ([*FITS, "cluster.nodes=2", "cluster.gpus_per_node=1", "cluster.cpus_per_task=4"], 8),
}


def test_every_cluster_file_is_tried() -> None:
    assert {path.name for path in CLUSTERS.iterdir()} == set(ADJUSTED)


@pytest.mark.parametrize("name", sorted(ADJUSTED))
def test_slurm_takes_the_scripts(
    here: None, atlas: Atlas, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, n_cpus = ADJUSTED[name]
    tiny = [*tiny_words(atlas.store, tmp_path / "run"), "data.lanes=8"]
    assert main(["launch", "--dry-run", *tiny, str(CLUSTERS / name), *words]) == 0
    assert f"using {n_cpus} processors on nodes n" in check_launch(capsys.readouterr().out)


def test_more_nodes_than_exist_are_refused_with_advice(
    here: None, slurm: Slurm, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny_words(atlas.store, tmp_path / "run"), "data.lanes=64", "data.micro_rows=1"]
    fits = ["cluster.partition=debug", "cluster.gpu_type="]
    assert main(["launch", *words, str(CLUSTERS / "h100-infiniband.yaml"), *fits]) == 1
    error = capsys.readouterr().err
    assert "SLURM would not take this job" in error
    assert "look at cluster.nodes" in error
    assert not slurm.cluster.run("squeue", "--noheader")
    assert not (tmp_path / "run").exists()


def test_doctor_in_an_allocation(slurm: Slurm, here: None, atlas: Atlas, tmp_path: Path) -> None:
    """Ranks on both nodes meet by SLURM's variables, and find that the run would work."""
    config = [LOCAL_CPU, *tiny_words(atlas.store, tmp_path / "run")]
    words = shlex.join([sys.executable, "-m", "gm_train.cli", "doctor", *config])
    job = slurm.sbatch("--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/out", f"--wrap=srun {words}")
    state = slurm.wait(job, timeout=PATIENCE)
    out = (tmp_path / "out").read_text()
    assert state == "COMPLETED", out
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("ok")}
    assert "MASTER_ADDR=127.0.0.1" in lines["rendezvous"]
    assert "2 on 2 nodes" in lines["ranks"]
    assert {"store", "job", "all-reduce"} <= lines.keys()
    assert "0 FAIL" in out
