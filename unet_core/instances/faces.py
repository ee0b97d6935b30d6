"""The faces of a block, and which labels meet across the seam between two blocks.

    block b's upper face   |   block a's lower face, with the 3D neighbourhood of its voxels
          5 5 0 7          |          2 2 2 0                face:  the voxel across
          5 0 0 7          |          0 0 2 3                full:  and the eight around that one

Blocks that touch in an edge or a corner alone find its voxels on these same faces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.instances.blocking import OFFSETS, Connectivity, Offset

_HALF = np.uint64(32)
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
    mine, other = seam(here, there, "labels", offset)
    my_values, other_values = seam(here, there, "values", offset)
    axis = next(a for a, o in enumerate(offset) if o)
    # Around the voxel across: not along an axis on which the blocks touch in one plane alone.
    free = (a for a in range(3) if a != axis)
    reach = [int(connectivity == "full" and not offset[a] and not (planar and a == 0)) for a in free]
    keys, area = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
    for di, dj in product(*(range(-r, r + 1) for r in reach)):
        a, b = _shifted(mine.shape, di, dj)
        touch = (mine[a] > 0) & (other[b] > 0) & (my_values[a] == other_values[b])
        pairs = mine[a][touch].astype(np.uint64) << _HALF | other[b][touch]
        starts = _runs(pairs)
        keys.append(pairs[starts])
        facing = sum(map(abs, offset)) == 1 and di == dj == 0
        area.append(np.diff(starts, append=len(pairs)).astype(np.uint32) * np.uint32(facing))
    found, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.zeros(len(found), np.uint32)
    np.add.at(total, inverse, np.concatenate(area))
    return {
        "here": (found >> _HALF).astype(np.uint32),
        "there": (found & np.uint64(2**32 - 1)).astype(np.uint32),
        "area": total,
    }


def _shifted(shape: tuple[int, ...], di: int, dj: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a plane that has a voxel at (di, dj) from it in another plane, and those voxels."""
    ranges = [(max(0, -d), n - max(0, d)) for d, n in zip((di, dj), shape)]
    return (
        tuple(slice(a, max(a, b)) for a, b in ranges),
        tuple(slice(a + d, max(a, b) + d) for d, (a, b) in zip((di, dj), ranges)),
    )


def _runs(pairs: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Where another value begins: most pairs go on from voxel to voxel, and sorting them is what costs."""
    return (
        np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
        if len(pairs)
        else np.zeros(0, np.intp)
    )


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
