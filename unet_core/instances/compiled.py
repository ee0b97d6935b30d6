"""numba's compiler as a decorator that keeps a function's type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Integer = Any  # of any width, signed or not: what indexing an array gives


def compiled(function: F) -> F:
    """The function, compiled when it is first called; it releases the GIL."""
    # Not cached on disk: see unet_core/DESIGN.md, "Rejected".
    return cast(F, njit(nogil=True)(function))


@compiled
def longer(array: NDArray[Any]) -> NDArray[Any]:
    """Twice as long; the second half is 0."""
    found = np.zeros(2 * array.size, array.dtype)
    found[: array.size] = array
    return found
