"""Worker processes on this machine: one per GPU, each seeing its own alone, or as many as are asked for."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client, Nanny, Scheduler, SpecCluster, WorkerPlugin

from flows import gpus
from flows.cluster.source import Source
from flows.config.cluster import Local
from flows.environment import worker_environment
from flows.supervise import end_with_parent
from unet_core.errors import InputError
from unet_core.machine import cores

_LOOPBACK = "127.0.0.1"


@contextmanager
def start(config: Local) -> Iterator[Source]:
    """Workers that are gone with this process, however it ends.

    Raises
    ------
    InputError
        See `workers_of`.
    """
    count, visible = workers_of(config), _visible(config)
    threads = config.threads or max(1, cores() // count)
    environment = worker_environment(threads, config.environment)
    pins = [{gpus.VARIABLE: gpu} for gpu in visible[:count]] or [{}] * count
    nannies = {index: _nanny({**environment, **pin}) for index, pin in enumerate(pins)}
    scheduler = {"cls": Scheduler, "options": {"host": _LOOPBACK, "dashboard_address": f"{_LOOPBACK}:0"}}
    with (
        SpecCluster(workers=nannies, scheduler=scheduler, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(_DieWithParent(os.getpid()))
        yield _LocalSource(client, cluster)


def workers_of(config: Local) -> int:
    """How many there will be: as many as are asked for, else one per GPU, or one.

    Raises
    ------
    InputError
        More workers than GPUs.
    """
    visible = _visible(config)
    asked = config.workers if "workers" in config.model_fields_set else None
    if visible and asked is not None and asked > len(visible):
        raise InputError(
            "there are more workers than GPUs on this machine",
            where="workers",
            expected=f"at most {len(visible)}, one for each GPU",
            found=asked,
            fix=f'ask for fewer, or hide the GPUs: {gpus.VARIABLE}="" in front of the command',
        )
    return asked or len(visible) or 1


def _visible(config: Local) -> tuple[str, ...]:
    """The GPUs for its workers: none where their environment hides them."""
    return () if config.environment.get(gpus.VARIABLE) == "" else gpus.seen()[0]


class _LocalSource(Source):
    def __init__(self, client: Client, cluster: SpecCluster) -> None:
        super().__init__(client, "local")
        self._cluster = cluster

    def stop_now(self) -> None:
        async def kill() -> None:
            kills = (nanny.kill(timeout=0.5, reason="stop") for nanny in self._cluster.workers.values())
            await asyncio.gather(*kills, return_exceptions=True)

        with suppress(Exception):  # closing the cluster, which follows, does the same at more leisure
            self._cluster.sync(kill)


def _nanny(environment: dict[str, str]) -> dict[str, Any]:
    options = {
        "host": _LOOPBACK,
        "nthreads": 1,  # one block at a time; the arithmetic inside uses `threads`
        "memory_limit": 0,  # the plan has predicted the memory; a limit here would only kill workers
        "dashboard_address": f"{_LOOPBACK}:0",
        "silence_logs": logging.CRITICAL,
        "env": environment,
    }
    return {"cls": Nanny, "options": options}


class _DieWithParent(WorkerPlugin):  # type: ignore[misc]
    """A local worker inside C code does not notice by itself that the flow's process was killed."""

    name = "die-with-parent"

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def setup(self, worker: Any) -> None:
        end_with_parent(signal.SIGKILL, parent=self._parent)
