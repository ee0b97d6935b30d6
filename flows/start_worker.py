"""Start a Dask worker as runs need it: `python -m flows.start_worker SCHEDULER [options of dask worker]`.

One block at a time, arithmetic on all the cores that it was given, the C library's memory as the plan counts
it, no dashboard, and gone before its job's walltime is. Environment variables that are set already stand.
"""

from __future__ import annotations

import os
import sys
import time

from flows import deadline, gpus
from flows.config.cluster import seconds_of
from flows.environment import thread_environment
from unet_core.machine import cores

_LEAVES = 5.0  # seconds before the deadline


def main(arguments: list[str], *, gpu: str | None = None) -> None:
    """Become that worker, which sees the one GPU that is named; does not return."""
    given, options = _parted(arguments)
    threads = given.get("--nthreads") or os.environ.get("SLURM_CPUS_PER_TASK")
    environment = {**thread_environment(int(threads or cores())), **os.environ}
    if gpu is not None:
        environment[gpus.VARIABLE] = gpu
    end = environment.get(deadline.VARIABLE) or environment.get("SLURM_JOB_END_TIME")
    if end is None and (walltime := given.get("--walltime")):
        end = str(time.time() + seconds_of(walltime))
    if end is not None:
        environment[deadline.VARIABLE] = end
        options.append(f"--lifetime={max(1.0, float(end) - time.time() - _LEAVES):.0f}s")
    module = ["-m", "distributed.cli.dask_worker"]
    fixed = ["--nthreads=1", "--memory-limit=0", "--dashboard-address=127.0.0.1:0"]  # it has no password
    os.execve(sys.executable, [sys.executable, *module, *options, *fixed], environment)


def _parted(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """What is decided here, and what goes on to Dask as it is."""
    given, options = {}, []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("--nthreads", "--memory-limit", "--walltime"):
            given[name] = value if equals else next(rest, "")
        else:
            options.append(argument)
    return given, options


if __name__ == "__main__":
    main(sys.argv[1:])
