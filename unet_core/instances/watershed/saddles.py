"""Where basins meet: the best saddle of every pair of pieces that touch.

A pair of neighbouring voxels is as good as its lower voxel. All pairs of voxels are totally ordered by
(height of the lower one, its raster index, direction to the other): no two are equal, and neither blocks
nor which pieces were merged before can change it. A pair of pieces keeps its best pair of voxels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unet_core.instances.compiled import Integer, compiled
from unet_core.instances.watershed.basins import offsets

DIRECTION_BITS, PLACE_BITS = 5, 32


class Pairs(NamedTuple):
    """Pairs a < b of pieces that touch, best saddle first; one entry per pair.

    `saddle`: height, place (flat index) and direction of the voxel pair, packed so that better is larger.
    `area`: pairs of voxels that share a face.
    """

    a: NDArray[np.uint32]
    b: NDArray[np.uint32]
    saddle: NDArray[np.uint64]
    area: NDArray[np.uint32]


def height_of(saddle: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Heights of packed saddles."""
    return (saddle >> np.uint64(PLACE_BITS + DIRECTION_BITS)).astype(np.uint16)


def pairs_within(
    heights: NDArray[np.uint16], labels: NDArray[np.int32], near: NDArray[np.bool_], count: int
) -> Pairs:
    """Pairs of one block's pieces; arrays with the ring, where labels are 0."""
    found = _collect(heights, labels, near, offsets(heights.shape), count)
    return Pairs(*_best_first(*found))


def _best_first(
    keys: NDArray[np.uint64], saddle: NDArray[np.uint64], area: NDArray[np.uint32]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint32]]:
    order = np.argsort(saddle)[::-1]
    keys = keys[order]
    return (
        (keys >> np.uint64(32)).astype(np.uint32),
        keys.astype(np.uint32),
        saddle[order],
        area[order],
    )


@compiled
def slot_of(keys: NDArray[np.uint64], key: Integer) -> Integer:
    """Where a key stands, or would stand, in a table of a power of two of places (0: empty)."""
    mask = np.uint64(keys.size - 1)
    slot = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)
    slot &= mask
    while keys[slot] != 0 and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return np.int64(slot)


@compiled
def grown(
    keys: NDArray[np.uint64], saddle: NDArray[np.uint64], area: NDArray[np.uint32]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]:
    """The same table with four times the places."""
    more, more_saddle = np.zeros(4 * keys.size, np.uint64), np.zeros(4 * keys.size, np.uint64)
    more_area = np.zeros(4 * keys.size, np.uint32)
    for k in range(keys.size):
        if keys[k] != 0:
            slot = slot_of(more, keys[k])
            more[slot], more_saddle[slot], more_area[slot] = keys[k], saddle[k], area[k]
    return more, more_saddle, more_area


@compiled
def _collect(
    heights: NDArray[np.uint16],
    labels: NDArray[np.int32],
    near: NDArray[np.bool_],
    steps: NDArray[np.int64],
    count: int,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]:
    depth, height, width = heights.shape
    flat_heights, flat_labels = heights.ravel(), labels.ravel()
    places = 64
    while places < 4 * count:
        places *= 2
    keys, saddle = np.zeros(places, np.uint64), np.zeros(places, np.uint64)
    area = np.zeros(places, np.uint32)
    used = 0
    for z in range(1, depth - 1):
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                at = (z * height + y) * width + x
                label = flat_labels[at]
                if label == 0:
                    continue
                for k in range(14, 27):
                    other = flat_labels[at + steps[k]]
                    if not near[k] or other == 0 or other == label:
                        continue
                    low, direction = at, k
                    # Of equal heights the earlier voxel is the lower one, and that is this one.
                    if flat_heights[at + steps[k]] < flat_heights[at]:
                        low, direction = at + steps[k], 26 - k
                    packed = np.uint64(flat_heights[low]) << np.uint64(37)
                    packed |= np.uint64(low) << np.uint64(5) | np.uint64(direction)
                    key = np.uint64(min(label, other)) << np.uint64(32) | np.uint64(max(label, other))
                    slot = slot_of(keys, key)
                    if keys[slot] == 0:
                        keys[slot] = key
                        used += 1
                    if packed > saddle[slot]:
                        saddle[slot] = packed
                    area[slot] += np.uint32(k == 14 or k == 16 or k == 22)
                    if 2 * used > keys.size:
                        keys, saddle, area = grown(keys, saddle, area)
    there = np.flatnonzero(keys)
    return keys[there], saddle[there], area[there]
