"""The two nearest distinct objects of every background voxel, exactly, one axis after the other (numba).

Squared distances add up over the axes: min over (z', y', x') = min over z' of [dz² + min over y' of [...]].
So each pass combines lines along one axis, as in Meijster 2000, but carries two (distance, id) pairs per
voxel. Two suffice: a third id in a column has two nearer ones there, and at every voxel that the column
serves the same square is added to all three. Objects further off than `limit` are left out. (A pair that
adds up to more must stay until the last pass: another column may hold the same nearest object, nearer.)

Import this module only where it is used: numba takes its time, and compiles at the first call.
"""

from __future__ import annotations

from math import exp, inf, sqrt

import numpy as np
from numba import njit
from numpy.typing import NDArray

Pair = tuple[float, int, float, int]  # squared distance and id of the nearest object, and of the next


def _offer(near: float, near_id: int, far: float, far_id: int, value: float, candidate: int) -> Pair:
    """The two best of three candidates with distinct ids; equal ids count once."""
    if candidate == near_id:
        return min(near, value), near_id, far, far_id
    if value < near:
        return value, candidate, near, near_id
    if value < far:  # also where the candidate is `far_id` itself
        return near, near_id, value, candidate
    return near, near_id, far, far_id


offer = njit(nogil=True)(_offer)


def _scan(
    ids: NDArray[np.int32],
    edge: float,
    limit: float,
    near: NDArray[np.float64],
    near_id: NDArray[np.int32],
    far: NDArray[np.float64],
    far_id: NDArray[np.int32],
) -> None:
    """The first pass: along one line of ids, 0 for none; up, then down, remembering the last two objects."""
    length = ids.shape[0]
    near[:] = inf
    near_id[:] = 0
    far[:] = inf
    far_id[:] = 0
    for direction in (1, -1):
        last, last_at, other, other_at = 0, 0, 0, 0
        for step in range(length):
            at = step if direction == 1 else length - 1 - step
            if ids[at] and ids[at] != last:
                last, other, other_at = ids[at], last, last_at
            if ids[at]:
                last_at = at
            a, i, b, j = near[at], near_id[at], far[at], far_id[at]
            for seen, seen_at in ((last, last_at), (other, other_at)):
                distance = abs(at - seen_at) * edge
                if seen and distance <= limit:
                    a, i, b, j = offer(a, i, b, j, distance * distance, seen)
            near[at], near_id[at], far[at], far_id[at] = a, i, b, j


scan = njit(nogil=True)(_scan)


def _gather(
    near: NDArray[np.float64],
    near_id: NDArray[np.int32],
    far: NDArray[np.float64],
    far_id: NDArray[np.int32],
    row: int,
    column: int,
    edge: float,
    limit: float,
    last: bool,
) -> Pair:
    """A later pass, for one voxel: the best of its column (axis 0), searched from the voxel outwards."""
    a, i, b, j = near[row, column], near_id[row, column], far[row, column], far_id[row, column]
    root = sqrt(a)
    rows = near.shape[0]
    for k in range(1, max(row, rows - 1 - row) + 1):
        step = k * edge
        square = step * step
        if square >= b or step > limit:
            break
        # What lies beyond makes a pair with the nearest so far or, if that is further off, among itself.
        if last and min(root, step) + step > limit:
            break
        for at in (row - k, row + k):
            if 0 <= at < rows and square + near[at, column] < b:
                a, i, b, j = offer(a, i, b, j, square + near[at, column], near_id[at, column])
                if square + far[at, column] < b:
                    a, i, b, j = offer(a, i, b, j, square + far[at, column], far_id[at, column])
        root = sqrt(a)
    if last and sqrt(a) + sqrt(b) > limit:
        b, j = inf, 0
    return a, i, b, j


gather = njit(nogil=True)(_gather)


def _border_term(
    ids: NDArray[np.int32],
    lower: tuple[int, int, int],
    upper: tuple[int, int, int],
    edges: tuple[float, float, float],
    limit: float,
    w0: float,
    sigma: float,
    planar: bool,
) -> NDArray[np.float32]:
    """w0 * exp(-(d1 + d2)² / 2 sigma²) of one box of `ids` (z, y, x), where they are 0 and d1 + d2 <= limit.

    Elsewhere 0. `planar`: each plane alone, two passes; otherwise a third one runs along z.
    """
    _, height, width = ids.shape
    rows, columns = upper[1] - lower[1], upper[2] - lower[2]
    first, stop = (lower[0], upper[0]) if planar else (0, ids.shape[0])
    found = np.zeros((upper[0] - lower[0], rows, columns), np.float32)
    # Pairs of one plane after the pass along x, and of all planes after that along y, in the box's columns.
    near, far = np.empty((height, width), np.float64), np.empty((height, width), np.float64)
    near_id, far_id = np.empty((height, width), np.int32), np.empty((height, width), np.int32)
    kept = 0 if planar else stop
    nears, fars = np.empty((kept, rows * columns), np.float64), np.empty((kept, rows * columns), np.float64)
    near_ids = np.empty((kept, rows * columns), np.int32)
    far_ids = np.empty((kept, rows * columns), np.int32)
    for z in range(first, stop):
        for y in range(height):
            scan(ids[z, y], edges[2], limit, near[y], near_id[y], far[y], far_id[y])
        for y in range(rows):
            for x in range(columns):
                if planar and ids[z, lower[1] + y, lower[2] + x]:
                    continue
                a, i, b, j = gather(
                    near, near_id, far, far_id, lower[1] + y, lower[2] + x, edges[1], limit, planar
                )
                if planar and j:
                    found[z - first, y, x] = w0 * exp(-((sqrt(a) + sqrt(b)) ** 2) / (2 * sigma * sigma))
                elif not planar:
                    at = y * columns + x
                    nears[z, at], near_ids[z, at], fars[z, at], far_ids[z, at] = a, i, b, j
    if not planar:
        for z in range(lower[0], upper[0]):
            for y in range(rows):
                for x in range(columns):
                    if ids[z, lower[1] + y, lower[2] + x]:
                        continue
                    at = y * columns + x
                    a, i, b, j = gather(nears, near_ids, fars, far_ids, z, at, edges[0], limit, True)
                    if j:
                        term = w0 * exp(-((sqrt(a) + sqrt(b)) ** 2) / (2 * sigma * sigma))
                        found[z - lower[0], y, x] = term
    return found


border_term = njit(nogil=True)(_border_term)
