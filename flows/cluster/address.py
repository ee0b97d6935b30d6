"""Workers of a scheduler that runs already."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from distributed import Client
from distributed.security import Security

from flows.cluster.certificates import security_of
from flows.cluster.source import Source
from flows.config.cluster import Address
from unet_core.errors import InputError, RunError

_PATIENCE = "30s"  # for a scheduler to answer


@contextmanager
def reach(config: Address) -> Iterator[Source]:
    """The scheduler at an address.

    Raises
    ------
    InputError
        See `security_at`.
    RunError
        No scheduler answers.
    """
    security = security_at(config)
    # It logs tracebacks of what the run reports in a sentence.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        client = Client(config.address, timeout=_PATIENCE, security=security)
    except (OSError, TimeoutError) as error:
        raise RunError(
            "no Dask scheduler answers",
            where=config.address,
            found=error,
            fix="start one, or check the address",
        ) from None
    with client:
        yield Source(client, config.address)


def security_at(config: Address) -> Security | None:
    """With what a scheduler is talked to; None: without TLS.

    Raises
    ------
    InputError
        It is not on this machine, and would be talked to without TLS; or there are no certificates.
    """
    encrypted = config.address.startswith(("tls://", "wss://"))
    if not (encrypted or config.insecure or on_loopback(config.address)):
        raise InputError(
            "this scheduler is reached without TLS: whoever reaches its port may run code on its workers",
            where=config.address,
            expected="tls://",
            fix="start scheduler and workers with certificates (unet-flows certificates FOLDER, then "
            'tls = "FOLDER"), or say insecure = true where nobody else reaches that network',
        )
    if encrypted and config.tls is None:
        raise InputError(
            "a scheduler with TLS needs certificates to be talked to",
            where=config.address,
            expected='tls = "FOLDER", with the certificates that it was started with',
        )
    return None if config.tls is None else security_of(Path(config.tls).expanduser())


def on_loopback(address: str) -> bool:
    """Whether nobody beyond this machine could reach it."""
    if address.startswith("inproc://"):
        return True
    try:
        found = socket.getaddrinfo(urlsplit(address).hostname or "", None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(info[4][0]).partition("%")[0]).is_loopback for info in found)
