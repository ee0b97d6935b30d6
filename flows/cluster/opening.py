"""Opening what a `[cluster]` table describes; another for the stages after the network, where it says so."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module

import dask
from dask.utils import parse_timedelta
from distributed import Client

from flows import gpus
from flows.cluster.source import Source
from flows.cluster.versions import require_same
from flows.config.cluster import ClusterConfig, Local
from unet_core import machine
from unet_core.errors import RunError

_LOOK = 0.5  # seconds between two looks for the first worker
_SAY = 60.0  # seconds between two lines on what keeps it
_CPU_WORKER = 4 * 2**30  # bytes that a worker of the stages after the network has for itself, about

_PATIENCE = "distributed.scheduler.no-workers-timeout"
_SETTINGS = {
    # A block is given up at the second death of its workers; `blocks` then tries it alone.
    "distributed.scheduler.allowed-failures": 1,
    # One block at a time on a worker: those that wait there would share the blame when it dies.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.admin.large-graph-warning-threshold": "10MB",
}
_MODULES = {  # loaded when they are needed: each is a library of its own
    "local": "flows.cluster.local:start",
    "address": "flows.cluster.address:reach",
    "slurm": "flows.cluster.slurm:start",
    "kubernetes": "flows.cluster.kubernetes:start",
    "class": "flows.cluster.of_class:start",
}


@contextmanager
def open_client(config: ClusterConfig) -> Iterator[Client]:
    """A connected client whose workers are there; everything it started is gone afterwards.

    Raises
    ------
    InputError
        A cluster that cannot be had as the table says, or whose workers run another version.
    RunError
        No scheduler answers, or no worker came in time.
    """
    with open_workers(config) as workers:
        yield workers.client


@contextmanager
def open_workers(config: ClusterConfig, *, cpu_stages: bool = False) -> Iterator[Workers]:
    """`open_client` for runs of several stages; `cpu_stages`: begin with those of `[cluster.cpu]`."""
    if cpu_stages:
        config = _cpu_cluster(config) or config
    with ExitStack() as stack:
        workers = Workers(config, stack)
        try:
            yield workers
        except BaseException:
            workers.stop_now()
            raise


class Workers:
    """The Dask workers of one run: those of the network first, then those of the stages after it."""

    def __init__(self, config: ClusterConfig, stack: ExitStack) -> None:
        self._config = config
        self._stack = stack
        self._source = stack.enter_context(_opened(config))

    @property
    def client(self) -> Client:
        """Connected to those that are open now; `Client.current()` is the same."""
        return self._source.client

    def need(self, blocks: int) -> None:
        """So many blocks are left: where the cluster adapts, so many workers are enough."""
        self._source.need(_wanted(self._config, blocks))

    def for_cpu_stages(self) -> None:
        """Give the workers of the network back, and open those of `[cluster.cpu]`, where there are such.

        Raises
        ------
        InputError, RunError
            See `open_client`.
        """
        config = _cpu_cluster(self._config)
        if config is None:
            return
        self._stack.close()  # before the others: a GPU that waits is a GPU that nobody has
        self._config = config
        self._source = self._stack.enter_context(_opened(config))

    def stop_now(self) -> None:
        """End what can be ended without waiting for the blocks under way."""
        self._source.stop_now()


def cluster_patience() -> float:
    """Seconds that a run waits where it has no worker: as the open cluster's table says."""
    return float(parse_timedelta(dask.config.get(_PATIENCE) or "10m"))


@contextmanager
def _opened(config: ClusterConfig) -> Iterator[Source]:
    # A job that ended is asked for anew, and soon; a process here comes back by its nanny, which must stay.
    lost = "1h" if isinstance(config, Local) else "5s"
    patience = f"{config.patience * 60:.0f}s"
    settings = {**_SETTINGS, _PATIENCE: patience, "distributed.deploy.lost-worker-timeout": lost}
    module, _, name = _MODULES[config.kind].partition(":")
    opener: Callable[[ClusterConfig], AbstractContextManager[Source]] = getattr(import_module(module), name)
    with dask.config.set(settings), opener(config) as source:
        source.need(_wanted(config, 1))
        _wait_for_worker(source, config)
        if not isinstance(config, Local):
            require_same(source.client, source.where)
        yield source


def _wanted(config: ClusterConfig, blocks: int) -> int:
    minimum = getattr(config, "minimum", None)
    return config.workers if minimum is None else max(1, minimum, min(blocks, config.workers))


def _wait_for_worker(source: Source, config: ClusterConfig) -> None:
    """Dask would wait for ever, and say nothing."""
    began, said = time.monotonic(), -_SAY
    while not source.client.scheduler_info(n_workers=-1)["workers"]:
        if (why := source.hopeless()) is not None:
            raise RunError("no Dask worker will come", where=source.where, found=why, fix=_fix(config))
        waited = time.monotonic() - began
        if waited > 60 * config.patience:
            raise RunError(
                f"no Dask worker came within {config.patience:g} minutes",
                where=source.where,
                found=source.says(),
                fix=_fix(config),
            )
        if waited - said >= _SAY:
            said = waited
            says = source.says()
            text = f"waiting for a Dask worker at {source.where}, up to {config.patience:g} minutes"
            print(text + (f": {says}" if says else ""), file=sys.stderr, flush=True)
        time.sleep(_LOOK)


def _fix(config: ClusterConfig) -> str:
    if config.kind == "address":
        return "start workers (unet-flows worker ADDRESS), then the same command again"
    return "mend the cause, or wait longer (`patience` in the cluster's table); then the same command again"


def _cpu_cluster(config: ClusterConfig) -> ClusterConfig | None:
    """For the stages that need no GPU; None where the same workers do them."""
    if config.cpu is not None:
        cpu: ClusterConfig = config.cpu
        return cpu
    if not isinstance(config, Local) or not gpus.seen()[0]:
        return None
    # One worker per GPU would leave most of the machine's cores idle.
    room = machine.free_memory() // _CPU_WORKER
    workers = max(1, min(machine.cores() // 2, room))
    return Local(workers=workers, environment={**config.environment, gpus.VARIABLE: ""})
