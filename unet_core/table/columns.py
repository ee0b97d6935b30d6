"""From exact sums to what people read: the columns of finished objects.

Moments are taken about the middle of each object while they are integers, so that nothing cancels out where
numbers become floating-point ones: a nucleus far from the origin has the axes that it has at the origin.

Axes are those of the ellipse, or ellipsoid, with the object's second moments, as skimage's
`axis_major_length`: 4 sqrt(c) in a plane and sqrt(20 c) in a volume, c being a principal second moment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.table.exact import Wide, as_float, minus, plus, times, wide
from unet_core.table.plan import TablePlan

_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def finished(rows: NDArray[Any], blocks: NDArray[np.uint32], plan: TablePlan) -> NDArray[Any]:
    """The columns of objects whose sums are complete: one row for each of `rows` (`layout.object_row`).

    `blocks`: for each, how many shards hold voxels of it.
    """
    count = rows["voxels"].astype(np.float64)
    size = np.asarray(plan.voxel_size, np.float64)
    centre, second = _central(rows)
    covariance = second * [size[i] * size[j] for i, j in _PAIRS]
    columns: dict[str, NDArray[Any]] = {"id": rows["id"]}
    if plan.classes:
        columns["class"] = rows["classes"].argmax(axis=1).astype(np.uint8)
    columns["voxels"] = rows["voxels"]
    columns["volume"] = count * np.prod(size[1:] if plan.planar else size)
    for axis, name in enumerate("zyx"):
        columns[f"{name}0"], columns[f"{name}1"] = rows["lower"][:, axis], rows["upper"][:, axis]
        columns[name] = centre[:, axis]
        columns[f"{name}_physical"] = plan.origin[axis] + centre[:, axis] * size[axis]
    columns |= _axes(covariance, planar=plan.planar)
    for place, (i, j) in enumerate(_PAIRS):
        columns[f"moment_{'zyx'[i]}{'zyx'[j]}"] = covariance[:, place]
    for place, channel in enumerate(plan.channels):
        columns |= _intensities(rows, place, channel, plan.quanta[place])
    columns["touches_border"] = _touches(rows, plan)
    columns["blocks"] = blocks
    values = np.empty(len(rows), [(name, columns[name].dtype) for name in plan.columns])
    for name in plan.columns:
        values[name] = columns[name]
    return values


def _central(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centroids (n, 3) and second moments about them (n, 6), in voxels."""
    count = rows["voxels"]
    n, size = wide(count), count.astype(np.float64)
    pivot = (rows["lower"].astype(np.int64) + rows["upper"]) // 2
    moments = rows["moments"]
    near = np.empty((len(rows), 3))
    for axis in range(3):
        near[:, axis] = as_float(minus(moments[:, axis], times(n, pivot[:, axis]))) / size
    second = np.empty((len(rows), 6))
    for place, (i, j) in enumerate(_PAIRS):
        about = _about(moments[:, 3 + place], moments[:, i], moments[:, j], n, pivot[:, i], pivot[:, j])
        second[:, place] = as_float(about) / size - near[:, i] * near[:, j]
    return pivot + near, second


def _about(
    product: Wide, one: Wide, other: Wide, n: Wide, a: NDArray[np.int64], b: NDArray[np.int64]
) -> Wide:
    """sum (u - a)(v - b), from the sums of u v, u and v over n voxels."""
    crossed = plus(times(one, b), times(other, a))
    return plus(minus(product, crossed), times(times(n, a), b))


def _axes(covariance: NDArray[np.float64], *, planar: bool) -> dict[str, NDArray[np.float64]]:
    used = [0, 3, 4, 3, 1, 5, 4, 5, 2] if not planar else [1, 5, 5, 2]
    side = 2 if planar else 3
    principal = np.linalg.eigvalsh(covariance[:, used].reshape(-1, side, side))
    lengths = np.sqrt((16.0 if planar else 20.0) * np.maximum(principal, 0.0))
    names = ("minor", "major") if planar else ("minor", "middle", "major")
    return {f"axis_{name}": lengths[:, place] for place, name in enumerate(names)}


def _intensities(
    rows: NDArray[Any], place: int, channel: int, quantum: float
) -> dict[str, NDArray[np.float64]]:
    n, size = wide(rows["voxels"]), rows["voxels"].astype(np.float64)
    total, squares = rows["intensities"][:, place, 0], rows["intensities"][:, place, 1]
    pivot = np.rint(as_float(total) / size).astype(np.int64)
    near = as_float(minus(total, times(n, pivot))) / size
    square = as_float(_about(squares, total, total, n, pivot, pivot)) / size
    usable = rows["unfit"][:, place] == 0
    deviation = np.sqrt(np.maximum(square - near * near, 0.0))
    least, most = rows["extremes"][:, place, 0], rows["extremes"][:, place, 1]
    some = least <= most
    return {
        f"mean_{channel}": np.where(usable, (pivot + near) * quantum, np.nan),
        f"std_{channel}": np.where(usable, deviation * quantum, np.nan),
        f"min_{channel}": np.where(some, least, np.nan),
        f"max_{channel}": np.where(some, most, np.nan),
    }


def _touches(rows: NDArray[Any], plan: TablePlan) -> NDArray[np.bool_]:
    touches = np.zeros(len(rows), bool)
    for axis in range(1 if plan.planar else 0, 3):
        touches |= rows["lower"][:, axis] <= plan.extent.lower[axis]
        touches |= rows["upper"][:, axis] >= plan.extent.upper[axis]
    return touches
