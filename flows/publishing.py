"""What people watch in Prefect's UI, sent by a thread of its own: a server that hangs or dies costs pictures,
never the run."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import httpx

_EVERY = 1.0  # seconds between two requests at the least: an artifact's update costs 13 ms
_EVERY_RETRY = 30.0  # seconds until a server that did not answer is asked again
_LAST_WORDS = 5.0  # seconds that the end of a stage or run waits for a server

T = TypeVar("T")


class Publisher(Generic[T]):
    """Calls `publish(key, content)` for what is shown; of each key only the latest content waits."""

    def __init__(self, publish: Callable[[str, T], None]) -> None:
        self._publish = publish
        self._waiting: dict[str, T] = {}
        self._changed = threading.Condition()
        self._stopping = False
        # The thread speaks for the task or flow run that it was started in.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="publisher", daemon=True)
        self._thread.start()

    def show(self, key: str, content: T) -> None:
        """Returns at once."""
        with self._changed:
            self._waiting[key] = content
            self._changed.notify()

    def stop(self) -> None:
        """Wait, but not for long, until the latest states are shown; harmless when done twice."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=_LAST_WORDS)

    def _run(self) -> None:
        retry_at = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._stopping)
                if not self._waiting:
                    return
                key = next(iter(self._waiting))
                content = self._waiting.pop(key)
            if time.monotonic() < retry_at:
                continue
            try:
                self._publish(key, content)
            except httpx.HTTPError:
                retry_at = time.monotonic() + _EVERY_RETRY
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, timeout=_EVERY)
