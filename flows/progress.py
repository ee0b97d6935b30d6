"""How far a run is: a bar with an ETA in the terminal, a progress artifact in Prefect's UI."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_EVERY = 1.0  # seconds between two updates; an artifact update costs 13 ms
_EVERY_LINE = 30.0  # seconds between two lines where there is no terminal to draw in


class StageProgress:
    """Progress of one stage. `update` may be called as often as one likes."""

    def __init__(self, stage: str, total: int, *, prefect: bool) -> None:
        self._stage, self._total = stage, max(total, 1)
        self._began = self._last = self._last_line = time.monotonic()
        self._first: int | None = None
        self._artifact: Any = None
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(stage, total=total, note="")
            self._bar.start()
        if prefect:
            from prefect.artifacts import create_progress_artifact

            self._artifact = create_progress_artifact(
                progress=0.0, key=f"progress-{stage}", description=f"{stage}: 0 of {total}"
            )

    def update(self, finished: int, note: str = "") -> None:
        """`finished` units are done, those of earlier runs included."""
        if self._first is None:
            self._first = finished
        if self._bar is not None:
            self._bar.update(self._task, completed=finished, note=note)
        now = time.monotonic()
        if self._artifact is not None and now - self._last >= _EVERY:
            self._last = now
            self._publish(finished, note)
        if self._bar is None and now - self._last_line >= _EVERY_LINE:
            self._last_line = now
            print(f"{self._stage}: {self._text(finished, note)}", file=sys.stderr, flush=True)

    def close(self, finished: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=finished, note=note)
        self.stop()
        if self._artifact is not None:
            self._publish(finished, note)

    def stop(self) -> None:
        """Give the terminal back; harmless when done twice."""
        if self._bar is not None:
            self._bar.stop()

    def _publish(self, finished: int, note: str) -> None:
        from prefect.artifacts import update_progress_artifact

        update_progress_artifact(
            artifact_id=self._artifact,
            progress=100.0 * finished / self._total,
            description=f"{self._stage}: {self._text(finished, note)}",
        )

    def _text(self, finished: int, note: str) -> str:
        done = finished - (self._first or 0)
        elapsed = time.monotonic() - self._began
        left = elapsed / done * (self._total - finished) if done > 0 else None
        eta = "" if left is None else f", about {left:.0f} s left"
        return f"{finished} of {self._total}{eta}{f', {note}' if note else ''}"


@contextmanager
def stage_progress(stage: str, total: int, *, prefect: bool) -> Iterator[StageProgress]:
    """A `StageProgress` that is closed whatever happens."""
    progress = StageProgress(stage, total, prefect=prefect)
    try:
        yield progress
    finally:
        progress.stop()
