"""A command and all it starts, in a session of its own: Ctrl-C reaches one process, none is left over."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from unet_core.errors import UnetFlowsError

INTERRUPTED = 130
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
_AWAITED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD)
_PATIENCE = 9  # seconds until a process that was asked to stop is ended


class InterruptionError(UnetFlowsError):
    """A run was asked to stop and did; the message says what became of it."""

    exit_code = INTERRUPTED


def supervised(work: Callable[[], int]) -> int:
    """Run `work` in a child process and return its exit code; interrupted by Ctrl-C, die of it, too.

    A terminal sends Ctrl-C to every process in its foreground group: Dask's workers and Prefect's
    embedded server would die of it before the flow could stop cleanly and say so. So they live in another
    session, signals go to the child alone, and whatever of the session outlives the child is
    killed. A shell ends its loop where the command in it died of SIGINT, and goes on with the next round
    where it exited with 130 (https://www.cons.org/cracauer/sigint.html): so this process dies of it in the
    end. Call this before threads are started: it forks.
    """
    # Held back from here on: the parent takes them one by one, so that none is missed on the way into a wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.setsid()
        end_with_parent(signal.SIGTERM, parent=parent)
        # Python's own way with SIGTERM would be to die at once, leaving Prefect's server and Dask's workers
        # behind; and a shell's background jobs are born with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
            return work()
        except KeyboardInterrupt:  # before the work could say so itself
            return INTERRUPTED
    status, asked = _wait(child)
    overdue = bool(asked) and signal.alarm(0) == 0
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    if overdue and code == -signal.SIGKILL:
        print("interrupted; it did not end by itself in time and was killed", file=sys.stderr)
        code = INTERRUPTED
    if code == INTERRUPTED and signal.SIGINT in asked:
        _die_of(signal.SIGINT)
    return code if code >= 0 else 128 - code


def _wait(child: int) -> tuple[int, set[int]]:
    """Pass on what this process is asked, until the child ends: its status, and what was asked."""
    asked: set[int] = set()
    while True:
        number = signal.sigwait(_AWAITED)
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status, asked
        elif number == signal.SIGALRM:
            # A call into a store that does not answer cannot be interrupted; the ledger knows what is done.
            _send(child, signal.SIGKILL)
        else:
            if not asked:
                signal.alarm(_PATIENCE)
            asked.add(number)
            _send(child, number)


def _die_of(number: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _send(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM if number == signal.SIGHUP else number)


def end_with_parent(number: int, *, parent: int) -> None:
    """Get a signal when the parent is killed, at once where that has happened by now.

    Only Linux can; elsewhere this process would go on alone.

    Parameters
    ----------
    parent
        The parent's process id, as the parent has told it: an orphan cannot know whose it was.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, number)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), number)
