"""Connected components of one block, in raster order of their first voxels, and what there is to say of each.

cc3d labels (Silversmith 2021, after Wu 2005); it numbers components as a scan in memory order meets them,
which is the raster order. Voxels of different values are never one object.
"""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape
from unet_core.instances.blocking import Connectivity
from unet_core.instances.compiled import compiled

_NEIGHBOURS = {("face", 3): 6, ("full", 3): 26, ("face", 2): 4, ("full", 2): 8}


def label(
    values: NDArray[np.uint8], connectivity: Connectivity, *, planar: bool = False
) -> tuple[NDArray[np.uint32], int]:
    """Labels 1 to n of the components of (z, y, x) values above 0, and n.

    `planar`: no object has voxels in two planes.
    """
    if not planar:
        return _label(values, _NEIGHBOURS[connectivity, 3])
    labels = np.empty(values.shape, np.uint32)
    count = 0
    for plane, target in zip(values, labels):
        found, new = _label(plane, _NEIGHBOURS[connectivity, 2])
        np.add(found, np.uint32(count), out=target, where=found > 0)
        target[found == 0] = 0
        count += new
    return labels, count


def _label(values: NDArray[np.uint8], neighbours: int) -> tuple[NDArray[np.uint32], int]:
    labels, count = cc3d.connected_components(
        np.ascontiguousarray(values), connectivity=neighbours, out_dtype=np.uint32, return_N=True
    )
    return labels, int(count)


def extent_of(labels: NDArray[Any]) -> Box:
    """The smallest box of (z, y, x) labels that holds all objects; an empty one at the origin for none."""
    lower, upper = np.array(labels.shape, np.int64), np.zeros(3, np.int64)
    find_extent(labels, lower, upper)
    if not upper.any():
        return Box((0, 0, 0), (0, 0, 0))
    return Box(tuple(map(int, lower)), tuple(map(int, upper)))


@compiled
def find_extent(labels: NDArray[Any], lower: NDArray[np.int64], upper: NDArray[np.int64]) -> None:
    depth, height, width = labels.shape
    for z in range(depth):
        for y in range(height):
            first = 0
            while first < width and labels[z, y, first] == 0:
                first += 1
            if first == width:
                continue
            last = width - 1
            while labels[z, y, last] == 0:
                last -= 1
            lower[0], upper[0] = min(lower[0], z), max(upper[0], z + 1)
            lower[1], upper[1] = min(lower[1], y), max(upper[1], y + 1)
            lower[2], upper[2] = min(lower[2], first), max(upper[2], last + 1)


def describe(
    labels: NDArray[np.uint32], values: NDArray[np.uint8], count: int, *, box: Box, volume: Shape
) -> dict[str, NDArray[Any]]:
    """What the merge needs of labels 1 to `count` of a block, one element per label.

    Returns
    -------
    `size` (uint32, voxels), `first` (uint64, the first voxel's place in the raster order of the whole
    volume) and `value` (uint8).
    """
    size, value = np.zeros(count, np.uint32), np.zeros(count, np.uint8)
    first = np.zeros(count, np.uint64)
    z, y, x = box.lower
    describe_rows(labels, values, z, y, x, volume[1], volume[2], size, first, value)
    return {"size": size, "first": first, "value": value}


@compiled
def describe_rows(
    labels: NDArray[np.uint32],
    values: NDArray[np.uint8],
    z0: int,
    y0: int,
    x0: int,
    rows: int,
    columns: int,
    size: NDArray[np.uint32],
    first: NDArray[np.uint64],
    value: NDArray[np.uint8],
) -> None:
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            row = ((z0 + z) * rows + y0 + y) * columns + x0
            x = 0
            while x < labels.shape[2]:
                found = labels[z, y, x]
                start = x
                x += 1
                while x < labels.shape[2] and labels[z, y, x] == found:
                    x += 1
                if found > 0:
                    if size[found - 1] == 0:
                        first[found - 1] = row + start
                        value[found - 1] = values[z, y, start]
                    size[found - 1] += x - start


def renumber(labels: NDArray[np.uint32], table: NDArray[Any]) -> NDArray[Any]:
    """`table[labels]` in the table's data type; numpy would first make 64-bit indices of all voxels.

    Contiguous labels of the same type are overwritten: fresh memory costs more than the look-up.
    """
    whole = np.ascontiguousarray(labels)
    result = whole if whole.dtype == table.dtype else np.empty(labels.shape, table.dtype)
    look_up(whole.reshape(-1), table, result.reshape(-1))
    return result


@compiled
def look_up(labels: NDArray[np.uint32], table: NDArray[Any], result: NDArray[Any]) -> None:
    for i in range(labels.size):
        result[i] = table[labels[i]]
