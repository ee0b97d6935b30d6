"""How a run ends: recorded on disk, described for people and machines; partial is never called success."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flows.blocks import StageResult
from unet_core.errors import RunError
from unet_core.ledger import read_status, set_status
from unet_core.volumes import Store


class FailedBlocksError(RunError):
    """A run that did all it could, some blocks excepted; `document` describes it as a complete one's does."""

    def __init__(self, document: dict[str, Any], problem: str, **facts: Any) -> None:
        super().__init__(problem, **facts)
        self.document = document


@dataclass
class Run:
    """A run being done: the stages so far, and since when."""

    command: str
    output: Store
    began: float = field(default_factory=time.monotonic)
    stages: list[StageResult] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, Any]:
        return {stage.stage: stage.to_dict() for stage in self.stages}

    def finish(self, *, total: int) -> dict[str, Any]:
        """The document of a complete run of `total` stages.

        Raises
        ------
        RunError
            Some blocks failed: how many, and the first one's error.
        """
        failed = [(stage.stage, failure) for stage in self.stages for failure in stage.failed]
        if failed:
            set_status(self.output, "failed", stages=self.counts)
            stage, first = failed[0]
            raise FailedBlocksError(
                self._document("failed"),
                f"{len(failed)} of {sum(s.total for s in self.stages)} blocks failed",
                where=self.output.url,
                found=f"{stage} block {first.index}: {first.error}",
                fix="mend the cause and give the same command again: it does only what is missing",
            )
        if len(self.stages) < total or not all(stage.complete for stage in self.stages):
            raise RunError("the run ended before all its blocks were done", where=self.output.url)
        set_status(self.output, "complete", stages=self.counts)
        return self._document("complete")

    def _document(self, status: str) -> dict[str, Any]:
        return {
            "command": self.command,
            "status": status,
            "output": self.output.url,
            "stages": self.counts,
            "seconds": round(time.monotonic() - self.began, 3),
        }


@contextmanager
def recorded(command: str, output: Store) -> Iterator[Run]:
    """A run whose interruption is recorded as "partial", if it had begun to write."""
    run = Run(command, output)
    try:
        yield run
    except BaseException:
        status = read_status(output)
        if status is not None and status["status"] == "running":
            set_status(output, "partial", stages=run.counts)
        raise
