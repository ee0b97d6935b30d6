"""One chunk's voxels to the sums of its objects, in one pass (numba).

The unit of work is a run: neighbouring voxels of one line with one id. Coordinates of a run have closed sums,
so only intensities and classes are looked at voxel by voxel. Ids are sparse 64-bit numbers: a hash table
gives each its row, asked once per run.

Sums are 128-bit integers, as two uint64 (high, low) in two's complement: no volume whose coordinates are
below 2**24 makes them overflow, and integers do not mind in which order they are added.

Import this module only where it is used: numba takes its time, and compiles at the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from unet_core.table.layout import INTENSITY_LIMIT, MOMENTS

_LIMIT = float(INTENSITY_LIMIT)
_FACTORS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))  # of the second moments, as axes


def _place(keys: NDArray[np.uint64], rows: NDArray[np.int32], key: np.uint64) -> np.uint64:
    """Where `key` is in an open-addressing table, or the free place where it belongs."""
    mask = np.uint64(keys.size - 1)
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    at = (mixed ^ (mixed >> np.uint64(32))) & mask
    while rows[at] >= 0 and keys[at] != key:
        at = (at + np.uint64(1)) & mask
    return at


place = njit(nogil=True)(_place)


def _add(wide: NDArray[np.uint64], high: np.uint64, low: np.uint64) -> None:
    """Add to one 128-bit number (high, low)."""
    total = wide[1] + low
    wide[0] += high + (np.uint64(1) if total < low else np.uint64(0))
    wide[1] = total


add = njit(nogil=True)(_add)


def _add_signed(wide: NDArray[np.uint64], value: np.int64) -> None:
    add(wide, np.uint64(value >> 63), np.uint64(value))


add_signed = njit(nogil=True)(_add_signed)


def _add_product(wide: NDArray[np.uint64], value: np.int64, factor: np.int64) -> None:
    """Add the product of a number and one of at most 31 bits, neither of them negative."""
    top = np.uint64((value >> 32) * factor)
    add(wide, top >> np.uint64(32), top << np.uint64(32))
    add(wide, np.uint64(0), np.uint64((value & 0xFFFFFFFF) * factor))


add_product = njit(nogil=True)(_add_product)


def _add_run(moments: NDArray[np.int64], z: int, y: int, x: int, n: int) -> None:
    """Add n voxels from (z, y, x) on: sums of z, y, x, zz, yy, xx, zy, zx, yx."""
    ramp = n * (n - 1) // 2  # 0 + 1 + ... + (n - 1)
    along = n * x + ramp
    moments[0] += n * z
    moments[1] += n * y
    moments[2] += along
    moments[3] += n * z * z
    moments[4] += n * y * y
    moments[5] += x * (along + ramp) + ramp * (2 * n - 1) // 3
    moments[6] += n * z * y
    moments[7] += z * along
    moments[8] += y * along


add_run = njit(nogil=True)(_add_run)


def _shift(moments: NDArray[np.int64], n: np.int64, by: NDArray[np.int64], wide: NDArray[np.uint64]) -> None:
    """Moments of n voxels in coordinates of a chunk to those of the volume: sum (a + i)(b + j)."""
    for axis in range(3):
        add_signed(wide[axis], moments[axis] + n * by[axis])
    for place in range(3, MOMENTS):
        i, j = _FACTORS[place - 3]
        add_signed(wide[place], moments[place])
        add_product(wide[place], moments[i], by[j])
        add_product(wide[place], moments[j], by[i])
        add_product(wide[place], n * by[i], by[j])


shift = njit(nogil=True)(_shift)


def _exact(value: Any, inverse: float) -> tuple[np.int64, bool]:
    """An integer of at most 32 bits, as it is."""
    return np.int64(value), True


def _rounded(value: Any, inverse: float) -> tuple[np.int64, bool]:
    """Any number as a multiple of the quantum, the even one of two that are as near."""
    multiple = np.rint(np.float64(value) * inverse)
    if abs(multiple) < _LIMIT:  # not so for NaN
        return np.int64(multiple), True
    return np.int64(0), False


def _compiled(intensity: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    convert = njit(nogil=True, inline="always")(intensity)

    def add_intensities(line, inverse, wide, extremes):  # type: ignore[no-untyped-def]
        """One channel of a run; returns how many of its values are no usable numbers."""
        total, low, high, unfit = np.int64(0), np.uint64(0), np.uint64(0), 0
        smallest, largest = line[0], line[0]
        for value in line:
            # A NaN in the first place gives it up to whatever comes next.
            if value < smallest or smallest != smallest:
                smallest = value
            if value > largest or largest != largest:
                largest = value
            multiple, fits = convert(value, inverse)
            square = np.uint64(multiple * multiple)
            total += multiple
            low += square & np.uint64(0xFFFFFFFF)
            high += square >> np.uint64(32)
            unfit += not fits
        add_signed(wide[0], total)
        add(wide[1], high >> np.uint64(32), high << np.uint64(32))
        add(wide[1], np.uint64(0), low)
        if smallest < extremes[0]:
            extremes[0] = smallest
        if largest > extremes[1]:
            extremes[1] = largest
        return unfit

    add_channel = njit(nogil=True)(add_intensities)

    def measure(labels, lower, room, image, inverse, classes, kinds):  # type: ignore[no-untyped-def]
        """Sums of at most `room` objects of (z, y, x) `labels`, whose first voxel is at `lower`.

        Returns how many objects there are (the rest counts only if they have room) and, one row for each:
        ids; voxels; first and last voxel per axis; moments; voxels per class; per channel the sums of values
        and squares, the extremes, and the count of values that are no usable numbers.
        """
        channels = image.shape[0]
        keys, rows = np.zeros(2 * room, np.uint64), np.full(2 * room, -1, np.int32)
        ids, voxels = np.zeros(room, np.uint64), np.zeros(room, np.int64)
        first, last = np.full((room, 3), 2**31 - 1, np.int32), np.full((room, 3), -1, np.int32)
        near = np.zeros((room, MOMENTS), np.int64)
        of_class = np.zeros((room, kinds), np.uint64)
        sums = np.zeros((room, channels, 2, 2), np.uint64)
        extremes = np.empty((room, channels, 2))
        extremes[:, :, 0], extremes[:, :, 1] = inf, -inf
        unfit = np.zeros((room, channels), np.uint64)
        moments = np.zeros((room, MOMENTS, 2), np.uint64)
        depth, height, width = labels.shape
        count, row, key = 0, -1, np.uint64(0)
        for z in range(depth):
            for y in range(height):
                line = labels[z, y]
                stop = 0
                while stop < width:
                    start, label = stop, line[stop]
                    stop += 1
                    while stop < width and line[stop] == label:
                        stop += 1
                    if label == 0:
                        continue
                    if row < 0 or np.uint64(label) != key:
                        key = np.uint64(label)
                        at = place(keys, rows, key)
                        if rows[at] < 0:
                            if count == room:
                                return (
                                    room + 1,
                                    ids,
                                    voxels,
                                    first,
                                    last,
                                    moments,
                                    of_class,
                                    sums,
                                    extremes,
                                    unfit,
                                )
                            keys[at], rows[at], ids[count] = key, count, key
                            count += 1
                        row = rows[at]
                    n = stop - start
                    voxels[row] += n
                    first[row, 0], last[row, 0] = min(first[row, 0], z), max(last[row, 0], z)
                    first[row, 1], last[row, 1] = min(first[row, 1], y), max(last[row, 1], y)
                    first[row, 2], last[row, 2] = min(first[row, 2], start), max(last[row, 2], stop - 1)
                    add_run(near[row], z, y, start, n)
                    if kinds:
                        for x in range(start, stop):
                            of_class[row, classes[z, y, x]] += np.uint64(1)
                    for c in range(channels):
                        bad = add_channel(
                            image[c, z, y, start:stop], inverse[c], sums[row, c], extremes[row, c]
                        )
                        unfit[row, c] += np.uint64(bad)
        for row in range(count):
            shift(near[row], voxels[row], lower, moments[row])
            for axis in range(3):
                first[row, axis] += lower[axis]
                last[row, axis] += lower[axis]
        return count, ids, voxels, first, last, moments, of_class, sums, extremes, unfit

    compiled: Callable[..., tuple[Any, ...]] = njit(nogil=True)(measure)
    return compiled


measured_integers = _compiled(_exact)
measured_numbers = _compiled(_rounded)
