"""The heights of one block and its ring, from the stored answer of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box
from unet_core.instances.watershed.settings import WatershedPlan

_RING = (1, 1, 1)


def heights_around(
    box: Box,
    roi: Box,
    plan: WatershedPlan,
    foreground: Sequence[int],
    threshold: float | None,
    *,
    probabilities: Callable[[Box], NDArray[np.uint8]],
    classes: Callable[[Box], NDArray[np.uint8]],
) -> NDArray[np.uint16]:
    """Heights of a block and of one voxel around it, 0 beyond the ROI.

    Parameters
    ----------
    foreground
        Classes that are the inside of objects; with `plan.boundary` they are what is labelled.
    threshold
        Least probability of what is labelled; None: the most likely class decides.
    probabilities, classes
        Give (class, z, y, x) times 255, and (z, y, x), of a box inside the ROI.

    Returns
    -------
    uint16 (z + 2, y + 2, x + 2).
    """
    ring = box.grow(_RING, _RING)
    seen = ring.intersect(roi)
    read = ring.grow(plan.heights.reach, plan.heights.reach).intersect(roi)
    p = probabilities(read)
    inside = _sum_of(p, foreground)
    labelled = (*foreground, *plan.boundary)
    mask = np.zeros(read.shape, bool)
    within = seen.relative_to(read.lower)
    if threshold is None:
        table = np.zeros(256, bool)
        table[list(labelled)] = True
        mask[within.slices] = table[classes(seen)]
    else:
        mask = _sum_of(p, labelled) >= ceil(threshold * 255)
    heights = np.zeros(ring.shape, np.uint16)
    heights[seen.relative_to(ring.lower).slices] = plan.heights.of(inside, mask, within)
    return heights


def _sum_of(probabilities: NDArray[np.uint8], classes: Sequence[int]) -> NDArray[np.uint8]:
    """The probability of any of the classes; each is rounded, so the sum may exceed 255 by a little."""
    first, *others = classes
    total: NDArray[Any] = probabilities[first]
    for other in others:
        total = np.minimum(total, np.uint8(255) - probabilities[other]) + probabilities[other]
    return np.ascontiguousarray(total)
