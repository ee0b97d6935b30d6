"""Blocks to workers: a bounded window of Dask futures, or this process; counts and failures come back.

Nothing here grows with the number of blocks but one bit each (which are done) and the failures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from distributed import Client, as_completed
from numpy.typing import NDArray

from unet_core.errors import UnetFlowsError
from unet_core.ledger import Ledger

RETRIES = 2


@dataclass(frozen=True)
class Failure:
    """A block that did not get done, and why."""

    index: int
    error: str


@dataclass
class StageResult:
    """How one stage went. `skipped` blocks were done by an earlier run."""

    stage: str
    total: int
    done: int = 0
    skipped: int = 0
    voxels: int = 0
    seconds: float = 0.0
    failed: list[Failure] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.done + self.skipped == self.total

    def to_dict(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "done": self.done,
            "skipped": self.skipped,
            "failed": [{"block": f.index, "error": f.error} for f in self.failed],
            "voxels": self.voxels,
            "seconds": round(self.seconds, 3),
        }


class OnProgress(Protocol):
    def __call__(self, result: StageResult) -> None: ...


def run_stage(
    function: Callable[..., int],
    arguments: tuple[Any, ...],
    ledger: Ledger,
    *,
    client: Client | None = None,
    order: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
    on_progress: OnProgress | None = None,
) -> StageResult:
    """Do the blocks of one stage that its ledger does not hold yet.

    Parameters
    ----------
    function, arguments
        Called as `function(*arguments, index)`, on a worker; returns voxels, records its block itself.
    client
        Dask; without one the blocks run in this process, one after the other.
    order
        Permutes the missing indices; for tests that want another order.
    """
    flags = ledger.done()
    missing = np.flatnonzero(~flags)
    if order is not None:
        missing = order(missing)
    result = StageResult(ledger.stage, ledger.count, skipped=int(flags.sum()))
    began = time.monotonic()
    outcomes = (
        _in_process(function, arguments, missing)
        if client is None
        else _on_workers(client, function, arguments, missing, ledger.stage)
    )
    for index, outcome in outcomes:
        if isinstance(outcome, int):
            result.done += 1
            result.voxels += outcome
        else:
            result.failed.append(Failure(index, _describe(outcome)))
        result.seconds = time.monotonic() - began
        if on_progress is not None:
            on_progress(result)
    return result


def _in_process(
    function: Callable[..., int], arguments: tuple[Any, ...], missing: NDArray[np.int64]
) -> Iterator[tuple[int, int | Exception]]:
    for index in map(int, missing):
        try:
            yield index, function(*arguments, index)
        except Exception as error:
            yield index, error


def _on_workers(
    client: Client,
    function: Callable[..., int],
    arguments: tuple[Any, ...],
    missing: NDArray[np.int64],
    stage: str,
) -> Iterator[tuple[int, int | BaseException]]:
    waiting = map(int, missing)
    futures: dict[Any, int] = {}
    run = f"{stage}-{time.time_ns():x}"
    finished = as_completed(raise_errors=False)

    def submit_next() -> bool:
        index = next(waiting, None)
        if index is None:
            return False
        future = client.submit(function, *arguments, index, key=f"{run}-{index}", retries=RETRIES, pure=False)
        futures[future] = index
        finished.add(future)
        return True

    def fill_window() -> None:
        # Twice the workers keep every worker busy while the client reacts; more would only queue. On a
        # cluster workers come and go, so the window follows them.
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        while len(futures) < 2 * max(1, workers) and submit_next():
            pass

    fill_window()
    for future in finished:
        index = futures.pop(future)
        outcome = future.result() if future.status == "finished" else _exception(future)
        # A finished future that is held would be computed again if its worker died.
        future.release()
        fill_window()
        yield index, outcome


def _exception(future: Any) -> BaseException:
    return future.exception() or RuntimeError(f"the block was {future.status} by the scheduler")


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, UnetFlowsError) else f"{type(error).__name__}: {error}"
