"""Squared distance to the nearest voxel that is 0, exact, bounded, and the same in every crop that holds it.

The squared distance adds up over the axes, so one pass along each axis does (Meijster 2000). Usual
transforms compare parabolas in floating point: which of two near-tied ones is kept then depends on where
the crop begins. Here everything is an integer, so the minimum is the minimum, whatever the crop. And since
distances are bounded, a plain search of the neighbouring lines, many voxels at a time, beats parabolas.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box
from unet_core.instances.compiled import compiled
from unet_core.instances.watershed.heights import UNIT, VOXEL


def bounded_distance(
    inside: NDArray[np.bool_],
    squares: tuple[int, int, int],
    radius: int,
    *,
    within: Box | None = None,
) -> NDArray[np.int32]:
    """Squared distance of every voxel to the nearest one that is not inside, at most radius².

    Parameters
    ----------
    inside
        (z, y, x). What lies beyond the array is inside: it ends nothing.
    squares
        As `squared_edges` gives them; 0 for z where planes stand alone.
    radius
        In smallest edges.
    within
        The box of `inside` that is wanted; all by default.

    Returns
    -------
    int32 (z, y, x) of `within`, in 1 / `UNIT` of the smallest edge squared; 0 where not inside.
    """
    limit = UNIT * radius * radius
    box = within or Box.of_shape(inside.shape)
    (z, y, x), (depth, height, width) = box.lower, box.upper
    if not squares[0]:
        inside = inside[z:depth]
    # After each pass, what lies beyond the box along its axis has done its work.
    squared: NDArray[np.int32] = _along_rows(np.ascontiguousarray(inside), squares[2], limit, x, width)
    squared = _across(squared, squares[1], y, height)
    if squares[0]:
        rows, columns = squared.shape[1:]
        squared = _across(squared.reshape(1, len(squared), -1), squares[0], z, depth)
        squared = squared.reshape(-1, rows, columns)
    return squared


@compiled
def _along_rows(
    inside: NDArray[np.bool_], square: int, limit: int, first: int, stop: int
) -> NDArray[np.int32]:
    """The first pass, along x: up, then down, counting voxels since the last 0. Columns first to stop."""
    depth, height, width = inside.shape
    found = np.empty((depth, height, stop - first), np.int32)
    counts = np.empty(width, np.int32)
    far = 0  # the first count that is not below the limit
    while far * far * square < limit:
        far += 1
    for z in range(depth):
        for y in range(height):
            row, out = inside[z, y], found[z, y]
            count = far
            for x in range(width):
                count = min(count + 1, far) if row[x] else 0
                counts[x] = count
            count = far
            for x in range(width - 1, -1, -1):
                count = min(count + 1, far) if row[x] else 0
                counts[x] = min(count, counts[x])
            for x in range(stop - first):
                near = counts[first + x]
                out[x] = min(near * near * square, limit)
    return found


@compiled
def _across(squared: NDArray[np.int32], square: int, first: int, stop: int) -> NDArray[np.int32]:
    """A later pass, along y: pieces of rows at a time, outwards until no voxel of the piece can gain.

    Rows first to stop.
    """
    depth, height, width = squared.shape
    found = np.empty((depth, stop - first, width), np.int32)
    for z in range(depth):
        for left in range(0, width, 64):
            right = min(left + 64, width)
            for y in range(first, stop):
                out = found[z, y - first, left:right]
                out[:] = squared[z, y, left:right]
                most = out.max()
                k = 1
                while k < height and k * k * square < most:
                    added = np.int32(k * k * square)
                    for at in (y - k, y + k):
                        if 0 <= at < height:
                            other = squared[z, at, left:right]
                            for x in range(right - left):
                                out[x] = min(out[x], other[x] + added)
                    k += 1
                    if k & 3 == 0:
                        most = out.max()
    return found


@compiled
def add_root(total: NDArray[np.int32], squared: NDArray[np.int32]) -> None:
    """Add distances in `VOXEL`s to a sum."""
    sums, squares = total.reshape(-1), squared.reshape(-1)
    for k in range(sums.size):
        sums[k] += np.int32(np.sqrt(np.float64(squares[k] * (VOXEL * VOXEL // UNIT))))


@compiled
def finish(
    total: NDArray[np.int32], levels: int, inside: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> NDArray[np.uint16]:
    """The mean of so many distances, a quarter of p in heights and 1; 0 where nothing is wanted."""
    found = np.zeros(total.shape, np.uint16)
    flat, sums, p, wanted = found.reshape(-1), total.reshape(-1), inside.reshape(-1), mask.reshape(-1)
    for k in range(flat.size):
        if wanted[k]:
            flat[k] = 1 + sums[k] // levels + (p[k] >> 2)
    return found
