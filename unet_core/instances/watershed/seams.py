"""Where blocks meet: pieces that go on beyond, and pairs of pieces that touch through the seam.

    block B | block A       two blocks share a face, an edge or a corner of the grid; each gives the voxels
       . v -|- u .          that lie along it, in planes as `faces.seam` has them
       . . .|. . .

A piece of A that leaves to voxel v is the same as the piece of B that holds v. Every other pair of voxels
(u, v) is a saddle, as within a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Shape
from unet_core.instances.blocking import OFFSETS, Blocking, Offset
from unet_core.instances.compiled import compiled, longer
from unet_core.instances.faces import Faces, seam
from unet_core.instances.watershed.saddles import grown, slot_of

JOINED = np.uint64(2**64 - 1)  # the saddle of two pieces of one basin: better than any
LABELS, HEIGHTS, LEAVES_TO = "labels", "heights", "leaves to"  # of a block, beside its faces


def seam_edges(
    blocking: Blocking, index: int, here: Faces, there: Mapping[int, Faces], near: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    """Edges between the labels of a block and those of its lower neighbours.

    Parameters
    ----------
    here, there
        Faces of labels and heights, and `LEAVES_TO` (`block.Nodes`), of the block and of its neighbours by
        number of their offset.
    near
        As `basins.neighbours` gives it.

    Returns
    -------
    Columns: `offset` (uint8, number in `OFFSETS`), `a` (labels of this block), `b` (of the other),
    `saddle`, `direction` and `area` as `block.Edges` has them; the saddle of pieces of one basin is `JOINED`.
    """
    box, found = blocking.box(index), []
    for number, faces in there.items():
        offset = OFFSETS[number]
        axis = next(a for a, o in enumerate(offset) if o)
        labels, heights = (
            tuple(
                np.ascontiguousarray(np.expand_dims(plane, axis)) for plane in seam(here, faces, name, offset)
            )
            for name in (LABELS, HEIGHTS)
        )
        lower = _corner(box.lower, box.upper, offset)
        other_lower = tuple(a + o for a, o in zip(lower, offset))
        keys, saddle, direction, area = _cross(
            lower,
            labels[0],
            heights[0],
            here[LEAVES_TO],
            other_lower,
            labels[1],
            heights[1],
            faces[LEAVES_TO],
            blocking.volume,
            near,
        )
        found.append(
            (
                np.full(len(keys), number, np.uint8),
                (keys >> np.uint64(32)).astype(np.uint32),
                keys.astype(np.uint32),
                saddle,
                direction.astype(np.uint8),
                area,
            )
        )
    names = {
        "offset": np.uint8,
        "a": np.uint32,
        "b": np.uint32,
        "saddle": np.uint64,
        "direction": np.uint8,
        "area": np.uint32,
    }
    columns = zip(*found) if found else ([] for _ in names)
    return {
        name: np.concatenate([np.zeros(0, dtype), *column])
        for (name, dtype), column in zip(names.items(), columns)
    }


def _corner(lower: Shape, upper: Shape, offset: Offset) -> Shape:
    """The first voxel of a block along its seam with the block at an offset."""
    return tuple(b - 1 if o > 0 else a for a, b, o in zip(lower, upper, offset))


@compiled
def _cross(
    lower: Shape,
    labels: NDArray[np.uint32],
    heights: NDArray[np.uint16],
    leaves_to: NDArray[np.uint64],
    other_lower: Shape,
    other_labels: NDArray[np.uint32],
    other_heights: NDArray[np.uint16],
    other_leaves_to: NDArray[np.uint64],
    volume: Shape,
    near: NDArray[np.bool_],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]:
    """Pairs of labels across a seam, with their best saddles; voxels (z, y, x) from two lower corners on."""
    depth, height, width = labels.shape
    keys, place = np.zeros(64, np.uint64), np.zeros(64, np.uint64)
    unused = np.zeros(64, np.uint32)
    saddles, directions = np.zeros(32, np.uint64), np.zeros(32, np.uint64)
    area = np.zeros(32, np.uint32)
    used = 0
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                label = labels[z, y, x]
                if label == 0:
                    continue
                az, ay, ax = z + lower[0], y + lower[1], x + lower[2]
                at = np.uint64((az * volume[1] + ay) * volume[2] + ax)
                for k in range(27):
                    if not near[k]:
                        continue
                    dz, dy, dx = k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1
                    bz, by, bx = az + dz - other_lower[0], ay + dy - other_lower[1], ax + dx - other_lower[2]
                    if bz < 0 or by < 0 or bx < 0:
                        continue
                    if bz >= other_labels.shape[0] or by >= other_labels.shape[1]:
                        continue
                    if bx >= other_labels.shape[2] or other_labels[bz, by, bx] == 0:
                        continue
                    other = other_labels[bz, by, bx]
                    there = np.uint64(((az + dz) * volume[1] + ay + dy) * volume[2] + ax + dx)
                    own_height, other_height = heights[z, y, x], other_heights[bz, by, bx]
                    direction = np.uint64(k)
                    if own_height < other_height or (own_height == other_height and at < there):
                        packed = np.uint64(own_height) << np.uint64(48) | at
                    else:
                        packed = np.uint64(other_height) << np.uint64(48) | there
                        direction = np.uint64(26 - k)
                    if leaves_to[label - 1] == there or other_leaves_to[other - 1] == at:
                        packed, direction = JOINED, np.uint64(0)
                    key = np.uint64(label) << np.uint64(32) | np.uint64(other)
                    slot = slot_of(keys, key)
                    if keys[slot] == 0:
                        keys[slot], place[slot] = key, used
                        if used == saddles.size:
                            saddles, directions = longer(saddles), longer(directions)
                            area = longer(area)
                        used += 1
                    n = np.int64(place[slot])
                    if (packed, direction) > (saddles[n], directions[n]):
                        saddles[n], directions[n] = packed, direction
                    area[n] += np.uint32(abs(dz) + abs(dy) + abs(dx) == 1)
                    if 2 * used > keys.size:
                        keys, place, unused = grown(keys, place, unused)
    ordered = np.empty(used, np.uint64)
    for k in range(keys.size):
        if keys[k] != 0:
            ordered[np.int64(place[k])] = keys[k]
    return ordered, saddles[:used].copy(), directions[:used].copy(), area[:used].copy()
