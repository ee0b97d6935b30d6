"""128-bit integers as arrays: (..., 2) uint64, high and low half, in two's complement.

Enough for every sum over a volume, and exact: a sum is the same to the bit in whatever order, and from
whatever blocks, its terms come.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.uint64]
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def wide(values: NDArray[Any]) -> Wide:
    """Integers of at most 64 bits as wide ones, in a new last axis."""
    high = values >> 63 if values.dtype.kind == "i" else np.zeros_like(values)
    return np.stack([high.astype(np.uint64), values.astype(np.uint64)], axis=-1)


def plus(a: Wide, b: Wide) -> Wide:
    low = a[..., 1] + b[..., 1]
    high = a[..., 0] + b[..., 0] + (low < b[..., 1])
    return np.stack([high, low], axis=-1)


def minus(a: Wide, b: Wide) -> Wide:
    low = a[..., 1] - b[..., 1]
    high = a[..., 0] - b[..., 0] - (a[..., 1] < b[..., 1])
    return np.stack([high, low], axis=-1)


def times(a: Wide, factor: NDArray[np.int64]) -> Wide:
    """Each number times a signed one of at most 32 bits and a sign."""
    size = np.abs(factor).astype(np.uint64)
    bottom = (a[..., 1] & _LOW) * size
    top = (a[..., 1] >> _HALF) * size + (bottom >> _HALF)
    product = np.stack([a[..., 0] * size + (top >> _HALF), (top << _HALF) | (bottom & _LOW)], axis=-1)
    return np.where((factor < 0)[..., np.newaxis], minus(np.zeros_like(product), product), product)


def sums_of_groups(a: Wide, starts: NDArray[np.intp]) -> Wide:
    """Sums along axis 0 of the groups that begin at `starts`; fewer than 2**32 in a group."""
    bottom = np.add.reduceat(a[..., 1] & _LOW, starts, axis=0)
    top = np.add.reduceat(a[..., 1] >> _HALF, starts, axis=0) + (bottom >> _HALF)
    high = np.add.reduceat(a[..., 0], starts, axis=0) + (top >> _HALF)
    return np.stack([high, (top << _HALF) | (bottom & _LOW)], axis=-1)


def as_float(a: Wide) -> NDArray[np.float64]:
    """The nearest floating-point number, or one of the two next to it."""
    negative = a[..., 0] >> np.uint64(63) == 1
    size = np.where(negative[..., np.newaxis], minus(np.zeros_like(a), a), a)
    value = size[..., 0].astype(np.float64) * 2.0**64 + size[..., 1].astype(np.float64)
    return np.where(negative, -value, value)
