"""The instances of an array, block by block in this process: the same functions as on stores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape
from unet_core.instances import holes, kinds, merging
from unet_core.instances.blocking import Blocking, Connectivity, complement
from unet_core.instances.components import describe, label, renumber
from unet_core.instances.evidence import InMemory
from unet_core.instances.faces import Faces, all_contacts, faces_of
from unet_core.instances.ranking import id_type


def label_components(
    values: NDArray[np.uint8],
    *,
    block: Shape,
    connectivity: Connectivity = "face",
    planar: bool = False,
    fill_holes: bool = False,
    min_size: int = 1,
) -> NDArray[Any]:
    """The connected components of (z, y, x) values above 0; voxels of different values are never one object.

    What `skimage.measure.label` gives for the whole array, whatever the blocks: ids follow the raster order
    of the objects' first voxels. (Only arrays of shape (z, y, 1) skimage numbers in another order.)

    Parameters
    ----------
    planar
        Every plane by itself; ids go on from plane to plane.
    fill_holes
        First give holes the value around them, see `holes`.
    min_size
        Objects of fewer voxels become background, the others are numbered without them.
    """
    blocking = Blocking(volume=values.shape, roi=Box.of_shape(values.shape), block=block, planar=planar)
    evidence = InMemory()
    if fill_holes:
        values = _filled(values, blocking, evidence, complement(connectivity))
    result: NDArray[Any] = np.empty(values.shape, np.uint32)  # local labels first, then ids in their place
    faces: list[Faces] = []
    for index in range(len(blocking)):
        box = blocking.box(index)
        own = np.ascontiguousarray(values[box.slices])
        found, count = label(own, connectivity, planar=planar)
        result[box.slices] = found
        evidence.write(kinds.OBJECTS, index, describe(found, own, count, box=box, volume=values.shape))
        faces.append(faces_of({"labels": found, "values": own}, blocking.inner_sides(index)))
    for index, own_faces in enumerate(faces):
        there = {n: faces[b] for n, b in blocking.lower_neighbours(index, connectivity)}
        evidence.write(kinds.SEAMS, index, all_contacts(own_faces, there, connectivity, planar=planar))
    largest = merging.merge(blocking, evidence, min_size=min_size)
    result = result.astype(id_type(largest), copy=False)
    for index in range(len(blocking)):
        part = blocking.box(index).slices
        result[part] = renumber(result[part].astype(np.uint32), kinds.table_of(evidence, index))
    return result


def _filled(
    values: NDArray[np.uint8], blocking: Blocking, evidence: InMemory, connectivity: Connectivity
) -> NDArray[np.uint8]:
    planar = blocking.planar
    faces: list[Faces] = []
    for index in range(len(blocking)):
        box = blocking.box(index)
        own = values[box.slices]
        found, count = holes.background(own, connectivity, planar=planar)
        evidence.write(
            kinds.HOLE_ENCLOSURES, index, holes.enclosures(found, own, count, box=box, blocking=blocking)
        )
        faces.append(faces_of({"labels": found, "values": own}, blocking.inner_sides(index)))
    for index, own_faces in enumerate(faces):
        # Walls stand across faces, also where background is connected in edges and corners.
        there = {n: faces[b] for n, b in blocking.lower_neighbours(index, connectivity)}
        evidence.write(
            kinds.HOLE_SEAMS, index, holes.hole_contacts(own_faces, there, connectivity, planar=planar)
        )
    holes.decide(blocking, evidence)
    result = np.empty_like(values)
    for index in range(len(blocking)):
        box = blocking.box(index)
        result[box.slices] = holes.fill(values[box.slices], evidence, index, connectivity, planar=planar)
    return result
