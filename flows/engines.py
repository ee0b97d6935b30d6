"""Where attempts happen: in this process, or on Dask workers through a bounded window of futures.

An engine is a thin adapter. It takes block indices and gives back outcomes, in any order; what to do about
a failure is decided in `blocks`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from distributed import CancelledError, Client, KilledWorker, wait

from flows.attempt import Outcome, Work, attempt, lost, this_worker
from unet_core.errors import RunError

NO_WORKERS_PATIENCE = 600.0  # seconds
_LOOK_EVERY = 5.0  # seconds between two looks at a cluster that gives no outcome


class WorkerDied:
    """The workers that tried a block died of it, or beside it, or after it: nobody can tell yet."""


class Engine(Protocol):
    """Takes blocks, gives outcomes."""

    @property
    def has_room(self) -> bool:
        """Whether another block may be submitted now."""

    @property
    def busy(self) -> bool:
        """Whether an outcome is still to come."""

    def submit(self, index: int, *, alone: bool) -> None:
        """Try a block; `alone` in a process of its own."""

    def next(self) -> tuple[int, Outcome | WorkerDied]:
        """Wait for one outcome."""

    def dismiss(self, worker: str) -> None:
        """Give no more blocks to a worker that computes other bits; RunError if none is left."""

    def stop(self) -> None:
        """Begin nothing that has not begun."""


class InProcess:
    """One block after the other, here."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._waiting: deque[tuple[int, bool]] = deque()

    @property
    def has_room(self) -> bool:
        return not self._waiting

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def submit(self, index: int, *, alone: bool) -> None:
        self._waiting.append((index, alone))

    def next(self) -> tuple[int, Outcome | WorkerDied]:
        index, alone = self._waiting.popleft()
        return index, attempt(self._work, index, alone=alone, watched=False)

    def dismiss(self, worker: str) -> None:
        raise RunError("this machine would compute other results than the run was begun with")

    def stop(self) -> None:
        self._waiting.clear()


class OnWorkers:
    """A window of Dask futures, about twice as many as workers; each is released when it is done."""

    def __init__(self, client: Client, work: Work, name: str) -> None:
        self._client = client
        self._work = work
        self._name = f"{name}-{time.time_ns():x}"
        self._count = 0
        self._futures: dict[Any, int] = {}
        self._finished: deque[Any] = deque()
        self._workers_seen = time.monotonic()

    @property
    def has_room(self) -> bool:
        # Twice the workers keep every worker busy while the client reacts; more would only queue. On a
        # cluster workers come and go, so the window follows them.
        return len(self._futures) < 2 * max(1, self._workers())

    @property
    def busy(self) -> bool:
        return bool(self._futures)

    def submit(self, index: int, *, alone: bool) -> None:
        self._count += 1
        key = f"{self._name}-{self._count}-{index}"
        with self._connected():
            future = self._client.submit(attempt, self._work, index, alone=alone, key=key, pure=False)
        self._futures[future] = index

    def next(self) -> tuple[int, Outcome | WorkerDied]:
        with self._connected():
            while not self._finished:
                try:
                    done = wait(list(self._futures), timeout=_LOOK_EVERY, return_when="FIRST_COMPLETED").done
                    self._finished.extend(done)
                except TimeoutError:
                    self._require_workers()
                except CancelledError:
                    # By a scheduler that is lost, which `_workers` finds out, or one that gave a key up.
                    self._workers()
                    self._finished.extend(future for future in self._futures if future.cancelled())
            future = self._finished.popleft()
            index = self._futures.pop(future)
            try:
                outcome = future.result() if future.status == "finished" else _without_result(future)
            except (OSError, CancelledError):
                # The worker died after it had finished, with the result; or the scheduler did, as the next
                # question to it will show.
                outcome = WorkerDied()
            # A finished future that is held would be computed again if its worker died.
            future.release()
            return index, outcome

    def dismiss(self, worker: str) -> None:
        with self._connected():
            names = self._client.run(this_worker)
            # A block that it computes meanwhile is done again elsewhere: harmless.
            self._client.retire_workers([address for address, name in names.items() if name == worker])
        if all(name == worker for name in names.values()):
            raise RunError("no worker is left that would compute the results that the run was begun with")

    def stop(self) -> None:
        if self._futures and self._client.status == "running":
            self._client.cancel(list(self._futures), force=True)
        self._futures.clear()

    def _workers(self) -> int:
        with self._connected():
            return len(self._client.scheduler_info(n_workers=-1)["workers"])

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """One clear error where the scheduler is lost: Dask raises half a dozen kinds."""
        if self._client.status != "running":
            raise _scheduler_lost()
        try:
            yield
        except (CancelledError, OSError):
            raise _scheduler_lost() from None
        except Exception:
            if self._client.status == "running":
                raise
            raise _scheduler_lost() from None

    def _require_workers(self) -> None:
        """Dask waits for workers for ever; a run must not."""
        now = time.monotonic()
        if self._workers() > 0:
            self._workers_seen = now
        elif now - self._workers_seen > NO_WORKERS_PATIENCE:
            raise RunError(
                "no Dask worker was there for ten minutes",
                fix="start workers and give the same command: it does only what is missing",
            )


def engine_for(client: Client | None, work: Work, name: str) -> Engine:
    """Dask's workers, or without a client this process."""
    return InProcess(work) if client is None else OnWorkers(client, work, name)


def _without_result(future: Any) -> Outcome | WorkerDied:
    if future.status != "error":
        return WorkerDied()
    error = future.exception()
    if isinstance(error, KilledWorker):
        return WorkerDied()
    return lost(f"{type(error).__name__}: {error}")


def _scheduler_lost() -> RunError:
    return RunError(
        "the Dask scheduler went away",
        fix="start it again and give the same command: it does only what is missing",
    )
