"""What a Dask worker does for a training: start one rank as a process, pass its events on, end it in time.

In the worker's own process torch's ranks would deadlock it, and a crash would take it along.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from distributed import get_worker

from flows import gpus
from flows.wanted import wanted
from unet_core import budget

_LOOK = 0.5  # seconds between two looks whether the rank is still wanted
PATIENCE = 6.0  # seconds that a rank has to finish its step and write a checkpoint
_TAIL = 4000


def host(job: dict[str, Any], topic: str) -> dict[str, Any]:
    """Run one rank to its end; what it did, or how it ended, as plain data.

    Events go to Dask's `topic`, each with the rank; "ended" is the last. The rank is ended when Dask
    wants this task no more: it was cancelled, or the client that asked for it is gone.
    """
    worker = get_worker()
    address = urlsplit(worker.address).hostname or "127.0.0.1"

    def tell(event: dict[str, Any]) -> None:
        worker.log_event(topic, {"rank": job["rank"], **event})

    try:
        return run({**job, "host": address}, tell, wanted())
    finally:
        tell({"ended": True})


def rank_environment() -> dict[str, str]:
    """A worker's environment, but of what is freed less is kept: `budget.training_bytes` counts it.

    Every step needs the same tensors again. Where all goes back to the system, fetching cleared pages anew
    made a step take 1.8 times as long. One heap for all threads is for workers that segment alone.
    """
    return {
        **{name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"},
        "MALLOC_TRIM_THRESHOLD_": str(budget.TRAINING_KEPT),
        "MALLOC_MMAP_THRESHOLD_": str(8 * 2**20),  # larger ones alone are fetched and given back each time
    }


def run(
    job: dict[str, Any], tell: Callable[[dict[str, Any]], None], wanted: Callable[[], bool]
) -> dict[str, Any]:
    """`host` without Dask: rank, exit code, the end of its log, and what it said of its end.

    The job's `gpu`, where it has one, is all that the rank sees of this machine's GPUs.
    """
    environment = rank_environment()
    if job.get("gpu") is not None:
        environment[gpus.VARIABLE] = job["gpu"]
    ours, theirs = os.pipe()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.rank"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(theirs,),
            env=environment,
        )
        os.close(theirs)
        try:
            line = json.dumps({**job, "events": theirs, "parent": os.getpid()}).encode() + b"\n"
            with suppress(BrokenPipeError):  # dead at once: its log says why
                _say(process, line)
            last, ended = _listen(process, ours, tell, wanted)
            if ended:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
        said = log.read().decode(errors="replace")
    return {"rank": job["rank"], "code": process.returncode, "log": said, **last}


def _listen(
    process: subprocess.Popen[bytes],
    events: int,
    tell: Callable[[dict[str, Any]], None],
    wanted: Callable[[], bool],
) -> tuple[dict[str, Any], bool]:
    """Pass events on until the rank is through, or was not wanted and had its time.

    Returns
    -------
    Its last words, and whether it is through.
    """
    buffer = b""
    last: dict[str, Any] = {}
    deadline: float | None = None
    while deadline is None or time.monotonic() < deadline:
        if select.select([events], [], [], _LOOK)[0]:
            data = os.read(events, 2**16)
            if not data:
                return last, True
            *lines, buffer = (buffer + data).split(b"\n")
            for event in map(json.loads, lines):
                if event.keys() & {"progress", "rendezvous"}:
                    tell(event)
                else:
                    last = event
        if deadline is None and not wanted():
            process.terminate()
            deadline = time.monotonic() + PATIENCE
    return last, False


def _say(process: subprocess.Popen[bytes], line: bytes) -> None:
    if process.stdin is not None:
        with process.stdin as pipe:
            pipe.write(line)
