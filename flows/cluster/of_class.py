"""Workers of any cluster class that Dask has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from urllib.parse import urlsplit

from distributed import Client

from flows.cluster.address import on_loopback
from flows.cluster.source import Started
from flows.config.cluster import OfClass
from unet_core.errors import InputError


@contextmanager
def start(config: OfClass) -> Iterator[Started]:
    """A cluster of a class, with the arguments of its table.

    Raises
    ------
    InputError
        The class cannot be imported or started, or would listen beyond loopback without TLS.
    """
    module, _, name = config.cluster_class.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise InputError(
            "this cluster class cannot be imported",
            where="cluster_class",
            expected="an import path such as dask_jobqueue.PBSCluster",
            found=f"{config.cluster_class!r}: {error}",
            fix=f"pip install {module.split('.')[0].replace('_', '-')}" if module else None,
        ) from None
    try:
        cluster = kind(**config.arguments)
    except Exception as error:  # whatever the class raises, it is its arguments or its surroundings
        raise InputError(
            "this cluster cannot be started",
            where=config.cluster_class,
            found=_told(error),
            fix="check `arguments` in the cluster file",
        ) from error
    with cluster:
        address = cluster.scheduler_address
        if not (config.insecure or urlsplit(address).scheme in ("tls", "wss") or on_loopback(address)):
            raise InputError(
                "this cluster would listen without TLS: whoever reaches it may run code there",
                where=config.cluster_class,
                expected="a scheduler at tls://",
                found=address,
                fix="`arguments` that turn TLS on, such as security = true of dask-jobqueue's classes; or "
                "insecure = true where nobody else reaches that network",
            )
        with Client(cluster) as client, Started(client, config.cluster_class, cluster).keeping() as source:
            yield source


def _told(error: BaseException) -> str:
    """An error and what it came of: Dask's own says only that something did not start."""
    told = []
    cause: BaseException | None = error
    while cause is not None:
        told.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join(told)
