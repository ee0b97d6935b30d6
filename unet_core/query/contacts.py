"""Which objects an object touches, and with how many voxel faces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box


def contacts(labels: NDArray[Any], box: Box, identity: int) -> NDArray[np.uint64]:
    """Faces between an object's voxels in `box` and other objects' voxels around them.

    Parameters
    ----------
    labels
        (z, y, x) ids of the box and of one voxel around it, where the volume goes on.
    box
        Within `labels`. Parts of an object in boxes apart have different faces: counts add up.

    Returns
    -------
    (n, 3): another object's id, the axis across which it is met (0 for z), and how many faces.
    """
    inside = labels[box.slices] == identity
    found = []
    for axis in range(3):
        for step in (-1, 1):
            lower, upper = list(box.lower), list(box.upper)
            lower[axis] += step
            upper[axis] += step
            # Where the volume ends there is no voxel beyond: those of the last plane have no face there.
            cut_low, cut_high = max(-lower[axis], 0), max(upper[axis] - labels.shape[axis], 0)
            lower[axis] += cut_low
            upper[axis] -= cut_high
            mine = np.moveaxis(inside, axis, 0)[cut_low : inside.shape[axis] - cut_high]
            beyond = np.moveaxis(labels[tuple(map(slice, lower, upper))], axis, 0)
            ids, faces = np.unique(beyond[mine], return_counts=True)
            other = (ids != 0) & (ids != identity)
            count = int(other.sum())
            found.append(
                np.stack(
                    [
                        ids[other].astype(np.uint64),
                        np.full(count, axis, np.uint64),
                        faces[other].astype(np.uint64),
                    ],
                    axis=-1,
                )
            )
    return np.concatenate(found)
