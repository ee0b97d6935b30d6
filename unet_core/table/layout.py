"""How partial sums lie in memory and in files: one row per object, one per fragment.

The moments of an object are the sums over its voxels of z, y, x, zz, yy, xx, zy, zx, yx, in voxels of the
whole volume. Wide numbers are 128-bit integers: see `exact`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MOMENTS = 9
INTENSITY_LIMIT = 2**32  # intensities are integers of smaller size: 32 bits and a sign
COORDINATE_LIMIT = 2**24

# Voxels of one object in one chunk; `chunk` counts the chunks of the label array in raster order.
FRAGMENT = np.dtype([("id", "<u8"), ("chunk", "<u8"), ("voxels", "<u4")])


def object_row(*, kinds: int, channels: int) -> np.dtype[Any]:
    """One object's partial sums, with the voxels of `kinds` classes and the intensities of `channels`.

    `lower`, `upper`: its bounding box, half-open. `intensities`: sums of the values, and of their squares, in
    quanta. `extremes`: least and greatest value. `unfit`: values that are no usable numbers.
    """
    return np.dtype(
        [
            ("id", "<u8"),
            ("voxels", "<u8"),
            ("lower", "<i4", (3,)),
            ("upper", "<i4", (3,)),
            ("moments", "<u8", (MOMENTS, 2)),
            ("classes", "<u8", (kinds,)),
            ("intensities", "<u8", (channels, 2, 2)),
            ("extremes", "<f8", (channels, 2)),
            ("unfit", "<u8", (channels,)),
        ]
    )
