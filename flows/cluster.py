"""Where Dask comes from: one way to a client for workers here, elsewhere, or of any class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import dask
from distributed import Client, LocalCluster

from flows.config import ClusterConfig
from unet_core.errors import InputError, RunError

# Blocks that no worker can take must fail the run, not wait for ever.
_SETTINGS = {
    "distributed.scheduler.no-workers-timeout": "10m",
    "distributed.scheduler.allowed-failures": 3,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.admin.large-graph-warning-threshold": "10MB",
}


@contextmanager
def open_client(config: ClusterConfig) -> Iterator[Client]:
    """A connected client whose workers are there; everything it started is gone afterwards.

    Raises
    ------
    InputError
        A cluster class that cannot be imported, or an address that is missing.
    RunError
        No scheduler at the address.
    """
    with dask.config.set(_SETTINGS):
        if config.kind == "address":
            if not config.address:
                raise InputError("kind = address needs an address", expected="address = tcp://host:8786")
            try:
                client = Client(config.address, timeout="30s")
            except (OSError, TimeoutError) as error:
                raise RunError(
                    "no Dask scheduler answers",
                    where=config.address,
                    found=error,
                    fix="start one, or check the address",
                ) from None
            with client:
                yield client
            return
        with _cluster(config) as cluster, Client(cluster) as client:
            try:
                client.wait_for_workers(1, timeout=600)
            except TimeoutError:
                raise RunError("no Dask worker came within ten minutes", where=config.kind) from None
            yield client


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


def thread_environment(threads: int) -> dict[str, str]:
    """What keeps a worker process to `threads` cores."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    # Threads that wait must not spin: on cores that others use too, they take the time of those that work.
    return {**{name: str(threads) for name in names}, "OMP_WAIT_POLICY": "PASSIVE"}
