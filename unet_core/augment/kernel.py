"""The innermost loop of `warp`, in numba. Import this only where it is used: it compiles when first called.

scipy's `map_coordinates` needs an array of three float64 coordinates per voxel, filled before, and took
5 to 10 times as long together with that (156³ voxels, one core).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


def _sample(
    data: NDArray[np.float32],
    result: NDArray[np.float32],
    origin: NDArray[np.float64],
    matrix: NDArray[np.float64],
    vectors: NDArray[np.float64],
    along_z: NDArray[np.float64],
    along_y: NDArray[np.float64],
    along_x: NDArray[np.float64],
    linear: bool,
) -> None:
    channels, depth, height, width = data.shape
    _, nodes_z, nodes_y, nodes_x = vectors.shape
    plane = np.empty((3, nodes_y, nodes_x))
    row = np.empty((3, nodes_x))
    for k in range(result.shape[1]):
        plane[:] = 0.0  # the grid's vectors at this z, then at this y: only x is left to the innermost loop
        for node in range(nodes_z):
            plane += vectors[:, node] * along_z[k, node]
        for j in range(result.shape[2]):
            row[:] = 0.0
            for node in range(nodes_y):
                row += plane[:, node] * along_y[j, node]
            start_z = origin[0] + matrix[0, 0] * k + matrix[0, 1] * j
            start_y = origin[1] + matrix[1, 0] * k + matrix[1, 1] * j
            start_x = origin[2] + matrix[2, 0] * k + matrix[2, 1] * j
            for i in range(result.shape[3]):
                z = start_z + matrix[0, 2] * i
                y = start_y + matrix[1, 2] * i
                x = start_x + matrix[2, 2] * i
                for node in range(nodes_x):
                    weight = along_x[i, node]
                    z += row[0, node] * weight
                    y += row[1, node] * weight
                    x += row[2, node] * weight
                z = min(max(z, 0.0), depth - 1.0)
                y = min(max(y, 0.0), height - 1.0)
                x = min(max(x, 0.0), width - 1.0)
                if not linear:
                    for c in range(channels):
                        result[c, k, j, i] = data[c, int(z + 0.5), int(y + 0.5), int(x + 0.5)]
                    continue
                z0, y0, x0 = int(z), int(y), int(x)
                y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
                fz, fy, fx = np.float32(z - z0), np.float32(y - y0), np.float32(x - x0)
                for c in range(channels):
                    near = data[c, z0]
                    above = near[y0, x0] + (near[y0, x1] - near[y0, x0]) * fx
                    below = near[y1, x0] + (near[y1, x1] - near[y1, x0]) * fx
                    value = above + (below - above) * fy
                    if fz > 0:  # planes that stay planes need one of them
                        far = data[c, min(z0 + 1, depth - 1)]
                        above = far[y0, x0] + (far[y0, x1] - far[y0, x0]) * fx
                        below = far[y1, x0] + (far[y1, x1] - far[y1, x0]) * fx
                        value += (above + (below - above) * fy - value) * fz
                    result[c, k, j, i] = value


sample = njit(nogil=True, error_model="numpy")(_sample)
