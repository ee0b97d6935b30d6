"""A training on Dask workers: one rank on each, all begun anew from the last checkpoint when one dies.

submit rank 0 -> it says where to meet -> submit the others, one worker each
the first that ends badly -> cancel all -> wait until they are gone -> look for workers -> again
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from distributed import Client, Future

from flows import deadline, gpus, rank_host
from flows.cluster import cluster_patience
from unet_core.errors import RunError, UnetFlowsError

_LOOK = 0.5  # seconds between two looks at the ranks
_LOOK_AT_WORKERS = 3.0
_LAST_WORDS = 3.0
_TO_LEAVE = 10.0
_MEETING = 300.0  # seconds until the first rank has loaded its libraries and said where to meet
_ARRIVAL = 600.0  # seconds that a training waits for the workers that its cluster was asked for
_WORKERS_PATIENCE = 60.0  # seconds that it waits, after a death, for as many as it had


class RankDiedError(RunError):
    """A rank or its worker is gone; the training can go on from its last checkpoint."""


@dataclass
class RankedTraining:
    """One training on the workers of a client.

    Parameters
    ----------
    job
        What every rank is told (`flows.rank`), without rank and world.
    most
        Ranks at most: the patches of a step.
    asked
        Workers that the cluster was asked for; some may still be on their way.
    on_gpus
        Whether each rank needs a GPU of its own.
    on_note
        Is told what people should know beside restarts, a sentence each.
    """

    client: Client
    job: dict[str, Any]
    most: int
    max_restarts: int
    on_progress: Callable[[dict[str, Any]], None]
    on_restart: Callable[[str], None]
    asked: int = 1
    on_gpus: bool = False
    on_note: Callable[[str], None] = lambda text: None
    restarts: int = field(default=0, init=False)

    def run(self) -> dict[str, Any]:
        """Train to the end; the first rank's last word, {"stopped": ...}.

        Raises
        ------
        RunError
            An error that would come again, as the rank told it; or ranks died more than `max_restarts` times.
        InputError
            A machine has more ranks than GPUs.
        """
        workers = self._arrived()
        world, reached = len(workers), -1
        while True:
            try:
                done = self._attempt(workers)
                if not done["in_time"]:
                    return {"stopped": done["stopped"]}
                if done["step"] <= reached:
                    raise RunError(
                        "a worker's walltime is too short to train on from one checkpoint to the next",
                        found=f"step {reached}, twice",
                        fix="ask for a longer walltime",
                    )
                reached = done["step"]
                self.on_note(f"step {reached}: the workers' walltime is nearly over; going on with others")
                self._leave(workers)
            except RankDiedError as error:
                if self.restarts >= self.max_restarts:
                    error.fix = "look at the workers' logs; the same command goes on from the last checkpoint"
                    raise
                self.restarts += 1
                self.on_restart(f"{error.problem}; restart {self.restarts} of {self.max_restarts}")
            workers = self._available(world, _WORKERS_PATIENCE)

    def _attempt(self, workers: list[str]) -> dict[str, Any]:
        devices = self._devices(workers)
        end = self._deadline(workers)
        self.job = {**self.job, "deadline": None if end is None else end - deadline.MARGIN}
        with self._events() as events:
            ranks = _Ranks(self, workers, devices, events)
            try:
                return ranks.run()
            except RankDiedError:
                ranks.raise_cause()
                raise
            finally:
                ranks.end()

    def _leave(self, workers: list[str]) -> None:
        """Those whose time is nearly up go; whoever started them is asked for others."""
        until = time.monotonic() + _TO_LEAVE
        # Dask keeps a worker that alone holds an answer, until it has heard that nobody wants that.
        while set(workers) & set(self.workers()) and time.monotonic() < until:
            with suppress(OSError, KeyError, ValueError):
                self.client.retire_workers(workers)
            time.sleep(_LOOK)

    def _deadline(self, workers: list[str]) -> float | None:
        """When the ranks have to be through, in seconds since the epoch; None where they have time."""
        try:
            ends = self.client.run(deadline.deadline, workers=workers).values()
        except (OSError, KeyError, ValueError) as error:  # it went away since we looked
            raise RankDiedError("a worker could not say how long it will be there", found=error) from None
        return min((end for end in ends if end is not None), default=None)

    def workers(self) -> list[str]:
        """Addresses of those that are there, in a fixed order."""
        return sorted(self.client.scheduler_info(n_workers=-1)["workers"])

    def _arrived(self) -> list[str]:
        """The workers to begin with: a job queue may bring them one by one."""
        wanted, there = min(self.most, self.asked), len(self.workers())
        if there < wanted:
            patience = f"{_ARRIVAL / 60:.0f} minutes"
            self.on_note(f"{there} of {wanted} workers are there; waiting up to {patience} for the others")
        workers = self._available(max(wanted, min(self.most, there)), _ARRIVAL)
        if len(workers) < wanted:
            self.on_note(f"training on the {len(workers)} of {wanted} workers that came in time")
        if (idle := max(self.asked, len(self.workers())) - self.most) > 0:
            self.on_note(
                f"a step has {self.most} patches, at least one for each rank: {idle} workers stay idle; "
                "choose a larger batch, or fewer workers"
            )
        return workers

    def _devices(self, workers: list[str]) -> list[str | None]:
        """The GPU of each worker's rank; None where it needs none."""
        if not self.on_gpus:
            return [None for _ in workers]
        try:
            found = self.client.run(gpus.seen, workers=workers)
        except (OSError, KeyError, ValueError) as error:  # it went away since we looked
            raise RankDiedError("a worker could not say which GPUs it has", found=error) from None
        return [*gpus.assign([gpus.Seat(urlsplit(w).hostname or w, *found[w]) for w in workers])]

    def _available(self, world: int, patience: float) -> list[str]:
        """As many workers as wanted, where they come in time; else those that are there."""
        began = time.monotonic()
        while len(there := self.workers()) < world:
            # With fewer it goes on after a while; without any it cannot.
            if time.monotonic() - began > (patience if there else max(patience, cluster_patience())):
                break
            time.sleep(_LOOK)
        if not there:
            raise RunError(
                "no Dask worker is left",
                fix="start workers; the same command goes on from the last checkpoint",
            )
        return there[:world]

    @contextmanager
    def _events(self) -> Iterator[_Events]:
        topic = f"unet-flows-train-{uuid.uuid4().hex}"
        received: queue.Queue[dict[str, Any]] = queue.Queue()
        self.client.subscribe_topic(topic, lambda event: received.put(event[1]))
        try:
            yield _Events(topic, received)
        finally:
            self.client.unsubscribe_topic(topic)


@dataclass(frozen=True)
class _Events:
    topic: str
    received: queue.Queue[dict[str, Any]]

    def wait(self, seconds: float) -> Iterator[dict[str, Any]]:
        """All that come within that time; at once what is there."""
        try:
            yield self.received.get(timeout=seconds)
            while True:
                yield self.received.get_nowait()
        except queue.Empty:
            return


class _Ranks:
    """The ranks of one attempt."""

    def __init__(
        self, training: RankedTraining, workers: list[str], devices: list[str | None], events: _Events
    ) -> None:
        self._training, self._workers, self._events = training, workers, events
        self._devices = devices
        self._futures: list[Future] = []
        self._ended: set[int] = set()
        self._looked = time.monotonic()

    def run(self) -> dict[str, Any]:
        self._submit(0)
        rendezvous = None
        if len(self._workers) > 1:
            rendezvous = self._rendezvous()
        for rank in range(1, len(self._workers)):
            self._submit(rank, rendezvous=rendezvous)
        while not self._futures[0].done():
            self._look()
        return _answer(self._futures[0])

    def raise_cause(self) -> None:
        """One rank's error makes the others lose their partner: the error is what to tell."""
        until = time.monotonic() + _LAST_WORDS
        while not all(future.done() for future in self._futures) and time.monotonic() < until:
            time.sleep(0.1)
        for future in self._futures:
            if future.status == "finished" and "error" in future.result():
                _answer(future)

    def end(self) -> None:
        """Cancel what still runs, and wait until every rank is gone: two must never write."""
        running = [rank for rank, future in enumerate(self._futures) if not future.done()]
        self._training.client.cancel([self._futures[rank] for rank in running], force=True)
        until = time.monotonic() + rank_host.PATIENCE + 2
        while set(running) - self._ended - self._lost(running) and time.monotonic() < until:
            self._receive(0.2)

    def _submit(self, rank: int, **more: Any) -> None:
        place = {"rank": rank, "world": len(self._workers), "gpu": self._devices[rank]}
        job = {**self._training.job, **place, **more}
        self._futures.append(
            self._training.client.submit(
                rank_host.host,
                job,
                self._events.topic,
                key=f"rank-{rank}-{uuid.uuid4().hex}",
                workers=[self._workers[rank]],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
        )

    def _rendezvous(self) -> dict[str, Any]:
        until = time.monotonic() + _MEETING
        while time.monotonic() < until:
            if (place := self._look()) is not None:
                return place
            if self._futures[0].done():
                _answer(self._futures[0])
        raise RankDiedError("the first rank did not get ready", found=f"nothing within {_MEETING:.0f} s")

    def _look(self) -> dict[str, Any] | None:
        """Wait a moment for events; RankDiedError where a rank ended badly or its worker is gone."""
        place = self._receive(_LOOK)
        for future in self._futures:
            if future.done():
                _answer(future)
        if time.monotonic() - self._looked > _LOOK_AT_WORKERS:
            self._looked = time.monotonic()
            waiting = (rank for rank, future in enumerate(self._futures) if not future.done())
            if lost := self._lost(waiting):
                # Dask keeps a task that is pinned to a lost worker waiting for ever.
                raise RankDiedError(f"the worker of rank {min(lost)} is gone")
        return place

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        place = None
        for event in self._events.wait(seconds):
            if "progress" in event:
                self._training.on_progress(event["progress"])
            elif "rendezvous" in event:
                place = event["rendezvous"]
            elif "ended" in event:
                self._ended.add(event["rank"])
        return place

    def _lost(self, ranks: Iterable[int]) -> set[int]:
        """Those of these ranks whose worker is gone, and they with it."""
        there = set(self._training.workers())
        return {rank for rank in ranks if self._workers[rank] not in there}


def _answer(future: Future) -> dict[str, Any]:
    """What a rank did that is through.

    Raises
    ------
    RunError
        What it told; RankDiedError where it could not tell.
    """
    if future.status != "finished":
        raise RankDiedError(f"a worker with a rank was lost ({future.status})")
    told: dict[str, Any] = future.result()
    if "done" in told:
        done: dict[str, Any] = told["done"]
        return done
    if "error" in told:
        raise _error(told["error"])
    code = told["code"]
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise RankDiedError(f"rank {told['rank']} {how}", found=told["log"].strip() or None)


def _error(facts: dict[str, Any]) -> UnetFlowsError:
    return RunError(
        facts["problem"],
        where=facts["where"],
        expected=facts["expected"],
        found=facts["found"],
        fix=facts["to_do"],
    )
