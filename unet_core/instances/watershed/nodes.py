"""What the merge of a watershed counts as nodes: labels that stay in their block, for they hold a peak.

A label that leaves its block is a part of the one it leads to, and no node: where heights rise through faces
that is nearly all of them. Only where a way goes on beyond what its block could see (`exits`) is the label at
the end of sight a node, too, joined to where its own block says that it leads.

    nodes:   labels that stay, block by block | labels at the end of some block's sight
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unet_core.instances.blocking import Blocking
from unet_core.instances.evidence import Arrays
from unet_core.instances.watershed.exits import offset_of

_SHIFT = np.uint64(32)


class Nodes:
    """The numbers of nodes; memory does not grow with what leaves.

    Parameters
    ----------
    staying
        int64, of each block: how many of its labels stay.
    open_
        uint64 keys of labels at the end of sight (`keys_of`), any order, repeated or not.
    """

    def __init__(self, blocking: Blocking, staying: NDArray[np.int64], open_: NDArray[np.uint64]) -> None:
        self._blocking, self._staying = blocking, staying
        self._starts = np.concatenate([[0], np.cumsum(staying)])
        self._open = np.unique(open_)

    def __len__(self) -> int:
        return int(self._starts[-1]) + len(self._open)

    def staying(self, index: int) -> slice:
        """The nodes of the labels of a block that stay."""
        return slice(int(self._starts[index]), int(self._starts[index + 1]))

    def named(
        self, index: int, found: Arrays, end: str, rows: slice | NDArray[np.int64] = slice(None)
    ) -> NDArray[np.uint32]:
        """Nodes of what the columns `end` and `end`_block of a block's seams name, in some rows."""
        block = _around(self._blocking, index)[found[f"{end}_block"][rows]]
        order = found[end][rows].astype(np.int64)
        nodes = self._starts[block] + order
        leaves = order >= self._staying[block]
        keys = block[leaves].astype(np.uint64) << _SHIFT | order[leaves].astype(np.uint64)
        nodes[leaves] = self._starts[-1] + np.searchsorted(self._open, keys)
        return nodes.astype(np.uint32)

    def of_labels(self, index: int, found: Arrays) -> NDArray[np.uint32]:
        """The node that each label of a block is, or is a part of."""
        own = self.staying(index)
        nodes = np.empty(own.stop - own.start + len(found["leaves"]), np.uint32)
        nodes[stay(found)] = np.arange(own.start, own.stop, dtype=np.uint32)
        nodes[found["leaves"].astype(np.int64) - 1] = self.named(index, found, "to")
        return nodes

    def joined(self, index: int, found: Arrays) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Pairs of nodes that are one basin: labels of a block at the end of some sight, where they lead."""
        low, high = (np.searchsorted(self._open, np.uint64(i) << _SHIFT) for i in (index, index + 1))
        order = (self._open[low:high] & np.uint64(2**32 - 1)).astype(np.int64)
        leads = self.named(index, found, "to", order - self._staying[index])
        return (self._starts[-1] + np.arange(low, high)).astype(np.uint32), leads


@lru_cache(maxsize=1)  # a block is asked for several columns in turn
def _around(blocking: Blocking, index: int) -> NDArray[np.int64]:
    """Numbers of the blocks around one, by code; -1 where none is."""
    there = [blocking.neighbour(index, offset_of(code)) for code in range(27)]
    return np.array([-1 if block is None else block for block in there], np.int64)


def keys_of(blocking: Blocking, index: int, found: Arrays) -> NDArray[np.uint64]:
    """Keys, made of block and position, of what a block's seams leave open."""
    block = _around(blocking, index)[found["open_block"]]
    keys: NDArray[np.uint64] = block.astype(np.uint64) << _SHIFT | found["open"]
    return keys


def stay(found: Arrays) -> NDArray[np.bool_]:
    """Which labels of a block stay in it."""
    mask = np.ones(int(found["staying"][0]) + len(found["leaves"]), np.bool_)
    mask[found["leaves"].astype(np.int64) - 1] = False
    return mask
