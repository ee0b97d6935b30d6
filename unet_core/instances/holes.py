"""Holes: background that does not reach the volume's face, found the way objects are, block by block.

Background is connected by the complement of what objects are connected by, so that a hole's wall is closed.
A hole is filled where all that touches it by faces has one value. Between two classes it belongs to neither.
So objects can be labelled afterwards: whatever of that value touches a filled hole is one object with it (a
voxel diagonal to a hole has a face neighbour of the hole between them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box
from unet_core.instances.blocking import FACES, OFFSETS, Blocking, Connectivity
from unet_core.instances.compiled import compiled
from unet_core.instances.components import label, renumber
from unet_core.instances.evidence import Evidence
from unet_core.instances.faces import Faces, all_contacts, seam
from unet_core.instances.kinds import HOLE_ENCLOSURES, HOLE_FILLS, HOLE_SEAMS
from unet_core.instances.merging import Nodes, joined_sets

_NONE = 255  # lowest value around, where there is none


def background(
    values: NDArray[np.uint8], connectivity: Connectivity, *, planar: bool
) -> tuple[NDArray[np.uint32], int]:
    """Labels of the components of the background, connected by `connectivity`, and their number."""
    return label((values == 0).view(np.uint8), connectivity, planar=planar)


def enclosures(
    labels: NDArray[np.uint32], values: NDArray[np.uint8], count: int, *, box: Box, blocking: Blocking
) -> dict[str, NDArray[Any]]:
    """Of each label of a block's background: does it reach a face, and what is around it.

    Returns
    -------
    `open` (bool), `lowest` and `highest` (uint8, values that touch it by faces).
    """
    found: dict[str, NDArray[Any]] = {
        "open": np.zeros(count, np.bool_),
        "lowest": np.full(count, _NONE, np.uint8),
        "highest": np.zeros(count, np.uint8),
    }
    for axis in range(1 if blocking.planar else 0, 3):
        for face, at_face in (
            (0, box.lower[axis] == blocking.roi.lower[axis]),
            (-1, box.upper[axis] == blocking.roi.upper[axis]),
        ):
            if at_face:
                there = np.unique(np.take(labels, face, axis=axis))
                found["open"][there[there > 0].astype(np.int64) - 1] = True
    look_around(labels, values, 1 if blocking.planar else 0, found["lowest"], found["highest"])
    return found


@compiled
def look_around(
    labels: NDArray[np.uint32],
    values: NDArray[np.uint8],
    first_axis: int,
    lowest: NDArray[np.uint8],
    highest: NDArray[np.uint8],
) -> None:
    depth, height, width = labels.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                # Each pair of face neighbours once: from the later one.
                for axis in range(first_axis, 3):
                    pz, py, px = z - (axis == 0), y - (axis == 1), x - (axis == 2)
                    if pz < 0 or py < 0 or px < 0:
                        continue
                    here, there = labels[z, y, x], labels[pz, py, px]
                    if here > 0 and there == 0:
                        at, value = here - 1, values[pz, py, px]
                    elif there > 0 and here == 0:
                        at, value = there - 1, values[z, y, x]
                    else:
                        continue
                    lowest[at] = min(lowest[at], value)
                    highest[at] = max(highest[at], value)


def hole_contacts(
    here: Faces, there: Mapping[int, Faces], connectivity: Connectivity, *, planar: bool
) -> dict[str, NDArray[Any]]:
    """`faces.all_contacts`, and the values that background touches across the seams.

    Returns
    -------
    Also `wall offset` (number of the neighbour's offset), `wall label` (here), `wall value` (there);
    `back offset`, `back label` (there), `back value` (here).
    """
    found = all_contacts(here, there, connectivity, planar=planar)
    walls: dict[str, list[NDArray[Any]]] = {"wall": [], "back": []}
    for number, faces in there.items():
        if number >= FACES:
            continue
        mine, other = seam(here, faces, "labels", OFFSETS[number])
        my_values, other_values = seam(here, faces, "values", OFFSETS[number])
        for name, labels, values in (("wall", mine, other_values), ("back", other, my_values)):
            met = (labels > 0) & (values > 0)
            rows = np.unique(np.stack([labels[met], values[met]], axis=1, dtype=np.uint32), axis=0)
            walls[name].append(np.insert(rows, 0, number, axis=1))
    for name, parts in walls.items():
        rows = np.concatenate([np.zeros((0, 3), np.uint32), *parts])
        found[f"{name} offset"], found[f"{name} label"] = rows[:, 0].astype(np.uint8), rows[:, 1]
        found[f"{name} value"] = rows[:, 2].astype(np.uint8)
    return found


def decide(blocking: Blocking, evidence: Evidence) -> None:
    """Find the holes of the whole volume, and leave for each block what to fill its background with."""
    nodes = Nodes.read(blocking, evidence, HOLE_SEAMS)
    sets, count = joined_sets(blocking, evidence, nodes, HOLE_SEAMS)
    reaches = np.zeros(count, np.bool_)
    lowest, highest = np.full(count, _NONE, np.uint8), np.zeros(count, np.uint8)
    indices = range(len(blocking))
    for index, own in zip(indices, evidence.read_all(HOLE_ENCLOSURES, indices)):
        part = nodes.of(index)
        at, of = nodes.labels[part].astype(np.int64) - 1, sets[part]
        np.logical_or.at(reaches, of, own["open"][at])
        np.minimum.at(lowest, of, own["lowest"][at])
        np.maximum.at(highest, of, own["highest"][at])
    for index, seams in zip(indices, evidence.read_all(HOLE_SEAMS, indices)):
        for name in ("wall", "back"):
            for number in np.unique(seams[f"{name} offset"]):
                chosen = seams[f"{name} offset"] == number
                there = blocking.neighbour(index, OFFSETS[number])
                block = index if name == "wall" or there is None else there
                of = sets[nodes.find(block, seams[f"{name} label"][chosen])]
                np.minimum.at(lowest, of, seams[f"{name} value"][chosen])
                np.maximum.at(highest, of, seams[f"{name} value"][chosen])
    filled = _filling(reaches, lowest, highest)
    for index, own in zip(indices, evidence.read_all(HOLE_ENCLOSURES, indices)):
        part = nodes.of(index)
        table = np.concatenate([np.zeros(1, np.uint8), _filling(own["open"], own["lowest"], own["highest"])])
        table[nodes.labels[part]] = filled[sets[part]]
        evidence.write(HOLE_FILLS, index, {"fills": table})


def fill(
    values: NDArray[np.uint8], evidence: Evidence, index: int, connectivity: Connectivity, *, planar: bool
) -> NDArray[np.uint8]:
    """The values of a block with its holes filled. `connectivity` is the background's."""
    table = evidence.read(HOLE_FILLS, index)["fills"]
    if not table.any():
        return values
    labels, _ = background(values, connectivity, planar=planar)
    result: NDArray[np.uint8] = values + renumber(labels, table)  # one of the two is 0
    return result


def _filling(
    reaches: NDArray[np.bool_], lowest: NDArray[np.uint8], highest: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    result: NDArray[np.uint8] = np.where(~reaches & (lowest == highest), lowest, np.uint8(0))
    return result
