"""The faces of a block, and which labels meet across the seam between two blocks.

    block b's upper face   |   block a's lower face, with the 3D neighbourhood of its voxels
          5 5 0 7          |          2 2 2 0                face:  the voxel across
          5 0 0 7          |          0 0 2 3                full:  and the eight around that one

Blocks that touch in an edge or a corner alone find its voxels on these same faces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.instances.blocking import OFFSETS, Connectivity, Offset
from unet_core.instances.compiled import compiled

Faces = Mapping[str, NDArray[Any]]  # by `face_name`; two axes each


def face_name(array: str, axis: int, side: int) -> str:
    """Such as "labels z0": the lower face of the labels on axis z."""
    return f"{array} {'zyx'[axis]}{side}"


def faces_of(arrays: Mapping[str, NDArray[Any]], sides: Iterable[tuple[int, int]]) -> dict[str, NDArray[Any]]:
    """The faces of (z, y, x) arrays of one block on some (axis, side)s: what its neighbours will ask for."""
    return {
        face_name(name, axis, side): np.ascontiguousarray(np.take(array, -side, axis=axis))
        for axis, side in sides
        for name, array in arrays.items()
    }


def touching(faces: Faces, array: str = "labels") -> NDArray[Any]:
    """Labels that lie on any of the faces, ascending: only they can go on in another block."""
    planes = [np.unique(plane) for name, plane in faces.items() if name.startswith(f"{array} ")]
    found = np.unique(np.concatenate(planes)) if planes else np.zeros(0, np.uint32)
    return found[found > 0]


def seam(here: Faces, there: Faces, array: str, offset: Offset) -> tuple[NDArray[Any], NDArray[Any]]:
    """What two blocks hold on both sides of their seam, as two (n, m) planes of the same shape.

    `there` are the faces of the block at `offset` from that of `here`, one of `OFFSETS`. Where they touch
    in an edge or a corner, n or m or both are 1.
    """
    axis = next(a for a, o in enumerate(offset) if o)
    mine, other = here[face_name(array, axis, 0)], there[face_name(array, axis, 1)]
    others = [o for a, o in enumerate(offset) if a != axis]
    # Toward +1 my last voxels meet its first ones, toward -1 the reverse.
    ends = {0: slice(None), -1: slice(0, 1), 1: slice(-1, None)}
    return mine[tuple(ends[o] for o in others)], other[tuple(ends[-o] for o in others)]


def contacts(
    here: Faces, there: Faces, offset: Offset, connectivity: Connectivity, *, planar: bool = False
) -> dict[str, NDArray[Any]]:
    """Pairs of labels of the same value that touch across a seam, each once, sorted.

    Returns
    -------
    `here`, `there` (uint32 labels) and `area` (uint32): the voxel faces that they have in common, 0 where
    they touch in edges and corners alone.
    """
    # Contiguous, so that the kernel is compiled once.
    mine, other = map(np.ascontiguousarray, seam(here, there, "labels", offset))
    my_values, other_values = map(np.ascontiguousarray, seam(here, there, "values", offset))
    across_face = sum(map(abs, offset)) == 1
    axis = next(a for a, o in enumerate(offset) if o)
    # Around the voxel across: not along an axis on which the blocks touch in one plane alone.
    free = (a for a in range(3) if a != axis)
    reach = [int(connectivity == "full" and not offset[a] and not (planar and a == 0)) for a in free]
    found = find_pairs(mine, other, my_values, other_values, reach[0], reach[1])
    keys, counts = _unique_with_area(found, across_face)
    return {
        "here": (keys >> np.uint64(32)).astype(np.uint32),
        "there": (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32),
        "area": counts,
    }


def _unique_with_area(
    found: NDArray[np.uint64], across_face: bool
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Rows (pair, how often face to face) added up by pair."""
    keys, inverse = np.unique(found[:, 0], return_inverse=True)
    area = np.zeros(len(keys), np.uint32)
    if across_face:
        np.add.at(area, inverse, found[:, 1].astype(np.uint32))
    return keys, area


@compiled
def find_pairs(
    mine: NDArray[np.uint32],
    other: NDArray[np.uint32],
    my_values: NDArray[np.uint8],
    other_values: NDArray[np.uint8],
    reach_i: int,
    reach_j: int,
) -> NDArray[np.uint64]:
    """(pair, face contacts) rows; a pair that goes on from one voxel to the next is one row."""
    rows, columns = mine.shape
    found = np.empty((16, 2), np.uint64)
    count = 0
    for di in range(-reach_i, reach_i + 1):
        for dj in range(-reach_j, reach_j + 1):
            facing = np.uint64(1 if di == 0 and dj == 0 else 0)
            last = np.uint64(0)
            for i in range(max(0, -di), rows - max(0, di)):
                for j in range(max(0, -dj), columns - max(0, dj)):
                    a, b = mine[i, j], other[i + di, j + dj]
                    if a == 0 or b == 0 or my_values[i, j] != other_values[i + di, j + dj]:
                        continue
                    pair = np.uint64(a) << np.uint64(32) | np.uint64(b)
                    if pair == last:
                        found[count - 1, 1] += facing
                        continue
                    if count == len(found):
                        larger = np.empty((2 * count, 2), np.uint64)
                        larger[:count] = found
                        found = larger
                    found[count, 0] = pair
                    found[count, 1] = facing
                    last = pair
                    count += 1
    return found[:count]


def all_contacts(
    here: Faces,
    there: Mapping[int, Faces],
    connectivity: Connectivity,
    *,
    planar: bool = False,
) -> dict[str, NDArray[Any]]:
    """`contacts` with all lower neighbours (by number of their offset), and the labels that touch a face.

    Returns
    -------
    `offset` (uint8, number in `OFFSETS`), `here`, `there`, `area` of all pairs; `touching` (uint32).
    """
    parts = [
        {"offset": np.zeros(0, np.uint8), **{n: np.zeros(0, np.uint32) for n in ("here", "there", "area")}}
    ]
    for number, faces in there.items():
        found = contacts(here, faces, OFFSETS[number], connectivity, planar=planar)
        parts.append({"offset": np.full(len(found["here"]), number, np.uint8), **found})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**joined, "touching": touching(here).astype(np.uint32)}
