"""Libraries of clusters that not everybody has: which pip command brings them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from unet_core.errors import InputError


def library(name: str, *, extra: str) -> ModuleType:
    """Import it.

    Raises
    ------
    InputError
        It is not installed; names the command.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            "a library for this kind of cluster is missing",
            where=name,
            found=error,
            fix=f'pip install "unet-flows[{extra}]"',
        ) from None
