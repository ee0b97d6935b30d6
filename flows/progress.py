"""How far a run is: a bar with an ETA in the terminal, a progress artifact in Prefect's UI."""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
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
_EVERY_RETRY = 30.0  # seconds until a Prefect server that did not answer is asked again
_LAST_WORDS = 5.0  # seconds that the end of a stage waits for it
_EVERY_LINE = 30.0  # seconds between two lines where there is no terminal to draw in


class StageProgress:
    """Progress of one stage. `update` may be called as often as one likes."""

    def __init__(self, stage: str, total: int, *, prefect: bool) -> None:
        self._stage, self._total = stage, max(total, 1)
        self._began = self._last = self._last_line = time.monotonic()
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
        now = time.monotonic()
        if self._artifact is not None and now - self._last >= _EVERY:
            self._last = now
            self._artifact.show(finished, self._text(finished, note))
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
    """A progress artifact, kept up to date by a thread of its own.

    A Prefect server that hangs or dies costs pictures, not blocks: only the latest state waits to be shown.
    """

    def __init__(self, stage: str, total: int) -> None:
        self._stage, self._total = stage, max(total, 1)
        self._latest: tuple[int, str] | None = (0, f"0 of {total}")
        self._changed = threading.Condition()
        self._stopping = False
        # The thread speaks for the task that it was started in.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="progress", daemon=True)
        self._thread.start()

    def show(self, finished: int, text: str) -> None:
        with self._changed:
            self._latest = finished, text
            self._changed.notify()

    def stop(self) -> None:
        """Wait, but not for long, until the latest state is shown."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=_LAST_WORDS)

    def _run(self) -> None:
        artifact = None
        retry_at = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._latest is not None or self._stopping)
                latest, self._latest = self._latest, None
            if latest is None:
                return
            if time.monotonic() < retry_at:
                continue
            try:
                artifact = self._publish(artifact, *latest)
            except httpx.HTTPError:
                retry_at = time.monotonic() + _EVERY_RETRY

    def _publish(self, artifact: Any, finished: int, text: str) -> Any:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        share, description = 100.0 * finished / self._total, f"{self._stage}: {text}"
        if artifact is None:
            key = f"progress-{self._stage}"
            return create_progress_artifact(progress=share, key=key, description=description)
        update_progress_artifact(artifact_id=artifact, progress=share, description=description)
        return artifact


@contextmanager
def stage_progress(stage: str, total: int, *, prefect: bool) -> Iterator[StageProgress]:
    """A `StageProgress` that is closed whatever happens."""
    progress = StageProgress(stage, total, prefect=prefect)
    try:
        yield progress
    finally:
        progress.stop()
