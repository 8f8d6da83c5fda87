"""Run Dask workers as SLURM jobs, for `gm-train data ... --slurm`.

The scheduler runs in this process, which waits for the work to end. Each job holds the worker processes of one node.
All of them talk over TLS with keys made for this command, because anyone who reaches a Dask scheduler can run any code
as its user.
"""

import getpass
import logging
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.batch_script import assignment
from cluster.sbatch_options import site_options
from cluster.submit import check_launch, run_slurm
from data_shards.errors import DataError
from gm_train.config.schema import ClusterConfig

#: Seconds between two checks whether any job is left, and seconds in which SLURM must take the submissions.
_LOOK_S, _SUBMIT_S = 5.0, 300.0


@contextmanager
def workers_on_slurm(cluster: ClusterConfig, out: Path) -> Iterator[str]:
    """Run worker jobs during the block, and yield the address of their scheduler.

    There are `cluster.nodes` jobs of `cluster.cpus_per_task` workers, which share `cluster.memory`. Each worker is a
    process that does one task at a time, because HDF5 requires it. If the jobs end by themselves, their output is kept
    beside `out`. Leaving the block ends the jobs, also after an error, Ctrl-C or SIGTERM, which becomes
    KeyboardInterrupt. If this process is killed, the jobs notice it and end themselves.

    Args:
        cluster: settings without problems (see `job_problems`).
        out: the file or folder that the work makes, in a folder that all nodes share.

    Raises:
        DataError: Dask is not installed, SLURM takes no jobs, or all jobs ended before the work did.
    """
    try:
        import dask

        jobqueue = _jobqueue()
    except ImportError as error:
        raise DataError("--slurm needs Dask: pip install 'gm-train[dask]'") from error
    if shutil.which("sbatch") is None:
        raise DataError("sbatch: not found: start this on a login node of the cluster, or use --workers")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.slurm-", dir=out.absolute().parent))
    except OSError as error:
        raise DataError(f"{out}: cannot write into its folder ({error}): choose another --out") from error
    # Otherwise the scheduler logs every worker that joins or leaves.
    logging.getLogger("distributed").setLevel(logging.ERROR)
    secrets = _secrets(folder)
    settings = {
        # Keep waiting for a lost worker: SLURM may put its job back into the queue.
        "distributed.deploy.lost-worker-timeout": "365 days",
        "distributed.comm.require-encryption": True,
        "distributed.comm.tls.ca-file": secrets.tls_ca_file,
        "distributed.comm.tls.client.cert": secrets.tls_client_cert,
        "distributed.comm.tls.client.key": secrets.tls_client_key,
    }
    jobs: _Jobs | None = None
    with dask.config.set(settings), _term_as_interrupt() as end_quietly:
        try:
            print(check_launch(job_script(cluster, folder, out.name)), flush=True)
            dask_cluster = jobqueue.SLURMCluster(
                job_cls=_job_class(),
                security=secrets,
                scheduler_options={"dashboard": False, "dashboard_address": None},
                **_job_options(cluster, folder, out.name),
            )
            jobs = _Jobs(dask_cluster, folder)
            jobs.submit(cluster.nodes)
            try:
                yield dask_cluster.scheduler_address
            except DataError as error:
                if jobs.ended is not None:
                    raise DataError(jobs.ended) from error
                raise
        finally:
            end_quietly()
            if jobs is not None:
                jobs.close()
            for secret in folder.glob("*.pem"):
                secret.unlink()
            if jobs is None or jobs.ended is None:
                shutil.rmtree(folder, ignore_errors=True)


def job_script(cluster: ClusterConfig, folder: Path, name: str) -> str:
    """Render the batch script of a job, with placeholders for the scheduler's address and the worker's name.

    Args:
        cluster: settings without problems (see `job_problems`).
        folder: folder for the output of the jobs.
        name: file name of what the work makes; the default job name contains it.
    """
    script: str = _job_class()("SCHEDULER", name="WORKER", **_job_options(cluster, folder, name)).job_script()
    return script


class _Jobs:
    """The jobs of a Dask cluster. A thread watches them: when no job is left, it makes the waiting work fail.

    Attributes:
        ended: the message that says why all jobs ended; None while any is left.
    """

    def __init__(self, workers: Any, folder: Path) -> None:
        self.ended: str | None = None
        self._workers = workers
        self._folder = folder
        self._ids: list[str] = []
        self._close = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def submit(self, number: int) -> None:
        """Submit `number` jobs, print their ids, and start to watch them."""
        self._workers.scale(jobs=number)
        waited = threading.Event()
        for _ in range(int(_SUBMIT_S * 10)):
            if len(self._workers.workers) == number:
                break
            waited.wait(0.1)
        self._ids = [job.job_id for job in self._workers.workers.values() if job.job_id]
        if len(self._ids) < number:
            refused = f"SLURM accepted only {len(self._ids)} of the {number} jobs"
            if not self._ids:
                raise DataError(f"{refused}: `sacctmgr show assoc user=$USER` lists the limits")
            print(f"{refused}; continuing with these", flush=True)
        ids = ",".join(self._ids)
        print(f"submitted jobs {ids}; they end with this command. In the queue: squeue --jobs={ids}", flush=True)
        self._thread.start()

    def close(self) -> None:
        """End the jobs and the scheduler."""
        self._close.set()
        if self._thread.is_alive():
            self._thread.join()
        self._workers.close()

    def _watch(self) -> None:
        while not self._close.wait(_LOOK_S):
            done = run_slurm("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i")
            if done.returncode or set(self._ids) & set(done.stdout.split()):
                continue
            self.ended = self._end_message()
            # This makes the work that waits for results fail.
            self._workers.close()
            return

    def _end_message(self) -> str:
        logs = sorted(self._folder.glob("*.out"), key=lambda log: log.stat().st_mtime)
        lines = logs[-1].read_text(errors="replace").strip().splitlines()[-5:] if logs else []
        end = "".join(f"\n    {line}" for line in lines)
        return (
            f"all worker jobs have ended before the work was done: jobs {', '.join(self._ids)}; `sacct --jobs="
            f"{','.join(self._ids)}` shows why. After a time limit (cluster.time), run the same command again: it "
            f"continues from what is finished. The output of the jobs is in {self._folder}"
            + (f", the last lines of {logs[-1].name}:{end}" if lines else "")
        )


def _jobqueue() -> Any:
    """Import `dask_jobqueue.slurm`, and restore the handler of Ctrl-C that the import replaces."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return import_module("dask_jobqueue.slurm")
    finally:
        # With its handler, Ctrl-C ends the process without a message, and with exit code 0.
        signal.signal(signal.SIGINT, before)


def _job_class() -> Any:
    base: Any = _jobqueue().SLURMJob

    class Job(base):  # type: ignore[misc]
        """A job whose #SBATCH lines come from the settings alone."""

        def __init__(self, *arguments: Any, security: Any = None, **options: Any) -> None:
            # SLURMJob itself does not quote the names of these files.
            secrets = {} if security is None else security.get_tls_config_for_role("worker")
            flags = [
                f"--tls-{name.replace('_', '-')} {shlex.quote(secrets[name])}" for name in secrets if secrets[name]
            ]
            super().__init__(*arguments, worker_extra_args=flags, **options)
            self.job_header = "\n".join(f"#SBATCH {line}" for line in self.job_extra_directives)

        @property
        def worker_process_memory(self) -> str:
            # Without cluster.memory, Dask finds out by itself how much a worker may use.
            memory: str = super().worker_process_memory if self.worker_memory else "auto"
            return memory

    return Job


def _memory(memory: str) -> str:
    """Convert a SLURM memory size to Dask's notation. For SLURM, a number without a unit is in MiB."""
    digits = memory.rstrip("KMGT")
    return f"{digits or 0}{memory[len(digits) :] or 'M'}iB"


def _job_options(cluster: ClusterConfig, folder: Path, name: str) -> dict[str, Any]:
    """Return the arguments for `SLURMJob`."""
    lines = [
        f"--job-name={shlex.quote(cluster.job_name or f'gm-train-{name}')}",
        *site_options(cluster),
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={cluster.cpus_per_task}",
        *([f"--mem={cluster.memory}"] if cluster.memory else []),
        f"--time={cluster.time}",
        "--requeue" if cluster.requeue else "--no-requeue",
        f"--output={shlex.quote(str(folder).replace('%', '%%') + '/%j.out')}",
        "--open-mode=append",
        *cluster.sbatch,
    ]
    # As in the scripts of `gm-train launch`, a line of the setup that fails ends the job.
    setup = ["set -e", *cluster.setup, "set +e"] if cluster.setup else []
    return {
        "cores": cluster.cpus_per_task,
        "processes": cluster.cpus_per_task,
        "memory": _memory(cluster.memory),
        "job_mem": "",  # otherwise SLURMJob adds its own --mem line, and fails without cluster.memory
        "python": f"{cluster.prefix} {shlex.quote(cluster.python or sys.executable)}".strip(),
        "job_extra_directives": lines,
        "job_script_prologue": [
            *setup,
            "export OMP_NUM_THREADS=1",
            *(f"export {assignment(entry)}" for entry in cluster.env),
        ],
    }


def _secrets(folder: Path) -> Any:
    """Make TLS keys and certificates for this Dask cluster alone, in files that only the user can read."""
    from distributed.security import Security

    made: Any = Security.temporary()  # type: ignore[no-untyped-call]
    files = {}
    for name in (
        "tls_ca_file",
        *(f"tls_{role}_{part}" for role in ("client", "scheduler", "worker") for part in ("key", "cert")),
    ):
        files[name] = str(folder / f"{name}.pem")
        path = Path(files[name])
        path.touch(mode=0o600)
        path.write_text(getattr(made, name))
    return Security(require_encryption=True, **files)  # type: ignore[no-untyped-call]


@contextmanager
def _term_as_interrupt() -> Iterator[Any]:
    """Make SIGTERM act like Ctrl-C during the block. Yield a function that ignores both from then on, until its end."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def ignore() -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield ignore
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
