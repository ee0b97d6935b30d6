"""Libraries that only the exchange of models needs: imported when used, an InputError where missing."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from unet_core.errors import InputError


def require(module: str) -> Any:
    """A module of the extra `exchange`.

    Raises
    ------
    InputError
        It is not installed; says how to install it.
    """
    # onnxruntime 1.29 and later reports to its maker, unless told not to before it is loaded.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            "exchanging models needs a library that is not installed",
            where=module,
            found=error,
            fix='pip install -c deploy/constraints.txt -e ".[exchange]"',
        ) from None
