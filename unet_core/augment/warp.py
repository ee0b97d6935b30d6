"""Voxels of a volume at places between them, found while they are needed: no array of coordinates.

    place of output voxel p = origin + matrix @ p + displacement(p)        in voxels of `data`

A kernel in numba, without the interpreter lock (`kernel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unet_core.augment.elastic import Elastic
from unet_core.geometry import Shape

T = TypeVar("T", bound=np.generic)


def warp(
    data: NDArray[T],
    *,
    shape: Shape,
    origin: NDArray[np.float64],
    matrix: NDArray[np.float64],
    elastic: Elastic,
    offset: Sequence[int],
    linear: bool,
) -> NDArray[T]:
    """Sample (channel, z, y, x) data at `shape` places.

    Parameters
    ----------
    shape
        z, y, x of the result.
    origin, matrix
        The affine part: where output voxel 0 lies in `data`, and the steps from one to the next.
    elastic, offset
        The displacements, and which of their voxels output voxel 0 is.
    linear
        Linear interpolation; else the nearest voxel. Places outside `data` take its nearest voxel.

    Returns
    -------
    (channel, *shape), of the data's type, contiguous.
    """
    # Here, because numba takes half a second, and seconds to compile when it is first called.
    from unet_core.augment.kernel import sample

    result = np.empty((len(data), *shape), data.dtype)
    z, y, x = (spline[o : o + n] for spline, o, n in zip(elastic.splines, offset, shape))
    sample(np.ascontiguousarray(data), result, origin, matrix, elastic.vectors, z, y, x, linear)
    return result
