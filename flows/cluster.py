"""Where Dask comes from: one way to a client for workers here, elsewhere, or of any class."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, TypeVar

import dask
from distributed import CancelledError, Client, KilledWorker, LocalCluster, WorkerPlugin

from flows.config import ClusterConfig
from flows.supervise import end_with_parent
from unet_core.budget import REUSED
from unet_core.errors import InputError, RunError, UnetFlowsError

T = TypeVar("T")

# Blocks that no worker can take must fail the run, not wait for ever.
_SETTINGS = {
    "distributed.scheduler.no-workers-timeout": "10m",
    # A block is given up at the second death of its workers; `blocks` then tries it alone.
    "distributed.scheduler.allowed-failures": 1,
    # One block at a time on a worker: those that wait there would share the blame when it dies.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.admin.large-graph-warning-threshold": "10MB",
}


@contextmanager
def open_client(config: ClusterConfig) -> Iterator[Client]:
    """A connected client whose workers are there; everything it started is gone afterwards.

    Raises
    ------
    InputError
        A cluster class that cannot be imported or started.
    RunError
        No scheduler at the address.
    """
    with dask.config.set(_SETTINGS):
        if (address := config.address) is not None:
            # It logs tracebacks of what the run reports in a sentence.
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
            try:
                client = Client(address, timeout="30s")
            except (OSError, TimeoutError) as error:
                raise RunError(
                    "no Dask scheduler answers",
                    where=address,
                    found=error,
                    fix="start one, or check the address",
                ) from None
            with client:
                _wait_for_workers(client, address)
                yield client
            return
        with _cluster(config) as cluster, Client(cluster) as client:
            _wait_for_workers(client, config.kind)
            if config.kind == "local":
                client.register_plugin(_DieWithParent(os.getpid()))
            try:
                yield client
            except BaseException:
                if config.kind == "local":
                    _stop_now(cluster)
                raise


def _wait_for_workers(client: Client, where: str) -> None:
    """Dask would wait for ever, and say nothing."""
    if not client.scheduler_info(n_workers=-1)["workers"]:
        print(f"waiting for a Dask worker at {where}, up to ten minutes", file=sys.stderr, flush=True)
    try:
        client.wait_for_workers(1, timeout=600)
    except TimeoutError:
        raise RunError(
            "no Dask worker came within ten minutes", where=where, fix="start workers, then the command again"
        ) from None


def ask(client: Client, function: Callable[..., T], *arguments: Any) -> T:
    """Have one worker compute something before the blocks begin.

    Raises
    ------
    UnetFlowsError
        What the function raised, or that the workers cannot run it.
    """
    try:
        answer = client.submit(_answer, function, *arguments, pure=False).result()
    except (KilledWorker, CancelledError) as error:
        raise RunError(
            "the workers died before the first block",
            found=f"{type(error).__name__}: {function.__name__}",
            fix="look at their logs: often they have too little memory",
        ) from None
    except ImportError as error:
        raise RunError(
            "the workers cannot run unet-flows",
            found=error,
            fix="install the same version of unet-flows where they run",
        ) from None
    if isinstance(answer, UnetFlowsError):
        raise answer
    result: T = answer
    return result


def _answer(function: Callable[..., Any], *arguments: Any) -> Any:
    """An error as a value: raised, it would take along its causes, and not all of them can travel."""
    try:
        return function(*arguments)
    except UnetFlowsError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)


def _cluster(config: ClusterConfig) -> Any:
    threads = config.threads or max(1, (os.cpu_count() or 1) // config.workers)
    if config.kind == "local":
        return LocalCluster(
            n_workers=config.workers,
            threads_per_worker=1,  # one block at a time; the arithmetic inside uses `threads`
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=0,  # the plan has predicted the memory; a limit here would only kill workers
            silence_logs=50,
            env=thread_environment(threads),
        )
    module, _, name = (config.cluster_class or "").rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise InputError(
            "this cluster class cannot be imported",
            where="cluster_class",
            expected="an import path such as dask_jobqueue.SLURMCluster",
            found=f"{config.cluster_class!r}: {error}",
            fix=f"pip install {module.split('.')[0].replace('_', '-')}" if module else None,
        ) from None
    try:
        cluster = kind(**config.arguments)
        cluster.scale(config.workers)
    except Exception as error:  # whatever the class raises, it is its arguments or its surroundings
        raise InputError(
            "this cluster cannot be started",
            where=config.cluster_class,
            found=f"{type(error).__name__}: {error}",
            fix="check `arguments` in the cluster file",
        ) from error
    return cluster


class _DieWithParent(WorkerPlugin):  # type: ignore[misc]
    """A local worker inside C code does not notice by itself that the flow's process was killed."""

    name = "die-with-parent"

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def setup(self, worker: Any) -> None:
        end_with_parent(signal.SIGKILL, parent=self._parent)


def _stop_now(cluster: LocalCluster) -> None:
    """End the workers without waiting for the blocks they are in: the ledger knows what is done."""

    async def kill() -> None:
        nannies = cluster.workers.values()
        await asyncio.gather(*(n.kill(timeout=0.5, reason="stop") for n in nannies), return_exceptions=True)

    with suppress(Exception):  # closing the cluster, which follows, does the same at more leisure
        cluster.sync(kill)


def thread_environment(threads: int) -> dict[str, str]:
    """What keeps a worker process to `threads` cores, and to the memory that the plan counts."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {
        **{name: str(threads) for name in names},
        # Threads that wait must not spin: on cores that others use too, they take the time of those at work.
        "OMP_WAIT_POLICY": "PASSIVE",
        # What a slab's tensors took is kept for the next slab's, in one heap whatever the thread; larger ones
        # go back to the system at once. Else the C library decides by what came before.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": str(4 * REUSED),
        "MALLOC_MMAP_THRESHOLD_": str(REUSED),
    }
