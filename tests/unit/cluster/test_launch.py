"""`gm-train launch`: what it refuses, writes, and asks SLURM. Small scripts stand in for SLURM here."""

import json
import re
from pathlib import Path

import pytest

from cluster.batch_script import resolved
from cluster.launch_problems import launch_problems, seconds_of
from gm_train.cli.main import main
from gm_train.config.load import config_from_file
from tests.support.launch_cases import GOOD, configured, executable


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
        (["cluster.time=3", "cluster.signal_seconds=180"], ["asked to leave before it starts", "180 s"]),
        (["cluster.signal_seconds=70000"], ["1 … 65535"]),
        (["cluster.signal_seconds=0"], ["1 … 65535"]),
        (["cluster.env=[NCCL_DEBUG]"], ["expected NAME=value"]),
        (["cluster.env=['2X=1']"], ["expected NAME=value"]),
        (["cluster.env=['PATH=/x:$PATH']"], ["put `export PATH=/x:$PATH` into cluster.setup"]),
        (["cluster.sbatch=[exclusive]"], ["expected an option of sbatch"]),
        (["cluster.sbatch=[--nodes=4]"], ["set cluster.nodes instead"]),
        (["cluster.sbatch=[-pgpu]"], ["set cluster.partition instead"]),
        (["cluster.sbatch=['--array 0-3']"], ["one run directory"]),
        (["cluster.srun=[pmix]"], ["expected an option of srun"]),
        (["cluster.srun=['-- x']"], ["expected an option of srun"]),
        (["cluster.srun=['']"], ["expected an option of srun"]),
        (["cluster.srun=[--ntasks=9]"], ["set cluster.nodes and cluster.gpus_per_node instead"]),
        (["cluster.srun=[-c4]"], ["set cluster.cpus_per_task instead"]),
        (["cluster.srun=['--output all.out']"], ["leave it out: the logs go to the run directory"]),
        (["cluster.srun=[--gpu-bind=closest]"], ["every rank must see all GPUs"]),
        (["cluster.srun=['--container-mounts=$SCRATCH']"], ["nothing is expanded"]),
        (['cluster.srun=["--container-name=\'a"]'], ["shell words"]),
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
        (["cluster.gpu_memory_gb=0"], ["expected whole GB, such as 80"]),
        (["cluster.nodes=3"], ["6 ranks", "1, 2, 4, 8"]),
        (["data.micro_rows=4"], ["2 rows", "1, 2"]),
        (["cluster.nodes=0", "cluster.time=x", "cluster.env=[A]"], ["cluster.nodes", "cluster.time", "cluster.env"]),
    ],
)
def test_refused(words: list[str], fragments: list[str]) -> None:
    text = "\n".join(launch_problems(configured(*words)))
    for fragment in fragments:
        assert fragment in text


def test_nothing_to_refuse() -> None:
    words = ["trainer.num_nodes=2", "trainer.devices=2", 'cluster.prefix=apptainer exec --bind "$SCRATCH" $IMAGE']
    assert launch_problems(configured(*words)) == []


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
    """Install an sbatch that accepts all jobs and a squeue without jobs; return the file that records the calls."""
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


def test_a_short_plan_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert launch(tmp_path / "run", "cluster.gpu_type=h100", "trainer.precision=bf16", "--dry-run") == 0
    summary = capsys.readouterr().err
    assert re.search(r"plan: \d.* GB of 80.0 GB a rank \(H100 SXM 80 GB\), .* tokens/s, ", summary)
    assert "h for 100,000 steps; modelled, not measured" in summary
    assert launch(tmp_path / "run", "model.arch=transformer", "--dry-run") == 0
    assert "no plan: model.arch=transformer" in capsys.readouterr().err


def test_what_cannot_fit_into_the_named_gpus_is_refused(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture
) -> None:
    large = ["data.lanes=256", "data.micro_rows=64"]
    assert launch(tmp_path / "run", "cluster.gpu_type=h100", *large) == 1
    error = capsys.readouterr().err
    assert "a rank needs" in error
    assert not slurm.exists()
    assert not (tmp_path / "run").exists()
    way_out = re.search(r"data\.micro_rows=\d+", error)
    assert way_out is not None
    assert launch(tmp_path / "run", "cluster.gpu_type=h100", *large, way_out[0], "--dry-run") == 0
    assert "may run out" not in capsys.readouterr().err


def test_memory_of_gpus_that_have_no_data_sheet(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    large = ["data.lanes=128", "data.micro_rows=32", "cluster.gpu_type=v100"]
    assert launch(tmp_path / "run", *large, "--dry-run") == 0
    assert "not known: cluster.gpu_memory_gb=N says it" in capsys.readouterr().err
    assert launch(tmp_path / "run", *large, "cluster.gpu_memory_gb=32", "--dry-run") == 1
    assert "a GPU of 32 GB, taken to be as fast as H100 SXM 80 GB has 29.4 GB for it" in capsys.readouterr().err
    assert launch(tmp_path / "run", *large, "cluster.gpu_memory_gb=80", "--dry-run") == 0
    assert "may run out of memory: if it does, set data.micro_rows=" in capsys.readouterr().err


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
    assert f"tail -F '{run_dir}/logs/41-0.out'" in out
    assert (run_dir / "logs").is_dir()
    assert (folder / "job_id").read_text() == "41\n"
    # 0: no SLURM_* variable of this shell reaches sbatch, because srun in the new job would take it for its own.
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
    # Another job has that number, because the controller lost its state.
    monkeypatch.setenv("QUEUE", "41 RUNNING elsewhere/job.sh")
    assert launch(run_dir) == 0


def test_fit_by_hand_leaves_a_launched_run_to_its_job(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It would take over the run directory of the job. But if SLURM does not answer, no job can start."""
    run_dir = tmp_path / "my run"
    assert launch(run_dir) == 0
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("QUEUE", f"41 PENDING {run_dir}/launch/001/job.sh")
    words = ["fit", f"run.dir={run_dir}", f"data.store={tmp_path / 'none.zarr'}"]
    assert main(words) == 1
    assert "job 41 trains into it already (pending)" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(words) == 1
    assert "none.zarr: no such store" in capsys.readouterr().err


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
    for fragment in ("all nodes share", "a.zarr: does not exist", "its own", "SBATCH_PARTITION"):
        assert fragment in caplog.text


def test_a_container_of_srun_needs_its_own_interpreter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert launch(tmp_path / "run", "cluster.srun=[--container-image=a.sqsh]", "--dry-run") == 0
    assert "name the image's own interpreter" in caplog.text


def test_a_preset_gives_each_of_64_ranks_enough(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    words = ["configs/genemamba-66m.yaml", f"run.dir={tmp_path}", "cluster.nodes=8", "cluster.gpus_per_node=8"]
    assert main(["launch", *words, "--dry-run"]) == 0
    assert "data.rows_per_lane=6, chosen for 64 ranks and kept by this run" in capsys.readouterr().err
    assert "a forward pass of a rank has" not in caplog.text
    assert main(["launch", *words, "data.rows_per_lane=1", "--dry-run"]) == 0
    assert "a forward pass of a rank has 3 rows, 6,144 tokens: a GPU needs 32,000" in caplog.text


def test_the_rows_of_a_step_are_written_for_the_ranks(tmp_path: Path, slurm: Path) -> None:
    """Also ranks that see no checkpoint of the run yet train with what was printed."""
    assert launch(tmp_path / "run", "data.rows_per_lane=null", "data.micro_rows=4") == 0
    text = (tmp_path / "run" / "launch" / "001" / "config.yaml").read_text()
    assert "rows_per_lane: 2" in text


def test_small_forward_passes_on_gpus_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    large = ["data.lanes=192", "data.micro_rows=null", "trainer.precision=bf16"]
    assert launch(tmp_path / "run", *large, "cluster.nodes=8", "cluster.gpus_per_node=8", "--dry-run") == 0
    assert "a forward pass of a rank has 3 rows, 6,144 tokens" in caplog.text
    assert "data.rows_per_lane=6, which makes its batch 6 times as large" in caplog.text
    caplog.clear()
    assert launch(tmp_path / "run", *large, "cluster.nodes=1", "cluster.gpus_per_node=8", "--dry-run") == 0
    assert launch(tmp_path / "run", *large, "cluster.gpus_per_node=0", "--dry-run") == 0
    assert "a forward pass" not in caplog.text
