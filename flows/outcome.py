"""How a run ends: recorded on disk, described for people and machines; partial is never called success."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from flows.blocks import StageResult
from flows.supervise import InterruptionError
from unet_core.errors import InputError, RunError, StoreError
from unet_core.ledger import (
    Holder,
    Lease,
    Ledger,
    Quarantine,
    Stage,
    Status,
    hold,
    read_record,
    read_status,
    require_epoch,
    set_status,
)
from unet_core.volumes import Store

_SHOWN = 10  # failed blocks named in an error


class IncompleteStageError(RunError):
    """A stage that did not get all its blocks done; `result` says which."""

    def __init__(self, result: StageResult) -> None:
        super().__init__(f"{result.stage} is not complete", found=result.stopped)
        self.result = result


class IncompleteRunError(RunError):
    """A run that did all it could; `document` describes it as a complete one's does."""

    def __init__(self, document: dict[str, Any], problem: str, **facts: Any) -> None:
        super().__init__(problem, **facts)
        self.document = document


@dataclass
class Run:
    """A run being done by the owner of its output: the stages so far, and since when.

    `below_zero`: of labels that are ingested, voxels copied so far that are below 0. `need` is told how many
    blocks of a stage are left: a cluster may adapt to it.
    """

    command: str
    output: Store
    lease: Lease
    began: float = field(default_factory=time.monotonic)
    stages: list[StageResult] = field(default_factory=list)
    below_zero: int = 0
    need: Callable[[int], None] = lambda blocks: None

    @property
    def notes(self) -> list[str]:
        """What people should know about what was done, beside the counts."""
        if not self.below_zero:
            return []
        return [
            f"{self.below_zero:,} of the voxels copied are below 0: train and evaluate take such labels only"
            " where that number is named as the one to ignore, such as --ignore=-1"
        ]

    @property
    def counts(self) -> dict[str, Any]:
        return {stage.stage: stage.to_dict() for stage in self.stages}

    def take_over(self, stages: Sequence[Stage]) -> None:
        """From here on the output is not complete, and an earlier owner's late entries do not count."""
        self.record("partial")
        if self.lease.epoch > 1:
            for stage in stages:
                Ledger(self.output, stage.name, stage.count, self.lease.epoch).seal()

    def do(self, stage: Callable[[], StageResult]) -> bool:
        """Do one stage; whether it is complete, so that the next can follow."""
        try:
            self.stages.append(stage())
        except IncompleteStageError as error:
            self.stages.append(error.result)
        return self.stages[-1].complete

    def finish(self, *, total: int) -> dict[str, Any]:
        """The document of a complete run of `total` stages.

        Raises
        ------
        IncompleteRunError
            Some blocks failed, or the run had to stop: what and why.
        """
        if len(self.stages) == total and all(stage.complete for stage in self.stages):
            self.record("complete")
            return self._document("complete")
        last = self.stages[-1]
        if last.stopped is not None:
            # "partial" is what the disk says since the run began; a store that is full can keep it.
            with suppress(StoreError):
                self.record("partial")
            raise IncompleteRunError(
                self._document("partial"),
                f"the run stopped in {last.stage} after {last.done + last.skipped} of {last.total} blocks",
                where=self.output.url,
                found=last.stopped,
                fix="mend the cause and give the same command again: it does only what is missing",
            )
        if last.failed:
            self.record("failed")
            raise IncompleteRunError(
                self._document("failed"),
                f"{last.quarantined} of {last.total} blocks of {last.stage} failed",
                where=self.output.url,
                found="\n".join(f"block {f.index}: {f.error}" for f in last.failed[:_SHOWN])
                + (f"\nand {last.quarantined - _SHOWN} more" if last.quarantined > _SHOWN else ""),
                fix="mend the cause, then the same command again, or with --retry-failed for just those; "
                "unet-flows status OUTPUT lists them with their tracebacks",
            )
        self.record("partial")
        raise IncompleteRunError(
            self._document("partial"), "the run ended before all its blocks were done", where=self.output.url
        )

    def record(self, status: Status) -> None:
        require_epoch(self.output, self.lease.epoch)
        set_status(self.output, status, stages=self.counts)

    def _document(self, status: str) -> dict[str, Any]:
        document = _document(self.command, status, self.output, self.counts, self.began)
        return {**document, "notes": self.notes} if self.command == "ingest" else document


@contextmanager
def owned(command: str, output: Store) -> Iterator[Run]:
    """A run that owns its output. Its interruption needs no word: "partial" is on disk from the start.

    Raises
    ------
    InputError
        Another run is at work on this output.
    """
    with hold(output, on_wait=tell_of_wait) as lease:
        yield Run(command, output, lease)


def told(
    flow: Callable[..., dict[str, Any]],
    command: str,
    parameters: dict[str, Any],
    *,
    recorded: Callable[[Store], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Call a flow that writes to `to`; where Prefect's server died meanwhile, the disk says how it ended.

    `recorded` makes the document of a complete run from the disk, where that has more than stages.

    Raises
    ------
    RunError
        The server is gone, and the run is not complete.
    InterruptionError
        Ctrl-C or SIGTERM; what the same command would do then.
    """
    began = time.monotonic()
    try:
        return flow(**parameters)
    except KeyboardInterrupt:
        begun = read_record(Store(parameters["to"])) is not None
        raise InterruptionError(
            "interrupted; the same command goes on where it stopped"
            if begun
            else "interrupted before anything was begun"
        ) from None
    except httpx.HTTPError as error:
        # Prefect raises this in place of the flow's own result or error.
        output = Store(parameters["to"])
        there = read_status(output) or {"status": "not begun"}
        print("warning: Prefect's server went away; its record of this run is out of date", file=sys.stderr)
        if there["status"] != "complete":
            raise RunError(
                "the run is not complete",
                where=output.url,
                found=f"status {there['status']}; Prefect's server does not answer ({type(error).__name__})",
                fix="unet-flows status OUTPUT says why; the same command does only what is missing",
            ) from None
        if recorded is not None:
            return {**recorded(output), "seconds": round(time.monotonic() - began, 3)}
        return _document(command, "complete", output, there["stages"], began)


def _document(
    command: str, status: str, output: Store, stages: dict[str, Any], began: float
) -> dict[str, Any]:
    return {
        "command": command,
        "status": status,
        "output": output.url,
        "stages": stages,
        "seconds": round(time.monotonic() - began, 3),
    }


def require_failures(output: Store, stages: Sequence[Stage]) -> None:
    """Refuse to retry the failed blocks of an output that has none.

    Raises
    ------
    InputError
        No block is in quarantine.
    """
    done = {stage.name: Ledger(output, stage.name, stage.count).read().done for stage in stages}
    if not any(Quarantine(output, name).standing(flags) for name, flags in done.items()):
        raise InputError(
            "no block of this output is in quarantine",
            where=output.url,
            expected="failed blocks, for --retry-failed",
            found="none",
            fix="give the command without --retry-failed: it does whatever is missing",
        )


def tell_of_wait(holder: Holder, seconds: float) -> None:
    """Why nothing happens for a while."""
    print(
        f"another run held this output ({holder}); watching for up to {seconds:.0f} s whether it is alive",
        file=sys.stderr,
        flush=True,
    )
