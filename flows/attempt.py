"""Trying blocks: what came of each, whose fault it was, and a fresh process for blocks that need one.

An error never leaves `attempt` as an exception: it comes back as data, with its traceback and a verdict.

    verdict    whose fault                       what the stage does with it
    block      this block's (data, memory)       again, then quarantine; the others go on
    worker     this worker's (other bits)        another worker does the block
    run        everyone's (disk full, no lease)  the run stops, to go on later
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import islice
from threading import Lock
from typing import Any, Literal

from flows.supervise import end_with_parent
from unet_core.errors import InputError, LostLeaseError, StoreError, UnetFlowsError, UnfitWorkerError
from unet_core.ledger import Done

Verdict = Literal["block", "worker", "run"]

# A Dask worker of several threads must not hold several networks and tiles: the plan counts one.
_ONE_AT_A_TIME = Lock()
_TO_START = 120.0  # seconds that a fresh process may take to import what it needs
STREAM_HOLDS = 3  # blocks: one is read, one computed and one written at a time
_TIMED_OUT = "Timeout ("  # how faulthandler begins its report
_STOPS = (StoreError, LostLeaseError, InputError)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A block that was tried and not done. `worker` is the process's host and number.

    `final`: trying again would do no better.
    """

    verdict: Verdict
    error: str
    traceback: str
    worker: str
    final: bool = False


Outcome = Done | Failed


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage does with a block: `function(*arguments, index)`.

    Attributes
    ----------
    stream
        `stream(*arguments, indices)` does many blocks where that is faster than one by one, such as by
        reading ahead. It takes them from the iterator `indices`, which may end at any time, and yields the
        index of each that it has taken, with `Done` or with the exception that it met, in any order. What
        it leaves out, or had taken when it raised, is done by `function`. None: there is no such way.
    timeout
        Seconds after which a block counts as hung; its process is ended. None: no limit.
    importable
        Whether another process can import the function, and be given its arguments as JSON.
    """

    function: Callable[..., Done]
    arguments: tuple[Any, ...] = ()
    timeout: float | None = None
    importable: bool = True
    stream: Callable[..., Iterator[tuple[int, Done | Exception]]] | None = None


@dataclass(frozen=True)
class Tried:
    """What came of a batch: an outcome for each block that was tried, and the seconds all of them took.

    `leaving` is the worker's address where its time is up.
    """

    outcomes: list[tuple[int, Outcome]]
    seconds: float
    leaving: str | None = None


def _always() -> bool:
    return True


def attempt_many(
    work: Work, indices: Iterable[int], *, limit: float, wanted: Callable[[], bool] = _always
) -> Tried:
    """Do blocks one after the other in this process, each with an outcome of its own.

    Not all are tried: none is begun after `limit` seconds, or when nobody wants them any more, or when one
    has shown that this worker or the whole run cannot do them.
    """
    began = time.monotonic()

    def in_time() -> Iterator[int]:
        for index in indices:
            if time.monotonic() - began > limit or not wanted():
                return
            yield index

    return Tried(list(attempt_each(work, in_time())), time.monotonic() - began)


def attempt_each(
    work: Work, indices: Iterable[int], *, watched: bool = True
) -> Generator[tuple[int, Outcome]]:
    """Do blocks as they are asked for, up to one whose failure is not its own."""
    way = _singly if work.stream is None else _streamed
    with closing(way(work, iter(indices), watched)) as outcomes:
        for index, outcome in outcomes:
            yield index, outcome
            if isinstance(outcome, Failed) and outcome.verdict != "block":
                return


def _singly(work: Work, indices: Iterable[int], watched: bool) -> Generator[tuple[int, Outcome]]:
    for index in indices:
        yield index, attempt(work, index, watched=watched)


def _streamed(work: Work, indices: Iterator[int], watched: bool) -> Generator[tuple[int, Outcome]]:
    under_way: dict[int, None] = {}  # in the order in which they were taken

    def taken() -> Iterator[int]:
        for index in indices:
            under_way[index] = None
            yield index

    answered = False
    # Where the stream itself fails, its blocks tell by themselves what is wrong with them.
    with _ONE_AT_A_TIME, suppress(Exception), closing(_watched(work, taken(), watched)) as stream:
        for index, done in stream:
            # A stream holds several blocks: one of them alone may have memory enough.
            if isinstance(done, Done) or not _is_memory(done):
                under_way.pop(index)
                outcome = done if isinstance(done, Done) else _failed(done)
                yield index, outcome
                answered = True
            del done  # an exception holds the tensors of its frames
    if not under_way and not answered:  # it failed before it took one
        under_way.update(dict.fromkeys(islice(indices, 1)))
    yield from _singly(work, under_way, watched)


def _watched(work: Work, indices: Iterator[int], watched: bool) -> Generator[tuple[int, Done | Exception]]:
    """What the stream yields. Before its first answer it may have done all that the blocks it holds need."""
    if work.stream is None:
        return
    stream = work.stream(*work.arguments, indices)
    try:
        while True:
            with _watchdog(STREAM_HOLDS * work.timeout if watched and work.timeout is not None else None):
                answer = next(stream, None)
            if answer is None:
                return
            yield answer
    finally:
        if isinstance(stream, Generator):
            stream.close()  # at once: it may have threads


def attempt(work: Work, index: int, *, alone: bool = False, watched: bool = True) -> Outcome:
    """Do one block in this process, or `alone` in a fresh one.

    `watched`: end this process when the block hangs, as only a worker may be ended.
    """
    with _ONE_AT_A_TIME:
        if alone:
            return _in_fresh_process(work, index)
        try:
            with _watchdog(work.timeout if watched else None):
                return work.function(*work.arguments, index)
        except Exception as error:
            failed = _failed(error)
            starved = _is_memory(error)
        # Outside the handler: the traceback no longer holds the tensors.
        if not starved or not work.importable:
            return failed
        from flows import worker

        worker.forget()
        again = _in_fresh_process(work, index)
        return again if isinstance(again, Done) else _with_advice(again, work)


def _failed(error: Exception) -> Failed:
    verdict: Verdict = "block"
    if isinstance(error, UnfitWorkerError):
        verdict = "worker"
    elif isinstance(error, _STOPS):
        verdict = "run"
    text = str(error) if isinstance(error, UnetFlowsError) else f"{type(error).__name__}: {error}"
    lines = traceback.format_exception(error)
    return Failed(verdict=verdict, error=text, traceback="".join(lines), worker=this_worker())


def this_worker() -> str:
    """Host and process, as people look for them."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def _is_memory(error: Exception) -> bool:
    """Whether an allocation failed: numpy's, torch's on a GPU, torch's on the CPU (which has no type)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def _with_advice(failed: Failed, work: Work) -> Failed:
    """The failure of a block that found too little memory twice, with the tile that would fit."""
    from flows import worker
    from unet_core.instances.plan import MERGE

    tile = None
    with suppress(Exception):  # advice must not hide the failure
        tile = worker.tile_that_fits(work.arguments[0], work.arguments[1])
    advice = "a smaller --tile, which is another run (another --to)"
    if work.function is worker.instances:
        # The merge holds what lies on faces, the others hold a block.
        block = "more memory, or a larger" if work.arguments[-1] == MERGE else "a smaller"
        advice = f"{block} --block, which is another run (another --to) with the same results"
    elif tile is not None:
        advice = f"--tile {tile} would fit here; another tile is another run (another --to)"
    return replace(failed, error=f"{failed.error}\n  to do:    {advice}", final=True)


@contextmanager
def _watchdog(timeout: float | None) -> Iterator[None]:
    """End this process, with a traceback on its error output, unless the context is left in time."""
    if timeout is None:
        yield
        return
    # A thread of the interpreter could not interrupt a call that holds the interpreter's lock; this can.
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _in_fresh_process(work: Work, index: int) -> Outcome:
    """The block in a process of its own: clean memory, and if it dies nothing else does."""
    request = {
        "function": f"{work.function.__module__}:{work.function.__qualname__}",
        "arguments": work.arguments,
        "index": index,
        "timeout": work.timeout,
        "parent": os.getpid(),
    }
    limit = None if work.timeout is None else work.timeout + _TO_START
    try:
        process = subprocess.run(
            [sys.executable, "-m", "flows.attempt"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return lost("a process of its own for this block neither ended nor could be ended")
    if _TIMED_OUT in process.stderr:
        hung = f"the block did not end within {work.timeout:.0f} s, in a process of its own"
        return lost(hung, process.stderr[-4000:])
    lines = process.stdout.splitlines()
    if process.returncode != 0 or not lines:
        how = (
            f"was killed by signal {-process.returncode} (9: often too little memory)"
            if process.returncode < 0
            else f"ended with exit code {process.returncode}"
        )
        return lost(f"a process of its own for this block {how}", process.stderr[-4000:])
    answer = json.loads(lines[-1])
    return Done(**answer["done"]) if "done" in answer else Failed(**answer["failed"])


def lost(error: str, details: str = "") -> Failed:
    """A block whose attempt could not answer for itself."""
    return Failed(verdict="block", error=error, traceback=details, worker=this_worker())


def _main() -> None:
    """The fresh process: one request on standard input, one answer on the last line of standard output."""
    request = json.load(sys.stdin)
    end_with_parent(signal.SIGKILL, parent=request["parent"])
    module, _, name = request["function"].partition(":")
    try:
        function = getattr(import_module(module), name)
        with _watchdog(request["timeout"]):
            done = function(*request["arguments"], request["index"])
        answer: dict[str, Any] = {"done": asdict(done)}
    except Exception as error:
        answer = {"failed": asdict(_failed(error))}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
