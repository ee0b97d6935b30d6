"""One stage: its missing blocks to an engine; retries, quarantine and the ledger's seal; counts come back.

    ledger -> missing blocks -> batches -> engine -> done      counted (the worker has committed it)
                                   ^                 untried   in a later batch
                                   |                 failed    again, at most 3 times in all, then quarantine
                                   +----- again -----+         or: the run stops (others could do no better)

Nothing here grows with the number of blocks but a bit for each that says whether it was done when the stage
began, and what is known of those that failed.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from distributed import Client

from flows.attempt import STREAM_HOLDS, Failed, Work
from flows.batching import Batches
from flows.engines import Answer, Engine, engine_for
from unet_core.errors import RunError, StoreError
from unet_core.ledger import Done, Failure, Flags, Lease, Ledger, Quarantine, require_epoch

ATTEMPTS = 3  # of one block, or deaths of workers that try it
# What a worker's death leaves open of a batch begins with the block that it died of. A stream holds several,
# and another may have been taken.
_SUSPECTS, _SUSPECTS_STREAMED = 1, STREAM_HOLDS + 1
SEAL_EVERY = 20_000  # blocks: a ledger stays one file and so many entries
# So many in quarantine, and more than were done: the cause is not in the blocks.
MOST_FAILURES = 100
FAILURES_LISTED = 100  # of however many; the others are on disk


@dataclass
class StageResult:
    """How one stage went. `skipped` blocks were done by an earlier run; `absent` input chunks were not there;
    of `empty` blocks, in earlier runs too, nothing was to be computed; `decoded` bytes of input were decoded.

    `voxels` lacks those of blocks whose worker committed them and died before it could say so.

    `in_quarantine` are blocks that failed, in earlier runs too; `failed` tells of the first of them at the
    end. `stopped` is why it ended before it had tried all.
    """

    stage: str
    total: int
    done: int = 0
    skipped: int = 0
    voxels: int = 0
    absent: int = 0
    empty: int = 0
    decoded: int = 0
    in_quarantine: set[int] = field(default_factory=set)
    seconds: float = 0.0
    failed: list[Failure] = field(default_factory=list)
    stopped: str | None = None

    @property
    def complete(self) -> bool:
        return self.stopped is None and self.done + self.skipped == self.total

    @property
    def quarantined(self) -> int:
        return len(self.in_quarantine)

    def to_dict(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "done": self.done,
            "skipped": self.skipped,
            "quarantined": self.quarantined,
            "failed": [{"block": f.index, "error": f.error} for f in self.failed],
            "stopped": self.stopped,
            "absent_chunks": self.absent,
            "empty_blocks": self.empty,
            "voxels": self.voxels,
            "bytes_decoded": self.decoded,
            "seconds": round(self.seconds, 3),
        }


class OnProgress(Protocol):
    def __call__(self, result: StageResult) -> None: ...


def run_stage(
    work: Work,
    ledger: Ledger,
    *,
    lease: Lease,
    client: Client | None = None,
    only_failed: bool = False,
    on_progress: OnProgress | None = None,
) -> StageResult:
    """Do the blocks of one stage that its ledger does not hold yet, those in quarantine last.

    The caller has fenced off earlier owners (`outcome.Run.take_over`): what they still write would count.

    Parameters
    ----------
    client
        Dask; without one the blocks run in this process, one after the other.
    only_failed
        Do those in quarantine alone, if there are any.

    Raises
    ------
    LostLeaseError
        Another run owns the output now.
    """
    require_epoch(ledger.store, lease.epoch)  # a late owner would drop records of the next one's failures
    entries = ledger.read()
    quarantine = Quarantine(ledger.store, ledger.stage)
    quarantine.release_done(entries.done)
    result = StageResult(
        ledger.stage,
        ledger.count,
        skipped=entries.done.sum(),
        empty=entries.empty,
        in_quarantine=set(quarantine.standing(entries.done)),
    )
    failed = sorted(result.in_quarantine)
    everything = not (only_failed and failed)
    count = ledger.count - result.skipped if everything else len(failed)
    streamed = work.stream is not None
    waiting = Batches(_order(entries.done, failed, everything=everything), count, streamed=streamed)
    engine = engine_for(client, work, ledger.stage)
    suspects = _SUSPECTS_STREAMED if streamed else _SUSPECTS
    run = _StageRun(ledger, quarantine, lease, result, engine, suspects)
    began, unsealed = time.monotonic(), 0
    for _ in run.over(waiting):
        result.seconds = time.monotonic() - began
        lease.report(_standing(result))
        if on_progress is not None:
            on_progress(result)
        unsealed += 1
        if unsealed >= SEAL_EVERY:
            unsealed = 0
            ledger.seal()
    lease.require()
    _settle(result, ledger, quarantine)
    return result


def _settle(result: StageResult, ledger: Ledger, quarantine: Quarantine) -> None:
    """What the disk says at the end of a stage; a store that is full or gone by now stops the run."""
    try:
        # A run that had to stop leaves the sealing to the next.
        if result.done and result.stopped is None:
            ledger.seal()
        entries = ledger.read()
        result.absent = entries.absent
        result.empty = entries.empty
        result.failed = list(quarantine.failures(limit=FAILURES_LISTED))
        if result.complete and not entries.done.all():
            result.stopped = "blocks that were done are not in the ledger"
    except StoreError as error:
        result.stopped = result.stopped or str(error)


def _standing(result: StageResult) -> dict[str, Any]:
    """How far a stage is, for those who look at the output from outside."""
    left = result.total - result.done - result.skipped
    return {
        "stage": result.stage,
        "done": result.done + result.skipped,
        "total": result.total,
        "voxels_per_second": result.voxels / max(result.seconds, 1e-9),
        "seconds_left": round(result.seconds / result.done * left, 1) if result.done else None,
    }


class _StageRun:
    """What is known of the blocks under way."""

    def __init__(
        self,
        ledger: Ledger,
        quarantine: Quarantine,
        lease: Lease,
        result: StageResult,
        engine: Engine,
        suspects: int,
    ) -> None:
        self._ledger, self._quarantine, self._lease = ledger, quarantine, lease
        self._result, self._engine, self._suspects = result, engine, suspects
        self._again: deque[tuple[int, bool]] = deque()
        self._attempts: Counter[int] = Counter()
        self._failed_now = 0

    def over(self, waiting: Batches) -> Iterator[None]:
        """Do the blocks; yields after each that came to an end, one way or the other."""
        engine = self._engine
        try:
            while self._result.stopped is None:
                self._lease.require()
                while engine.has_room and self._submit(waiting):
                    pass
                if not engine.busy:
                    return
                answer = engine.next()
                waiting.learn(len(answer.outcomes), answer.seconds)
                waiting.put_back(answer.untried)
                yield from self._take(answer)
                waiting.put_back(self._died(answer.died))
        except RunError as error:
            self._result.stopped = str(error)
        finally:
            engine.stop()

    def _submit(self, waiting: Batches) -> bool:
        """Blocks that were tried before travel alone."""
        if self._again:
            index, alone = self._again.popleft()
            if alone:
                self._engine.submit_alone(index)
            else:
                self._engine.submit([index], limit=waiting.limit)
            return True
        batch = waiting.take(self._engine.workers)
        if batch:
            self._engine.submit(batch, limit=waiting.limit)
        return bool(batch)

    def _take(self, answer: Answer) -> Iterator[None]:
        for index, outcome in answer.outcomes:
            if isinstance(outcome, Done):
                self._done(index, outcome)
                yield
            elif outcome.verdict == "block":
                self._failed(index, outcome)
                yield
            elif outcome.verdict == "run":
                self._result.stopped = self._result.stopped or outcome.error
            else:
                self._again.append((index, False))
                self._engine.dismiss(outcome.worker)

    def _done(self, index: int, done: Done) -> None:
        self._result.done += 1
        self._result.voxels += done.voxels
        self._result.empty += done.empty
        self._result.decoded += done.decoded
        self._attempts.pop(index, None)
        if index in self._result.in_quarantine:
            self._result.in_quarantine.discard(index)
            self._quarantine.release(index)

    def _died(self, indices: Sequence[int]) -> Sequence[int]:
        """Sort out the blocks of a batch whose workers died; those that were only waiting are given back."""
        if not indices:
            return ()
        committed = self._ledger.committed(indices)
        for index in sorted(committed):
            self._done(index, Done(0))
        left = [index for index in indices if index not in committed]
        for index in left[: self._suspects]:
            self._suspect(index)
        return left[self._suspects :]

    def _suspect(self, index: int) -> None:
        """Dask gives a block up after two deaths: the third attempt is alone, to tell it from bystanders."""
        self._attempts[index] += ATTEMPTS - 1 if index not in self._attempts else 1
        if self._attempts[index] > 2 * ATTEMPTS:
            # Not even a process of its own lived long enough to say what became of the block.
            self._set_aside(index, "its workers died again and again", "", "unknown", self._attempts[index])
        else:
            self._again.append((index, True))

    def _failed(self, index: int, failed: Failed) -> None:
        self._attempts[index] += 1
        if self._attempts[index] < ATTEMPTS and not failed.final:
            self._again.append((index, False))
        else:
            self._set_aside(index, failed.error, failed.traceback, failed.worker, self._attempts[index])

    def _set_aside(self, index: int, error: str, traceback: str, worker: str, attempts: int) -> None:
        self._quarantine.add(
            Failure(
                stage=self._result.stage,
                index=index,
                error=error,
                traceback=traceback,
                worker=worker,
                attempts=attempts,
            )
        )
        self._result.in_quarantine.add(index)
        del self._attempts[index]
        self._failed_now += 1
        if self._failed_now >= MOST_FAILURES and self._failed_now > self._result.done:
            self._result.stopped = f"{self._failed_now} blocks failed and {self._result.done} were done"


def _order(done: Flags, failed: list[int], *, everything: bool) -> Iterator[int]:
    """Missing blocks in ascending order, then those in quarantine."""
    if everything:
        last = frozenset(failed)
        yield from (index for index in done.missing() if index not in last)
    yield from failed
