"""Union-find over arrays (numba): which nodes are one, at memory bandwidth, with one integer per node.

Union by the smaller index, so that a root is the first of its set; paths are halved as they are walked
(Tarjan and van Leeuwen 1984).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.instances.compiled import compiled


def fresh(count: int) -> NDArray[Any]:
    """`count` nodes, each a set of its own; 4 bytes each where that is enough."""
    return np.arange(count, dtype=_kind(count))


def _kind(count: int) -> np.dtype[Any]:
    # Signed where 32 bits do not do: an index that is now int64, now uint64 is a float to numba.
    return np.dtype(np.uint32 if count < 2**32 else np.int64)


@compiled
def root(parents: NDArray[Any], node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@compiled
def unite(parents: NDArray[Any], here: NDArray[np.int64], there: NDArray[np.int64]) -> None:
    """Make the sets of here[i] and there[i] one, for all i."""
    for i in range(here.size):
        a, b = root(parents, here[i]), root(parents, there[i])
        if a < b:
            parents[b] = a
        elif b < a:
            parents[a] = b


@compiled
def number(parents: NDArray[Any]) -> int:
    """Replace, in place, every node by the number of its set: 0, 1, ... in order of the sets' first nodes."""
    count = 0
    for node in range(parents.size):
        # A parent comes before its child, so it holds its number already.
        if parents[node] == node:
            parents[node] = count
            count += 1
        else:
            parents[node] = parents[parents[node]]
    return count
