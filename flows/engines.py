"""Where attempts happen: in this process, or on Dask workers through a bounded window of futures.

An engine is a thin adapter. It takes batches of block indices and gives back outcomes, in any order; what to
do about a failure is decided in `blocks`, how large a batch is in `batching`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

from distributed import CancelledError, Client, KilledWorker, get_worker, wait

from flows import deadline
from flows.attempt import (
    Failed,
    Outcome,
    Tried,
    Work,
    attempt,
    attempt_each,
    attempt_many,
    lost,
    this_worker,
)
from flows.cluster import cluster_patience
from flows.wanted import wanted
from unet_core.errors import RunError

_LOOK_EVERY = 5.0  # seconds between two looks at a cluster that gives no outcome
_TO_LEAVE = 1.0  # seconds in which a worker without time computes nothing, so that it can be sent away
_COUNT_EVERY = 1.0  # seconds between two questions to the scheduler for its workers


@dataclass(frozen=True)
class Answer:
    """What came of a batch, or of a part of it.

    Attributes
    ----------
    outcomes
        Of the blocks that were tried.
    untried
        Blocks that were not begun: too much time had passed, or one before showed that it would be in vain.
    died
        Blocks whose workers died of one of them, or beside them, or after them: nobody can tell yet.
    seconds
        What the outcomes took where they were computed.
    """

    outcomes: Sequence[tuple[int, Outcome]] = ()
    untried: Sequence[int] = ()
    died: Sequence[int] = ()
    seconds: float = 0.0


class Engine(Protocol):
    """Takes batches of blocks, gives answers."""

    @property
    def workers(self) -> int:
        """How many there are now."""

    @property
    def has_room(self) -> bool:
        """Whether another batch may be submitted now."""

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""

    def submit(self, indices: Sequence[int], *, limit: float) -> None:
        """Try blocks one after the other; begin none after `limit` seconds."""

    def submit_alone(self, index: int) -> None:
        """Try a block in a process of its own."""

    def next(self) -> Answer:
        """Wait for one answer."""

    def dismiss(self, worker: str) -> None:
        """Give no more blocks to a worker that computes other bits; RunError if none is left."""

    def stop(self) -> None:
        """Begin nothing that has not begun."""


class InProcess:
    """One block after the other, here; an answer for each."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._under_way: Generator[Answer] | None = None

    @property
    def workers(self) -> int:
        return 1

    @property
    def has_room(self) -> bool:
        return self._under_way is None

    @property
    def busy(self) -> bool:
        return self._under_way is not None

    def submit(self, indices: Sequence[int], *, limit: float) -> None:
        self._under_way = self._tried(indices)

    def submit_alone(self, index: int) -> None:
        self._under_way = self._alone(index)

    def next(self) -> Answer:
        if self._under_way is None:
            raise RuntimeError("nothing was submitted")
        answer = next(self._under_way, None)
        if answer is None:
            self._under_way = None
            return Answer()
        return answer

    def dismiss(self, worker: str) -> None:
        raise RunError("this machine would compute other results than the run was begun with")

    def stop(self) -> None:
        if self._under_way is not None:
            self._under_way.close()
            self._under_way = None

    def _alone(self, index: int) -> Generator[Answer]:
        yield Answer([(index, attempt(self._work, index, alone=True))])

    def _tried(self, indices: Sequence[int]) -> Generator[Answer]:
        left = dict.fromkeys(indices)
        began = time.monotonic()
        with closing(attempt_each(self._work, indices, watched=False)) as outcomes:
            for index, outcome in outcomes:
                del left[index]
                now = time.monotonic()
                yield Answer([(index, outcome)], seconds=now - began)
                began = time.monotonic()
        yield Answer(untried=list(left))


class OnWorkers:
    """A window of Dask futures, about twice as many as workers; each is released when it is done."""

    def __init__(self, client: Client, work: Work, name: str) -> None:
        self._client = client
        self._work = work
        self._name = f"{name}-{time.time_ns():x}"
        self._count = 0
        self._futures: dict[Any, Sequence[int]] = {}
        self._finished: deque[Any] = deque()
        self._workers_seen = time.monotonic()
        self._counted: tuple[float, int] | None = None
        self._longest = 0.0
        self._leaving: str | None = None

    @property
    def workers(self) -> int:
        """As they were within the last second: to ask the scheduler costs as much as a tiny block."""
        now = time.monotonic()
        if self._counted is None or now - self._counted[0] > _COUNT_EVERY:
            self._counted = (now, self._count_workers())
        return self._counted[1]

    @property
    def has_room(self) -> bool:
        # Twice the workers keep every worker busy while the client reacts; more would only queue. On a
        # cluster workers come and go, so the window follows them.
        return len(self._futures) < 2 * max(1, self.workers)

    @property
    def busy(self) -> bool:
        return bool(self._futures)

    def submit(self, indices: Sequence[int], *, limit: float) -> None:
        self._submit(_on_worker, indices, self._work, indices, limit, self._longest)

    def submit_alone(self, index: int) -> None:
        self._submit(_alone_on_worker, [index], self._work, index)

    def _submit(self, function: Callable[..., Tried], indices: Sequence[int], *arguments: Any) -> None:
        self._count += 1
        key = f"{self._name}-{self._count}-{indices[0]}"
        with self._connected():
            future = self._client.submit(function, *arguments, key=key, pure=False)
        self._futures[future] = indices

    def next(self) -> Answer:
        with self._connected():
            while not self._finished:
                try:
                    done = wait(list(self._futures), timeout=_LOOK_EVERY, return_when="FIRST_COMPLETED").done
                    self._finished.extend(done)
                except TimeoutError:
                    self._require_workers()
                except CancelledError:
                    # By a scheduler that is lost, which counting finds out, or one that gave a key up.
                    self._count_workers()
                    self._finished.extend(future for future in self._futures if future.cancelled())
            future = self._finished.popleft()
            indices = self._futures.pop(future)
            try:
                answer = self._answer_of(future, indices)
            except (OSError, CancelledError):
                # The worker died after it had finished, with the result; or the scheduler did, as the next
                # question to it will show.
                answer = Answer(died=indices)
            # A finished future that is held would be computed again if its worker died.
            future.release()
            if self._leaving is not None:
                # Refused while it alone holds an answer: then its next one says it again.
                self._client.retire_workers([self._leaving])
                self._leaving = None
            return answer

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

    def _answer_of(self, future: Any, indices: Sequence[int]) -> Answer:
        """What a future that is through says of its blocks."""
        if future.status == "finished":
            tried: Tried = future.result()
            if blocks := len(tried.outcomes):
                self._longest = max(self._longest, tried.seconds / blocks)
            self._leaving = tried.leaving
            there = {index for index, _ in tried.outcomes}
            untried = [index for index in indices if index not in there]
            return Answer(tried.outcomes, untried=untried, seconds=tried.seconds)
        if future.status == "error" and not isinstance(error := future.exception(), KilledWorker):
            # Not the blocks' own errors, which come as outcomes: each is told what Dask says.
            return Answer([(index, lost(f"{type(error).__name__}: {error}")) for index in indices])
        return Answer(died=indices)

    def _count_workers(self) -> int:
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
        if self._count_workers() > 0:
            self._workers_seen = now
        elif now - self._workers_seen > (patience := cluster_patience()):
            raise RunError(
                f"no Dask worker was there for {patience / 60:.0f} minutes",
                fix="start workers and give the same command: it does only what is missing",
            )


def engine_for(client: Client | None, work: Work, name: str) -> Engine:
    """Dask's workers, or without a client this process."""
    return InProcess(work) if client is None else OnWorkers(client, work, name)


def _on_worker(work: Work, indices: Sequence[int], limit: float, longest: float) -> Tried:
    """A batch as a Dask task, which ends when Dask no longer wants it, or where the worker's time is up.

    `longest`: seconds that a block of this stage may take, as far as is known.
    """
    dask_wants, begun = wanted(), count()

    def go_on() -> bool:
        # A stream still computes the block before the one that it asks for.
        ahead = 2 if work.stream is not None and next(begun) > 0 else 1
        return dask_wants() and deadline.enough(ahead * longest)

    tried = attempt_many(work, indices, limit=limit, wanted=go_on)
    if deadline.enough(longest):
        return tried
    if not tried.outcomes and not deadline.ever_enough(longest):
        refused = Failed(
            verdict="run",
            error=f"a block takes about {longest:.0f} s, which no worker's walltime leaves; ask for a longer "
            "walltime, or begin another run with a smaller --block",
            traceback="",
            worker=this_worker(),
        )
        return Tried([(indices[0], refused)], 0.0)
    if not tried.outcomes:
        time.sleep(_TO_LEAVE)
    return replace(tried, leaving=get_worker().address)


def _alone_on_worker(work: Work, index: int) -> Tried:
    return Tried([(index, attempt(work, index, alone=True))], 0.0)


def _scheduler_lost() -> RunError:
    return RunError(
        "the Dask scheduler went away",
        fix="start it again and give the same command: it does only what is missing",
    )
