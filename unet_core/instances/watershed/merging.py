"""The whole volume's merging: pieces to basins, basins to objects.

    1. pieces of one basin are joined
    2. pairs, best saddle first: joined where the criterion holds for their peaks
    3. pairs, best saddle first: joined where one of the two is smaller than the smallest object wanted;
       what is smaller still has no neighbour, and is no object

Kruskal's algorithm, twice: the pairs' order is total and made of voxels alone, so the result does not depend
on blocks. Memory is a few bytes per node; the edges come in ranges from disk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unet_core.instances.compiled import Integer, compiled
from unet_core.instances.watershed.criterion import Criterion
from unet_core.instances.watershed.simplify import is_one
from unet_core.instances.watershed.spill import EdgeSpill


class Merging:
    """Components of nodes, numbered from 0.

    Parameters
    ----------
    peak
        One height per node; kept, and changed.
    """

    def __init__(self, peak: NDArray[np.uint16]) -> None:
        self._parent = np.arange(len(peak), dtype=np.uint32)
        self._peak = peak

    def join(self, a: NDArray[np.uint32], b: NDArray[np.uint32]) -> None:
        """Pairs of nodes that are one basin."""
        _join(self._parent, self._peak, a, b)

    def merge(self, edges: EdgeSpill, criterion: Criterion) -> None:
        """Join what the criterion makes one."""
        numbers = (criterion.persistence, criterion.prominence, criterion.depth)
        for batch in edges.ranges():
            _merge(self._parent, self._peak, batch.a, batch.b, batch.saddle, *numbers)

    def merge_small(self, edges: EdgeSpill, sizes: NDArray[np.uint32], min_size: int) -> NDArray[np.bool_]:
        """Join components of fewer voxels to their best neighbours; which of the roots are large enough now.

        `sizes`: voxels of each node; changed.
        """
        enough = np.uint32(min(min_size, 2**32 - 1))
        _gather(self._parent, sizes, enough)
        for batch in edges.ranges():
            _merge_small(self._parent, sizes, batch.a, batch.b, enough)
        return sizes >= enough

    def roots(self) -> NDArray[np.uint32]:
        """The root of each node's component, a node itself."""
        _flatten(self._parent)
        return self._parent


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
