"""A command and all it starts, in a session of its own: Ctrl-C reaches one process, none is left over."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


def supervised(work: Callable[[], int]) -> int:
    """Run `work` in a child process and return its exit code.

    A terminal sends Ctrl-C to every process in its foreground group: Dask's workers and Prefect's
    embedded server would die of it before the flow could stop cleanly and say so. So they live in another
    session, signals go to the child alone, and whatever of the session outlives the child is
    killed. Call this before threads are started: it forks.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        _end_with_parent()
        return work()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: _send(child, number))
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _send(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM if number == signal.SIGHUP else number)


def _end_with_parent() -> None:
    """Be told to end when the parent is killed; only Linux can, elsewhere the run would go on alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
