"""Which local labels are one object, which objects stay, and what their ids are: once for the whole volume.

Only labels on faces between blocks ("nodes") are held all at once: 8 bytes each, and 16 bytes for each set of
them. All others are seen one row of blocks at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.instances import union_find
from unet_core.instances.blocking import OFFSETS, Blocking
from unet_core.instances.compiled import compiled
from unet_core.instances.evidence import Arrays, Evidence
from unet_core.instances.kinds import IDS, JOINED, MERGED, OBJECTS, SEAMS
from unet_core.instances.ranking import Ranking, id_type, rows_of_blocks

_NEVER = np.uint64(2**64 - 1)  # no voxel


@dataclass(frozen=True)
class Nodes:
    """The labels on faces between blocks: those of block b are labels[starts[b]:starts[b + 1]], ascending."""

    labels: NDArray[np.uint32]
    starts: NDArray[np.int64]

    @classmethod
    def read(cls, blocking: Blocking, evidence: Evidence, kind: str = SEAMS) -> Nodes:
        indices = range(len(blocking))
        counts = [len(seams["touching"]) for seams in evidence.read_all(kind, indices)]
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        labels = np.empty(starts[-1], np.uint32)
        for index, seams in zip(indices, evidence.read_all(kind, indices)):
            labels[starts[index] : starts[index + 1]] = seams["touching"]
        return cls(labels, starts)

    def of(self, index: int) -> slice:
        """The nodes of one block."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def find(self, index: int, labels: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The nodes that labels of a block are."""
        part = self.of(index)
        found: NDArray[np.int64] = np.searchsorted(self.labels[part], labels) + part.start
        return found


def pairs(
    blocking: Blocking, evidence: Evidence, kind: str = SEAMS
) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
    """(block, lower neighbour, its pairs) of all seams, in order of the blocks."""
    indices = range(len(blocking))
    for index, seams in zip(indices, evidence.read_all(kind, indices)):
        numbers = seams["offset"]
        for number in np.unique(numbers):
            there = blocking.neighbour(index, OFFSETS[number])
            if there is not None:
                chosen = numbers == number
                yield index, there, {name: seams[name][chosen] for name in ("here", "there", "area")}


def joined_sets(
    blocking: Blocking, evidence: Evidence, nodes: Nodes, kind: str = SEAMS
) -> tuple[NDArray[Any], int]:
    """The number of every node's set, from 0, and how many sets there are."""
    parents = union_find.fresh(len(nodes.labels))
    for index, there, found in pairs(blocking, evidence, kind):
        union_find.unite(parents, nodes.find(index, found["here"]), nodes.find(there, found["there"]))
    return parents, union_find.number(parents)


def merge(blocking: Blocking, evidence: Evidence, *, min_size: int = 1) -> int:
    """Decide all ids and leave them as evidence; returns the number of objects, which is the largest id.

    `min_size`: objects of fewer voxels become background.
    """
    nodes = Nodes.read(blocking, evidence)
    sets, count = joined_sets(blocking, evidence, nodes)
    size, first = np.zeros(count, np.uint64), np.full(count, _NEVER)
    ranking = Ranking(blocking)
    indices = range(len(blocking))
    for index, objects in zip(indices, evidence.read_all(OBJECTS, indices)):
        own = nodes.of(index)
        add_up(sets[own], nodes.labels[own], objects["size"], objects["first"], size, first)
        ranking.count(objects["first"][_inner(objects, nodes.labels[own], min_size)])
    first[size < min_size] = _NEVER
    ranking.count(first[first != _NEVER])
    largest, starts = ranking.total, ranking.starts()
    kind = id_type(largest)
    ids = size  # its memory serves again
    ids[:] = 0
    for row in rows_of_blocks(blocking):
        objects_in_row = evidence.read_all(OBJECTS, row)
        blocks = [_begins(o, nodes, sets, first, i, min_size) for i, o in zip(row, objects_in_row)]
        found = ranking.ids(np.concatenate([block.first for block in blocks]), starts)
        for index, block in zip(row, blocks):
            mine, found = found[: len(block.first)], found[len(block.first) :]
            table = np.zeros(block.labels + 1, kind)
            table[block.inner] = mine[: len(block.inner)]
            ids[block.sets] = mine[len(block.inner) :]
            evidence.write(IDS, index, {"ids": table})
    for index in indices:
        own = nodes.of(index)
        evidence.write(JOINED, index, {"labels": nodes.labels[own], "ids": ids[sets[own]].astype(kind)})
    evidence.write(MERGED, 0, {"largest": np.array([largest], np.uint64)})
    return largest


def _inner(objects: Arrays, nodes: NDArray[np.uint32], min_size: int) -> NDArray[np.bool_]:
    """Of all labels of a block, those that lie on no face and are large enough."""
    kept: NDArray[np.bool_] = objects["size"] >= min_size
    kept[nodes.astype(np.int64) - 1] = False
    return kept


@dataclass(frozen=True)
class _Beginnings:
    """The objects that begin in one block: `inner` labels, then `sets` of nodes; `first` of all of them."""

    labels: int
    inner: NDArray[np.int64]
    sets: NDArray[Any]
    first: NDArray[np.uint64]


def _begins(
    objects: Arrays, nodes: Nodes, sets: NDArray[Any], first: NDArray[np.uint64], index: int, min_size: int
) -> _Beginnings:
    part = nodes.of(index)
    inner = np.flatnonzero(_inner(objects, nodes.labels[part], min_size))
    own = objects["first"][nodes.labels[part].astype(np.int64) - 1]
    heads = own == first[sets[part]]
    return _Beginnings(
        labels=len(objects["size"]),
        inner=inner + 1,
        sets=sets[part][heads],
        first=np.concatenate([objects["first"][inner], own[heads]]),
    )


@compiled
def add_up(
    sets: NDArray[Any],
    labels: NDArray[np.uint32],
    sizes: NDArray[np.uint32],
    firsts: NDArray[np.uint64],
    size: NDArray[np.uint64],
    first: NDArray[np.uint64],
) -> None:
    """Add the nodes of one block to their sets."""
    for i in range(labels.size):
        at = labels[i] - 1
        size[sets[i]] += sizes[at]
        first[sets[i]] = min(first[sets[i]], firsts[at])
