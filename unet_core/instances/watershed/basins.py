"""Basins of one block: every voxel points to its best neighbour, and pointers are followed to their end.

Voxels are totally ordered by (height, raster index in the volume), so each has one best voxel among itself
and its neighbours, and following them ends at a peak, which is its own best. Within a block the order by
raster index is the order by position: indices local to the block give the same pointers. A path may leave
the block. All paths that leave to one voxel beyond are one piece, whose basin `seams` finds.

    heights with a ring of one voxel around:  a path ends     at a peak of the block's own, or
                                                              at a voxel of the ring: an exit
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unet_core.instances.compiled import Integer, compiled, longer

CENTRE = 13  # of the 27 positions around a voxel, numbered in raster order, it is its own


class Pieces(NamedTuple):
    """Pieces of basins within one block, numbered 1, 2, … by the raster order of their first voxels.

    `labels` has the ring around it, which is 0. Arrays below have one entry per piece; places are flat
    indices into arrays with the ring.
    """

    labels: NDArray[np.int32]
    end: NDArray[np.int64]  # where the paths end
    exits: NDArray[np.bool_]  # whether that is a voxel of the ring
    first: NDArray[np.int64]  # the first voxel
    size: NDArray[np.int64]  # voxels
    open: NDArray[np.bool_]  # whether anything beyond the block can touch it


def offsets(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Flat index of each of the 27 positions around a voxel of an array of this shape, relative to it."""
    steps = np.arange(-1, 2)
    plane = shape[1] * shape[2]
    found = steps[:, None, None] * plane + steps[None, :, None] * shape[2] + steps[None, None, :]
    return found.ravel().astype(np.int64)


def neighbours(*, full: bool, planar: bool) -> NDArray[np.bool_]:
    """Which of the 27 positions are neighbours: through faces, or through edges and corners, too."""
    z, y, x = np.indices((3, 3, 3)) - 1
    distance = abs(z) + abs(y) + abs(x)
    near = (distance > 0) & (distance <= (3 if full else 1))
    near &= (z == 0) | (not planar)
    return np.ascontiguousarray(near.ravel())


def pieces_of(heights: NDArray[np.uint16], near: NDArray[np.bool_]) -> Pieces:
    """Pieces of basins of one block.

    Parameters
    ----------
    heights
        (z + 2, y + 2, x + 2): the block's and one voxel more on every side; 0 where nothing is to be
        labelled, and beyond the volume.
    near
        As `neighbours` gives it.
    """
    labels, end, exits, first, size = _follow(heights, _pointers(heights, near), offsets(heights.shape))
    return Pieces(labels, end, exits, first, size, _open(heights, labels, near, len(end)))


@compiled
def _pointers(heights: NDArray[np.uint16], near: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Which of the 27 positions around it each voxel points to; without the ring. A row at a time."""
    depth, height, width = heights.shape
    found = np.empty((depth - 2, height - 2, width - 2), np.uint8)
    best = np.empty(width - 2, np.uint16)
    for z in range(1, depth - 1):
        for y in range(1, height - 1):
            own = heights[z, y, 1 : width - 1]
            code = found[z - 1, y - 1]
            best[:] = own
            code[:] = CENTRE
            for k in range(27):
                if not near[k]:
                    continue
                start = k % 3
                other = heights[z + k // 9 - 1, y + k // 3 % 3 - 1, start : start + width - 2]
                # A tie goes to the later voxel: with the voxel itself, only to those after it.
                if k < CENTRE:
                    for x in range(width - 2):
                        better = (other[x] > own[x]) & (other[x] >= best[x])
                        best[x] = other[x] if better else best[x]
                        code[x] = k if better else code[x]
                else:
                    for x in range(width - 2):
                        better = other[x] >= best[x]
                        best[x] = other[x] if better else best[x]
                        code[x] = k if better else code[x]
    return found


@compiled
def _follow(
    heights: NDArray[np.uint16], pointers: NDArray[np.uint8], steps: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    depth, height, width = heights.shape
    flat = heights.ravel()
    labels = np.zeros(flat.size, np.int32)
    end, exits = np.empty(1024, np.int64), np.empty(1024, np.bool_)
    first, size = np.empty(1024, np.int64), np.zeros(1024, np.int64)
    count = 0
    path = np.empty(1024, np.int64)
    for z in range(1, depth - 1):
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                start = (z * height + y) * width + x
                if flat[start] == 0 or labels[start] != 0:
                    continue
                length, at, az, ay, ax = 0, start, z, y, x
                outside = False
                while True:
                    if labels[at] != 0:
                        label = labels[at]
                        break
                    outside = az == 0 or az == depth - 1 or ay == 0 or ay == height - 1
                    outside = outside or ax == 0 or ax == width - 1
                    code: Integer = CENTRE
                    if not outside:
                        code = np.int64(pointers[az - 1, ay - 1, ax - 1])
                    if code == CENTRE:
                        if count == end.size:
                            end, exits = longer(end), longer(exits)
                            first, size = longer(first), longer(size)
                        end[count], exits[count], first[count], size[count] = at, outside, start, 0
                        count += 1
                        label = count
                        if outside:
                            labels[at] = label
                            break
                    if length == path.size:
                        path = longer(path)
                    path[length] = at
                    length += 1
                    if code == CENTRE:
                        break
                    at += steps[code]
                    az, ay, ax = az + code // 9 - 1, ay + code // 3 % 3 - 1, ax + code % 3 - 1
                for k in range(length):
                    labels[path[k]] = label
                size[label - 1] += length
    for k in range(count):
        if exits[k]:
            labels[end[k]] = 0
    shaped = labels.reshape(heights.shape)
    return shaped, end[:count].copy(), exits[:count].copy(), first[:count].copy(), size[:count].copy()


@compiled
def _open(
    heights: NDArray[np.uint16], labels: NDArray[np.int32], near: NDArray[np.bool_], count: int
) -> NDArray[np.bool_]:
    """Which pieces have a neighbour in the ring that is to be labelled, too."""
    depth, height, width = heights.shape
    found = np.zeros(count, np.bool_)
    for z in range(1, depth - 1):
        z_face = z == 1 or z == depth - 2
        for y in range(1, height - 1):
            face = z_face or y == 1 or y == height - 2
            step = 1 if face or width < 4 else width - 3
            for x in range(1, width - 1, step):
                label = labels[z, y, x]
                if label == 0 or found[label - 1]:
                    continue
                for k in range(27):
                    az, ay, ax = z + k // 9 - 1, y + k // 3 % 3 - 1, x + k % 3 - 1
                    ring = az == 0 or az == depth - 1 or ay == 0 or ay == height - 1
                    ring = ring or ax == 0 or ax == width - 1
                    if near[k] and ring and heights[az, ay, ax] != 0:
                        found[label - 1] = True
    return found
