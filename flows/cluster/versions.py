"""Workers of another version compute other bits, or fail half-way: they are refused before the first block.

The version is the package's, with a digest of its source: checkouts differ between releases, too.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distributed import Client, WorkerPlugin

from unet_core.errors import InputError


@lru_cache(maxsize=1)
def code_version() -> str:
    """Of unet-flows and of what must match to talk: `unet-flows 0.1.0 (3f2a9c1e), Python 3.11, ...`."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for file in sorted((*root.glob("flows/**/*.py"), *root.glob("unet_core/**/*.py"))):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    torch, _, _ = version("torch").partition("+")  # builds differ between machines with and without GPUs
    return (
        f"unet-flows {version('unet-flows')} ({digest.hexdigest()[:8]}), Python {python}, "
        f"distributed {version('distributed')}, torch {torch}"
    )


def require_same(client: Client, where: str) -> None:
    """Compare the workers' versions with this process's, and have those that come later compare theirs.

    Raises
    ------
    InputError
        Workers of another version, or without unet-flows; names both.
    """
    ours = code_version()
    found: dict[str, str] = client.run(_teller())
    others = {address: theirs for address, theirs in found.items() if theirs != ours}
    if others:
        raise InputError(
            "these workers run another version",
            where=where,
            expected=ours,
            found="\n".join(f"{address}: {theirs}" for address, theirs in sorted(others.items())[:5]),
            fix="install the same version where they run, and start them anew",
        )
    client.register_plugin(_SameVersion(ours))


def _teller() -> Callable[[], str]:
    """A function that travels by value: it answers where unet-flows is not installed, too."""

    def tell() -> str:
        import sys

        try:
            from flows.cluster.versions import code_version
        except ImportError as error:
            return f"no unet-flows that could be asked ({error}), Python {sys.version.split()[0]}"
        return str(code_version())

    return tell


class _SameVersion(WorkerPlugin):  # type: ignore[misc]
    """A worker of another version that comes during the run leaves again, and says why in its log."""

    name = "unet-flows-version"

    def __init__(self, expected: str) -> None:
        self._expected = expected

    def setup(self, worker: Any) -> None:
        if (ours := code_version()) != self._expected:
            worker.loop.add_callback(worker.close, nanny=True, reason="another version of unet-flows")
            raise RuntimeError(f"this worker runs {ours}; the run needs {self._expected}")
