"""The batch script of Dask workers under SLURM, parsed like bash and sbatch do."""

import shlex
import subprocess
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.dask_workers import job_script
from cluster.launch_problems import job_problems, launch_problems
from gm_train.cli.main import main
from gm_train.config.check import ConfigError
from gm_train.config.load import load_cluster

if find_spec("dask_jobqueue") is None:  # importing it would replace the Ctrl-C handler of all other tests
    pytest.skip("needs dask_jobqueue", allow_module_level=True)

WORDS = [
    "cluster.nodes=3", "cluster.cpus_per_task=4", "cluster.memory=8G", "cluster.time=00:02:00", "cluster.partition=cpu",
    "cluster.account=lab", "cluster.setup=[module load site, export SITE=1]", "cluster.env=[A=b c]",
    "cluster.prefix=apptainer exec image.sif", "cluster.python=python3", "cluster.sbatch=[--exclusive]",
]  # fmt: skip


def test_script_has_what_the_settings_say() -> None:
    config = load_cluster(WORDS)
    # A time limit below cluster.signal_seconds is a problem only for jobs that train.
    assert job_problems(config) == []
    assert any("cluster.signal_seconds" in problem for problem in launch_problems(config))
    script = job_script(config.cluster, Path("/shared/of two words"), "m.zarr")
    assert [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")] == [
        "--job-name=gm-train-m.zarr", "--partition=cpu", "--account=lab", "--nodes=1", "--ntasks=1",
        "--cpus-per-task=4", "--mem=8G", "--time=00:02:00", "--requeue", "--output='/shared/of two words/%j.out'",
        "--open-mode=append", "--exclusive",
    ]  # fmt: skip
    *lines, worker = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert lines == [
        "set -e",
        "module load site",
        "export SITE=1",
        "set +e",
        "export OMP_NUM_THREADS=1",
        "export A='b c'",
    ]
    words = shlex.split(worker)
    assert words[:6] == ["apptainer", "exec", "image.sif", "python3", "-m", "distributed.cli.dask_worker"]
    options = dict(pairwise(words))
    # Each worker has one thread, and a quarter of the job's 8 GiB.
    assert (options["--nworkers"], options["--nthreads"], options["--memory-limit"]) == ("4", "1", "2.00GiB")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize(("memory", "limit"), [("", "auto"), ("0", "auto"), ("512", "512.00MiB"), ("3T", "3.00TiB")])
def test_memory_as_slurm_means_it(memory: str, limit: str) -> None:
    cluster = load_cluster([f"cluster.memory={memory}", "cluster.cpus_per_task=1", "cluster.requeue=false"]).cluster
    script = job_script(cluster, Path("/shared"), "m.zarr")
    assert f"--memory-limit {limit} " in script
    assert (f"#SBATCH --mem={memory}\n" in script) == bool(memory)
    assert "#SBATCH --no-requeue\n" in script


def test_settings_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as found:
        load_cluster(["cluster.nodes=two", "cluster.node=2", "data.lanes=4", "a.h5ad"])
    for part in (
        "cluster.nodes",
        "unknown key cluster.node (is it",
        "data.lanes=4: only settings of the cluster",
        "a.h5ad",
    ):
        assert part in str(found.value)
    # A file may contain other settings, too: it may be the one that training is launched with.
    file = tmp_path / "site.yaml"
    file.write_text("cluster:\n  partition: cpu\n  nodes: 0\ncheckpoint:\n  every_steps: 5\n")
    assert load_cluster([str(file)]).cluster.partition == "cpu"
    out = tmp_path / "m.zarr"
    assert main(["data", "medians", "a.h5ad", "--out", str(out), "--slurm", str(file)]) == 2
    assert "cluster.nodes=0: must be at least 1" in capsys.readouterr().err
    assert [found.name for found in tmp_path.iterdir()] == ["site.yaml"]


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["data", "medians", "a.h5ad", "--out", str(tmp_path / "m.zarr"), "--slurm", "cluster.nodes=2"]) == 1
    assert "sbatch: not found: start this on a login node" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
