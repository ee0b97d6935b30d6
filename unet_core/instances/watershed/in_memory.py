"""The watershed of an array of heights, block by block in this process: the same functions as on stores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape
from unet_core.instances import kinds
from unet_core.instances.blocking import Blocking, Connectivity
from unet_core.instances.evidence import InMemory
from unet_core.instances.watershed.criterion import Criterion
from unet_core.instances.watershed.stages import label, merge_all, seams


def label_basins(
    heights: NDArray[np.uint16],
    criterion: Criterion,
    *,
    block: Shape | None = None,
    connectivity: Connectivity = "full",
    planar: bool = False,
    min_size: int = 1,
    simplification: Criterion | None = None,
    memory: int = 2**30,
    evidence: InMemory | None = None,
) -> NDArray[Any]:
    """Objects of (z, y, x) heights: hills that no saddle shallower than the criterion's separates.

    Parameters
    ----------
    heights
        uint16; 0 is background.
    block
        Decides nothing; all in one by default.
    planar
        Every plane by itself; ids go on from plane to plane.
    min_size
        Objects of fewer voxels join the neighbour behind their best saddle; without one, they are none.
    simplification
        What blocks merge by themselves, the criterion by default; decides nothing if the criterion covers it.
    evidence
        Where to leave what the blocks found.

    Returns
    -------
    (z, y, x) ids 1, 2, … by the raster order of the objects' first voxels.
    """
    whole = Box.of_shape(heights.shape)
    blocking = Blocking(volume=heights.shape, roi=whole, block=block or heights.shape, planar=planar)
    evidence = evidence or InMemory()
    ringed = np.pad(heights, 1)
    labels = np.empty(heights.shape, np.uint32)
    indices = range(len(blocking))
    for index in indices:
        box = blocking.box(index)
        around = np.ascontiguousarray(ringed[box.grow((0,) * 3, (2,) * 3).slices])
        found = label(around, blocking, index, evidence, simplification or criterion, connectivity)
        labels[box.slices] = found
    for index in indices:
        seams(blocking, index, evidence, connectivity)
    merge_all(blocking, evidence, criterion, min_size=min_size, memory=memory)
    ids = np.empty(heights.shape, evidence.read(kinds.IDS, 0)["ids"].dtype)
    for index in indices:
        box = blocking.box(index)
        ids[box.slices] = np.take(kinds.table_of(evidence, index), labels[box.slices], mode="clip")
    return ids
