"""What one block can merge by itself, without changing what the whole volume's merging gives.

The whole's merging (`merging`) goes through the pairs, best saddle first, and joins two components where the
criterion holds. A piece B may be joined to A beforehand if

    * nothing beyond the block touches B: all its pairs are known here, and its peak is its own;
    * this pair is B's best;
    * A's peak, as far as it is known here, is not below B's;
    * the criterion holds for the saddle, B's peak and what is known of A's.

Until that pair comes, B stands alone in the whole's merging. Then it is joined to A's component: that holds A
and may hold more, but its peak is not lower, so B's is the lower of the two, and the criterion holds with a
higher peak, too. Nothing before that pair can notice: B has no better one, and A gains no height. Of what A
and B are now the same may be said, so by induction any number of such steps is exact. A criterion that covers
the one used here would have joined them, too: what was simplified finely can be merged with other numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unet_core.instances.compiled import Integer, compiled
from unet_core.instances.watershed.criterion import Criterion
from unet_core.instances.watershed.saddles import Pairs, grown, height_of, slot_of


class Simplified(NamedTuple):
    """`group[i]` is the number, from 0, of what piece i belongs to now; `pairs` are those of the groups."""

    group: NDArray[np.int64]
    pairs: Pairs


def simplify(
    peak: NDArray[np.uint16], closed: NDArray[np.bool_], pairs: Pairs, criterion: Criterion
) -> Simplified:
    """Merge within a block what can be.

    Parameters
    ----------
    peak
        Height of each piece's peak; of an exit, the height of the voxel that it leaves to: not below any
        of the piece.
    closed
        Whether all pairs of the piece are in `pairs`, and its peak is its own.
    pairs
        Numbered from 1, best first.
    """
    parent = _contract(
        peak.astype(np.int64),
        closed,
        pairs.a,
        pairs.b,
        height_of(pairs.saddle),
        criterion.persistence,
        criterion.prominence,
        criterion.depth,
    )
    roots, group = np.unique(parent, return_inverse=True)
    # Groups in the order of their first pieces, which is that of their first voxels.
    earliest = np.full(len(roots), len(parent), np.int64)
    np.minimum.at(earliest, group, np.arange(len(parent)))
    order = np.argsort(earliest)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    group = rank[group]
    a, b = group[pairs.a - 1] + 1, group[pairs.b - 1] + 1
    return Simplified(group, Pairs(*_combined(a, b, pairs.saddle, pairs.area)))


@compiled
def is_one(
    saddle: Integer, lower: Integer, higher: Integer, persistence: float, prominence: float, depth: int
) -> bool:
    """Whether the saddle is too shallow to separate two peaks.

    If so, it is also where the saddle is higher, the lower peak lower or the higher peak higher: all that is
    merged in pieces rests on that.
    """
    missing = lower - saddle
    return bool(missing <= depth or missing <= persistence * lower or missing <= prominence * higher)


@compiled
def find(parent: NDArray[np.int64], node: Integer) -> Integer:
    """The root of a node's tree; halves the path on the way."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def _contract(
    peak: NDArray[np.int64],
    closed: NDArray[np.bool_],
    a: NDArray[np.uint32],
    b: NDArray[np.uint32],
    saddle: NDArray[np.uint16],
    persistence: float,
    prominence: float,
    depth: int,
) -> NDArray[np.int64]:
    parent = np.arange(peak.size)
    # Closed, and none of its pairs was passed over: the next pair is its best.
    free = closed.copy()
    for k in range(a.size):
        high, low = find(parent, np.int64(a[k]) - 1), find(parent, np.int64(b[k]) - 1)
        if high == low:
            continue
        if peak[high] < peak[low] or (peak[high] == peak[low] and not free[low]):
            high, low = low, high
        if free[low] and is_one(np.int64(saddle[k]), peak[low], peak[high], persistence, prominence, depth):
            parent[low] = high
        else:
            free[low] = free[high] = False
    for k in range(parent.size):
        parent[k] = find(parent, k)
    return parent


@compiled
def _combined(
    a: NDArray[np.int64], b: NDArray[np.int64], saddle: NDArray[np.uint64], area: NDArray[np.uint32]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint32]]:
    """Pairs of different groups, each once with its best saddle and all its area; in the order they came."""
    keys, place = np.zeros(64, np.uint64), np.zeros(64, np.uint64)
    unused = np.zeros(64, np.uint32)
    low, high = np.empty(a.size, np.uint32), np.empty(a.size, np.uint32)
    best, total = np.empty(a.size, np.uint64), np.zeros(a.size, np.uint32)
    count = 0
    for k in range(a.size):
        if a[k] == b[k]:
            continue
        key = np.uint64(min(a[k], b[k])) << np.uint64(32) | np.uint64(max(a[k], b[k]))
        slot = slot_of(keys, key)
        if keys[slot] == 0:
            keys[slot], place[slot] = key, count
            low[count], high[count] = min(a[k], b[k]), max(a[k], b[k])
            best[count] = saddle[k]
            count += 1
        total[np.int64(place[slot])] += area[k]
        if 2 * count > keys.size:
            keys, place, unused = grown(keys, place, unused)
    return low[:count].copy(), high[:count].copy(), best[:count].copy(), total[:count].copy()
