"""Where blocks meet: pieces that go on beyond, and pairs of pieces that touch through the seam.

    block B | block A       two blocks share a face, an edge or a corner of the grid; each gives the voxels
       . v -|- u .          that lie along it, in planes as `faces.seam` has them
       . . .|. . .

A piece of A that leaves to voxel v is the same as the piece of B that holds v (`exits`). Every other pair of
voxels (u, v) is a saddle, as within a block.

Heights that rise through a face leave through every third voxel of it, and each such piece touches others.
Where they lead is known here, so pairs of pieces become pairs of what these are parts of: most are pairs of
the same then, or of the same two. What the merge gets is a few pairs for each basin that lies on a face.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Shape
from unet_core.instances.blocking import OFFSETS, Blocking, Offset
from unet_core.instances.compiled import compiled, longer
from unet_core.instances.evidence import Arrays
from unet_core.instances.faces import Faces, seam
from unet_core.instances.watershed.exits import HEIGHTS, HERE, LABELS, Exits, code_of
from unet_core.instances.watershed.saddles import grown, slot_of

_EDGE = ("saddle", "direction", "area")
Pairs = dict[str, NDArray[Any]]  # columns: code of the block and label of both ends, and `_EDGE`


def seam_edges(
    blocking: Blocking, index: int, faces: Mapping[int, Faces], within: Arrays, near: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    """What the merge needs of a block: where its pieces lead, and the pairs of its own and its lower seams.

    Parameters
    ----------
    faces
        Of the block and all blocks that touch it, by `exits.code_of` their offset: faces of labels and
        heights, and `exits.LEAVES_TO`.
    within
        The pairs of the block's own pieces, columns of `block.Edges`.
    near
        As `basins.neighbours` gives it.

    Returns
    -------
    Labels are named by the code of their block and their position there (`Exits.order`). Columns:

    * `leaves`: uint32 labels of this block that leave it; `to_block`, `to`: where each leads.
    * `a_block`, `a`, `b_block`, `b`, `saddle`, `direction`, `area`: each pair once, best saddle first.
    * `open_block`, `open`: of all that is named above, what leaves its own block: it leads further than can
      be seen from here.
    * `staying`: of one entry, how many labels of this block do not leave it.
    """
    exits = Exits(blocking, index, faces)
    leaves, to_block, to = exits.of_block()
    here = np.full(len(within["a"]), HERE, np.uint8)
    parts: list[Pairs] = [
        {"a_block": here, "b_block": here, **{name: within[name] for name in ("a", "b", *_EDGE)}}
    ]
    for number, offset in enumerate(OFFSETS):
        if (code := code_of(offset)) in faces:
            parts.append(_across(blocking, index, faces[HERE], faces[code], number, near))
    pairs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for end in ("a", "b"):
        block, label = exits.resolve(pairs[f"{end}_block"], pairs[end])
        pairs[f"{end}_block"], pairs[end] = block, exits.order(block, label)
    named: dict[str, NDArray[Any]] = {"to_block": to_block, "to": exits.order(to_block, to)}
    named |= _each_once(pairs)
    return {"leaves": leaves, "staying": exits.staying[[HERE]], **named, **_open(named, exits.staying)}


def _open(named: Mapping[str, NDArray[Any]], staying: NDArray[np.uint32]) -> dict[str, NDArray[Any]]:
    """What leaves its block, each once."""
    block, order = (
        np.concatenate([named[f"{end}{what}"] for end in ("to", "a", "b")]) for what in ("_block", "")
    )
    leaves = order >= staying[block]
    keys = np.unique(block[leaves].astype(np.uint64) << np.uint64(32) | order[leaves])
    return {"open_block": (keys >> np.uint64(32)).astype(np.uint8), "open": keys.astype(np.uint32)}


def _each_once(pairs: Pairs) -> Pairs:
    """Pairs of different ends, each once with its best saddle and all its area; best first."""
    ends = [pairs[f"{end}_block"].astype(np.uint64) << np.uint64(32) | pairs[end] for end in ("a", "b")]
    nodes, number = np.unique(np.concatenate(ends), return_inverse=True)
    one, two = number[: len(ends[0])].astype(np.uint64), number[len(ends[0]) :].astype(np.uint64)
    key = np.minimum(one, two) << np.uint64(32) | np.maximum(one, two)
    order = np.lexsort((pairs["direction"], pairs["saddle"], key))
    order = order[(one != two)[order]]
    key = key[order]
    last = np.append(key[1:] != key[:-1], True) if len(key) else np.zeros(0, bool)
    starts = np.flatnonzero(np.append(True, last[:-1])) if len(key) else np.zeros(0, np.intp)
    area = np.add.reduceat(pairs["area"][order], starts) if len(key) else np.zeros(0, np.uint32)
    best, key = order[last], key[last]
    a, b = nodes[(key >> np.uint64(32)).astype(np.intp)], nodes[(key & np.uint64(2**32 - 1)).astype(np.intp)]
    columns = {
        "a_block": (a >> np.uint64(32)).astype(np.uint8),
        "a": a.astype(np.uint32),
        "b_block": (b >> np.uint64(32)).astype(np.uint8),
        "b": b.astype(np.uint32),
        "saddle": pairs["saddle"][best],
        "direction": pairs["direction"][best],
        "area": area,
    }
    order = np.lexsort((columns["direction"], columns["saddle"]))[::-1]
    return {name: column[order] for name, column in columns.items()}


def _across(
    blocking: Blocking, index: int, here: Faces, there: Faces, number: int, near: NDArray[np.bool_]
) -> Pairs:
    """Pairs of the block's labels and those of one lower neighbour."""
    box, offset = blocking.box(index), OFFSETS[number]
    axis = next(a for a, o in enumerate(offset) if o)
    labels, heights = (
        [np.ascontiguousarray(np.expand_dims(p, axis)) for p in seam(here, there, name, offset)]
        for name in (LABELS, HEIGHTS)
    )
    lower = _corner(box.lower, box.upper, offset)
    other_lower = tuple(a + o for a, o in zip(lower, offset))
    keys, saddle, direction, area = _cross(
        lower, labels[0], heights[0], other_lower, labels[1], heights[1], blocking.volume, near
    )
    return {
        "a_block": np.full(len(keys), HERE, np.uint8),
        "a": (keys >> np.uint64(32)).astype(np.uint32),
        "b_block": np.full(len(keys), code_of(offset), np.uint8),
        "b": keys.astype(np.uint32),
        "saddle": saddle,
        "direction": direction.astype(np.uint8),
        "area": area,
    }


def _corner(lower: Shape, upper: Shape, offset: Offset) -> Shape:
    """The first voxel of a block along its seam with the block at an offset."""
    return tuple(b - 1 if o > 0 else a for a, b, o in zip(lower, upper, offset))


@compiled
def _cross(
    lower: Shape,
    labels: NDArray[np.uint32],
    heights: NDArray[np.uint16],
    other_lower: Shape,
    other_labels: NDArray[np.uint32],
    other_heights: NDArray[np.uint16],
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
