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

from flows.publishing import Publisher

_EVERY_LINE = 30.0  # seconds between two lines where there is no terminal to draw in


class StageProgress:
    """Progress of one stage. `update` may be called as often as one likes."""

    def __init__(self, stage: str, total: int, *, prefect: bool) -> None:
        self._stage, self._total = stage, max(total, 1)
        self._began = self._last_line = time.monotonic()
        self._first: int | None = None
        self._artifact = _Artifact(stage, total) if prefect else None
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

    def update(self, finished: int, note: str = "") -> None:
        """`finished` units are done, those of earlier runs included."""
        if self._first is None:
            self._first = finished
        if self._bar is not None:
            self._bar.update(self._task, completed=finished, note=note)
        if self._artifact is not None:
            self._artifact.show(finished, self._text(finished, note))
        now = time.monotonic()
        if self._bar is None and now - self._last_line >= _EVERY_LINE:
            self._last_line = now
            print(f"{self._stage}: {self._text(finished, note)}", file=sys.stderr, flush=True)

    def close(self, finished: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=finished, note=note)
        if self._artifact is not None:
            self._artifact.show(finished, self._text(finished, note))
        self.stop()

    def stop(self) -> None:
        """Give the terminal back; harmless when done twice."""
        if self._bar is not None:
            self._bar.stop()
        if self._artifact is not None:
            self._artifact.stop()

    def _text(self, finished: int, note: str) -> str:
        done = finished - (self._first or 0)
        elapsed = time.monotonic() - self._began
        left = elapsed / done * (self._total - finished) if done > 0 else None
        eta = "" if left is None else f", about {left:.0f} s left"
        return f"{finished} of {self._total}{eta}{f', {note}' if note else ''}"


class _Artifact:
    """A progress artifact of Prefect's."""

    def __init__(self, stage: str, total: int) -> None:
        self._stage, self._total = stage, max(total, 1)
        self._made: Any = None
        self._publisher = Publisher(self._publish)
        self.show(0, f"0 of {total}")

    def show(self, finished: int, text: str) -> None:
        self._publisher.show("progress", (finished, text))

    def stop(self) -> None:
        self._publisher.stop()

    def _publish(self, _: str, content: tuple[int, str]) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        finished, text = content
        share, description = 100.0 * finished / self._total, f"{self._stage}: {text}"
        if self._made is None:
            key = f"progress-{self._stage}"
            self._made = create_progress_artifact(progress=share, key=key, description=description)
        else:
            update_progress_artifact(artifact_id=self._made, progress=share, description=description)


@contextmanager
def stage_progress(stage: str, total: int, *, prefect: bool) -> Iterator[StageProgress]:
    """A `StageProgress` that is closed whatever happens."""
    progress = StageProgress(stage, total, prefect=prefect)
    try:
        yield progress
    finally:
        progress.stop()
