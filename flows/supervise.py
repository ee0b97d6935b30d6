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
        end_with_parent()
        # Python's own way would be to die at once, leaving Prefect's server and Dask's workers behind.
        signal.signal(signal.SIGTERM, _interrupt)
        return work()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: _send(child, number))
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _send(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM if number == signal.SIGHUP else number)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Get a signal when the parent is killed; only Linux can, elsewhere this process would go on alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, number)
