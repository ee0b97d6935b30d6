"""Whether Dask still wants the task that runs here: nothing interrupts one that was cancelled."""

from __future__ import annotations

from collections.abc import Callable

from distributed import get_worker


def wanted() -> Callable[[], bool]:
    """To be called in a task: asks, from any thread, whether the task was cancelled or its client is gone."""
    worker = get_worker()
    key = worker.get_current_task()

    def ask() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state in ("executing", "long-running")

    return ask
