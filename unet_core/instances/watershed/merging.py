"""The whole volume's merging: pieces to basins, basins to objects.

    1. pieces of one basin are joined
    2. pairs, best saddle first: joined where the criterion holds for their peaks
    3. pairs, best saddle first: joined where one of the two is smaller than the smallest object wanted;
       what is smaller still has no neighbour, and is no object

Kruskal's algorithm, twice: the pairs' order is total and made of voxels alone, so the result does not depend
on blocks. Memory is a few bytes per node; the edges come in ranges from disk.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unet_core.instances.compiled import Integer, compiled
from unet_core.instances.watershed.criterion import Criterion
from unet_core.instances.watershed.simplify import is_one
from unet_core.instances.watershed.spill import EdgeSpill

NODES_MOST = 2**32 - 1


def merge(
    peak: NDArray[np.uint16],
    edges: EdgeSpill,
    criterion: Criterion,
    *,
    min_size: int,
    sizes: Callable[[], NDArray[np.uint32]],
) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """The component of every node.

    Parameters
    ----------
    peak
        One height per node; becomes the component's at its root.
    edges
        Between nodes, numbered from 0.
    min_size
        In voxels.
    sizes
        Gives the voxels of each node, an array that may be changed; asked for where it is needed.

    Returns
    -------
    The root of each node, a node itself; and for each root whether it is an object: large enough.
    """
    parent = np.arange(len(peak), dtype=np.uint32)
    for batch in edges.joined():
        _join(parent, peak, batch.a, batch.b)
    for batch in edges.ranges():
        _merge(
            parent,
            peak,
            batch.a,
            batch.b,
            batch.saddle,
            criterion.persistence,
            criterion.prominence,
            criterion.depth,
        )
    if min_size <= 1:
        _flatten(parent)
        return parent, np.ones(len(peak), np.bool_)
    enough = np.uint32(min(min_size, 2**32 - 1))
    voxels = sizes()
    _gather(parent, voxels, enough)
    for batch in edges.ranges():
        _merge_small(parent, voxels, batch.a, batch.b, enough)
    _flatten(parent)
    return parent, voxels >= enough


@compiled
def _root(parent: NDArray[np.uint32], node: Integer) -> Integer:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return np.uint32(node)


@compiled
def _join(
    parent: NDArray[np.uint32], peak: NDArray[np.uint16], a: NDArray[np.uint32], b: NDArray[np.uint32]
) -> None:
    for k in range(a.size):
        one, two = _root(parent, a[k]), _root(parent, b[k])
        parent[two] = one
        peak[one] = max(peak[one], peak[two])


@compiled
def _merge(
    parent: NDArray[np.uint32],
    peak: NDArray[np.uint16],
    a: NDArray[np.uint32],
    b: NDArray[np.uint32],
    saddle: NDArray[np.uint64],
    persistence: float,
    prominence: float,
    depth: int,
) -> None:
    for k in range(a.size):
        high, low = _root(parent, a[k]), _root(parent, b[k])
        if high == low:
            continue
        if peak[high] < peak[low]:
            high, low = low, high
        at = np.int64(saddle[k] >> np.uint64(48))
        if is_one(at, np.int64(peak[low]), np.int64(peak[high]), persistence, prominence, depth):
            parent[low] = high


@compiled
def _gather(parent: NDArray[np.uint32], voxels: NDArray[np.uint32], enough: Integer) -> None:
    """Sizes of the components at their roots, up to `enough`."""
    for k in range(parent.size):
        voxels[k] = min(voxels[k], enough)
    for k in range(parent.size):
        root = _root(parent, np.uint32(k))
        if root != k:
            voxels[root] = min(np.int64(voxels[root]) + np.int64(voxels[k]), np.int64(enough))


@compiled
def _merge_small(
    parent: NDArray[np.uint32],
    voxels: NDArray[np.uint32],
    a: NDArray[np.uint32],
    b: NDArray[np.uint32],
    enough: Integer,
) -> None:
    for k in range(a.size):
        one, two = _root(parent, a[k]), _root(parent, b[k])
        if one != two and (voxels[one] < enough or voxels[two] < enough):
            parent[two] = one
            voxels[one] = min(np.int64(voxels[one]) + np.int64(voxels[two]), np.int64(enough))


@compiled
def _flatten(parent: NDArray[np.uint32]) -> None:
    for k in range(parent.size):
        parent[k] = _root(parent, np.uint32(k))
