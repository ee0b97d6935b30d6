"""A Prefect server that answers, or one sentence that says why not, within seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from unet_core.errors import InputError, RunError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

# Seconds: nobody is there, or somebody who is busy.
_PATIENCE = httpx.Timeout(30.0, connect=5.0)
_SHOWN = 1000  # characters of what it says
_PROBLEM = "Prefect's server cannot be reached"


def api_url(server: str) -> str:
    """The address of the API, from that of the server or of its API.

    Raises
    ------
    InputError
        This is no such URL, or one with a password in it.
    """
    try:
        parts = urlsplit(server)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port that is no number
        known = False
    if not known:
        raise InputError("--server is not a URL", expected="such as http://127.0.0.1:4200", found=server)
    if parts.username or parts.password:
        raise InputError(
            "a password in --server would be kept in logs",
            where=parts.hostname,
            fix="take it out and set PREFECT_API_AUTH_STRING, or PREFECT_API_KEY",
        )
    url = server.rstrip("/")
    return url if "/api" in parts.path else f"{url}/api"


@contextmanager
def connected(server: str | None) -> Iterator[SyncPrefectClient]:
    """A client of the server, or of the one that Prefect's settings name.

    Raises
    ------
    InputError
        There is none, it does not answer, or what answers is no such server.
    RunError
        It refuses what it is asked later, or goes away meanwhile.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = api_url(server or PREFECT_API_URL.value() or _nobody())
    with temporary_settings({PREFECT_API_URL: url}):
        _require(url)
        try:
            with get_client(sync_client=True) as client:
                yield client
        except httpx.HTTPStatusError as error:
            raise RunError(
                "Prefect's server refuses this",
                where=f"{error.request.method} {error.request.url}",
                found=error.response.text[:_SHOWN],
            ) from None
        except httpx.HTTPError as error:
            raise RunError(
                "Prefect's server went away",
                where=url,
                found=str(error) or type(error).__name__,
                fix="the same command does what is missing",
            ) from None


def _require(url: str) -> None:
    import prefect
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client({"timeout": _PATIENCE}, sync_client=True) as client,
        ):
            version = client.api_version()
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        raise InputError(
            "Prefect's server refuses to answer"
            if status in (401, 403)
            else "no Prefect server answers there",
            where=url,
            found=f"HTTP status {status}",
            fix="set PREFECT_API_AUTH_STRING, or PREFECT_API_KEY" if status in (401, 403) else _FIX,
        ) from None
    except (httpx.HTTPError, OSError) as error:
        raise InputError(_PROBLEM, where=url, found=str(error) or type(error).__name__, fix=_FIX) from None
    except ValueError:  # what came is not JSON
        raise InputError(
            "no Prefect server answers there", where=url, found="something else does", fix=_FIX
        ) from None
    if str(version).split(".")[0] != prefect.__version__.split(".")[0]:
        raise InputError(
            "Prefect's server is of another generation",
            where=url,
            expected=f"version {prefect.__version__}",
            found=f"version {version}",
        )


_FIX = "check the address; on this machine: prefect server start"


def _nobody() -> str:
    raise InputError(
        "nothing says where Prefect's server is",
        expected="--server URL, or PREFECT_API_URL",
        fix="prefect server start, and --server http://127.0.0.1:4200",
    )
