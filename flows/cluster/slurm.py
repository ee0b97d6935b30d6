"""Workers as SLURM jobs, one each, through dask-jobqueue."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client

from flows.cluster.certificates import of_this_run, security_of
from flows.cluster.missing import library
from flows.cluster.source import Started
from flows.config.cluster import Slurm
from flows.environment import worker_environment
from unet_core.errors import InputError, RunError

if TYPE_CHECKING:
    from dask_jobqueue.slurm import SLURMCluster

_STARTER = "flows.start_worker"
_TO_REGISTER = "300"  # seconds in which a worker that started must find the scheduler
_LAST_LINES = 5
# So many jobs that ended before their worker came, and none that did: more would, too.
_FAILED_JOBS = 3
_COMMAND_PATIENCE = 60  # seconds that squeue and its like may take on a busy controller


@contextmanager
def start(config: Slurm) -> Iterator[Started]:
    """Jobs that are cancelled when this ends; with TLS among them and this process.

    Raises
    ------
    InputError
        dask-jobqueue or SLURM is not there, or SLURM would refuse the job.
    """
    library("dask_jobqueue", extra="slurm")
    if shutil.which("sbatch") is None:
        raise InputError(
            "SLURM is not there",
            where="sbatch",
            found="no such command on this machine",
            fix="give the command on a login node",
        )
    shared = Path(config.shared).expanduser().absolute()
    with nullcontext(None) if config.insecure else of_this_run(shared) as certificates:
        options = _options(config, shared, certificates)
        with _cluster(options) as cluster, Client(cluster) as client:
            _require_accepted(cluster, config)
            with _SlurmSource(client, cluster, shared).keeping() as source:
                yield source


def _options(config: Slurm, shared: Path, certificates: Path | None) -> dict[str, Any]:
    environment = worker_environment(config.threads or config.cores, config.environment)
    directives = list(config.directives)
    if config.gpu:
        directives.append(f"--gres=gpu{'' if config.gpu is True else f':{config.gpu}'}:1")
    # At the limit SLURM ends a job; the worker leaves a little before, and is missed by nobody.
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return {
        "queue": config.queue,
        "account": config.account,
        "walltime": config.walltime,
        "cores": config.cores,
        "processes": 1,
        "memory": config.memory,
        "job_name": "unet-flows",
        "log_directory": str(shared / "logs"),
        "worker_command": _STARTER,
        "worker_extra_args": [f"--walltime={config.walltime}"],
        "death_timeout": _TO_REGISTER,
        "job_extra_directives": directives,
        "job_script_prologue": [*exports, *config.prologue],
        "interface": config.interface,
        "local_directory": "${TMPDIR:-/tmp}",
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},  # it has no password
        **({} if certificates is None else {"security": security_of(certificates), "protocol": "tls://"}),
    }


def _cluster(options: dict[str, Any]) -> SLURMCluster:
    from dask_jobqueue.slurm import SLURMCluster

    try:
        return SLURMCluster(silence_logs=logging.CRITICAL, **options)
    except (ValueError, OSError) as error:
        raise InputError(
            "the jobs of this cluster cannot be written", where="[cluster]", found=error
        ) from None


def _require_accepted(cluster: SLURMCluster, config: Slurm) -> None:
    """Ask SLURM whether it would take such a job: what it refuses later, nobody hears of."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(cluster.job_script())
        script.flush()
        asked = _call("sbatch", "--test-only", script.name)
    if asked.returncode != 0:
        raise InputError(
            "SLURM refuses the workers' job",
            where="sbatch --test-only",
            expected="a job that could run some time",
            found=asked.stderr.strip() or f"exit code {asked.returncode}",
            fix="check queue, account, cores, memory, walltime and directives in the cluster's table",
        )


class _SlurmSource(Started):
    def __init__(self, client: Client, cluster: SLURMCluster, shared: Path) -> None:
        super().__init__(client, f"slurm, job logs in {shared / 'logs'}", cluster)
        self._logs = shared / "logs"
        self._ended: set[str] = set()

    def says(self) -> str | None:
        jobs = self._jobs()
        if not jobs:
            return None
        return "; ".join(_states(jobs) or [f"job {job} is not in the queue any more" for job in jobs])

    def hopeless(self) -> str | None:
        """Several jobs ended, and none brought a worker."""
        jobs = self._jobs()
        gone = set(jobs) - {line.split()[1] for line in _states(jobs)} if jobs else set()
        if gone - self._ended:
            self._ended |= gone
            self._forget(gone)
        if len(self._ended) < _FAILED_JOBS:
            return None
        last = max(self._ended, key=int)
        ended = f"{len(self._ended)} jobs ended before their worker came; of job {last}"
        return f"{ended}:\n{self._post_mortem(last)}"

    def _jobs(self) -> list[str]:
        return [job.job_id for job in list(self._cluster.workers.values()) if job.job_id is not None]

    def _forget(self, gone: set[str]) -> None:
        """Jobs whose end Dask cannot have noticed: it only misses workers that it has seen."""
        for name, job in list(self._cluster.workers.items()):
            if job.job_id in gone:
                del self._cluster.workers[name]

    def _post_mortem(self, job: str) -> str:
        told = _call("scontrol", "show", "job", job).stdout.split()
        facts = [f for f in told if f.startswith(("JobState=", "Reason=", "ExitCode="))]
        log = next(iter(self._logs.glob(f"*-{job}.err")), None)
        lines = [] if log is None else log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join([" ".join(facts), *lines])


def _states(jobs: list[str]) -> list[str]:
    """`job 17 PENDING (Resources)`, for each that SLURM still has in its queue."""
    told = _call("squeue", "--noheader", "--format=job %i %T (%r)", f"--jobs={','.join(jobs)}")
    return [line.strip() for line in told.stdout.splitlines() if "COMPLETING" not in line]


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_COMMAND_PATIENCE,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError("SLURM does not answer", where=" ".join(command), found=error) from None
