"""What the label, seams and merge stages do for a watershed, through evidence: in a store or in memory.

    evidence written   OBJECTS     peak, size, first voxel of every label; pairs of labels     by block
                       FACES       labels and heights on faces, where pieces leave to          by block
                       SEAMS       pairs of labels across seams                                by block
                       IDS, MERGED as by `instances.merging`

`HeightMap` gives the heights; from there on nothing knows what they mean.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from unet_core.budget import GIB
from unet_core.errors import InputError, StoreError
from unet_core.instances.blocking import OFFSETS, Blocking, Connectivity
from unet_core.instances.evidence import Arrays, Evidence
from unet_core.instances.faces import Faces, faces_of
from unet_core.instances.kinds import FACES, IDS, JOINED, MERGED, OBJECTS, SEAMS
from unet_core.instances.ranking import id_type
from unet_core.instances.watershed.basins import neighbours
from unet_core.instances.watershed.block import label_block
from unet_core.instances.watershed.criterion import Criterion
from unet_core.instances.watershed.merging import NODES_MOST, merge
from unet_core.instances.watershed.seams import HEIGHTS, LABELS, LEAVES_TO, seam_edges
from unet_core.instances.watershed.settings import EDGE_BYTES, NODE_BYTES
from unet_core.instances.watershed.spill import Batch, EdgeSpill

_NEVER = np.uint64(2**64 - 1)  # no voxel


def label(
    heights: NDArray[np.uint16],
    blocking: Blocking,
    index: int,
    evidence: Evidence,
    criterion: Criterion,
    connectivity: Connectivity,
) -> NDArray[np.uint32]:
    """Label one block and leave what the merge needs.

    Parameters
    ----------
    heights
        (z + 2, y + 2, x + 2) of the block and one voxel around it; 0 beyond what is labelled.
    criterion
        What is merged at once; that of the merge must cover it.

    Returns
    -------
    uint32 (z, y, x), 1, 2, … in raster order of the first voxels; 0 where heights are 0.
    """
    labels, nodes, edges = label_block(
        heights,
        blocking.box(index),
        blocking.volume,
        criterion,
        full=connectivity == "full",
        planar=blocking.planar,
    )
    pairs = {name: getattr(edges, name) for name in ("a", "b", "saddle", "direction", "area")}
    evidence.write(OBJECTS, index, {"peak": nodes.peak, "size": nodes.size, "first": nodes.first, **pairs})
    inner = heights[1:-1, 1:-1, 1:-1]
    faces = faces_of({LABELS: labels, HEIGHTS: inner}, blocking.inner_sides(index))
    evidence.write(FACES, index, {**faces, LEAVES_TO: nodes.leaves_to})
    return labels


def seams(blocking: Blocking, index: int, evidence: Evidence, connectivity: Connectivity) -> None:
    """Find what meets across a block's seams with its lower neighbours."""
    there: dict[int, Faces] = {
        number: evidence.read(FACES, block)
        for number, block in blocking.lower_neighbours(index, connectivity)
    }
    near = neighbours(full=connectivity == "full", planar=blocking.planar)
    evidence.write(SEAMS, index, seam_edges(blocking, index, evidence.read(FACES, index), there, near))


def merge_all(
    blocking: Blocking,
    evidence: Evidence,
    criterion: Criterion,
    *,
    min_size: int,
    memory: int = 2**30,
    scratch: Path | None = None,
) -> int:
    """Decide all ids and leave them as evidence; returns the number of objects, which is the largest id.

    Parameters
    ----------
    memory
        Bytes for sorting edges, beside `NODE_BYTES` per label.
    scratch
        Folder on a local disk for the edges; the system's by default.

    Raises
    ------
    InputError
        More labels than this merge can number.
    StoreError
        Not enough memory or scratch disk.
    """
    indices = range(len(blocking))
    peaks, pairs = [], 0
    for objects, found in zip(evidence.read_all(OBJECTS, indices), evidence.read_all(SEAMS, indices)):
        peaks.append(objects["peak"].copy())  # alone: a view would keep all of them
        pairs += len(objects["a"]) + len(found["a"])
    starts = np.concatenate([[0], np.cumsum([len(p) for p in peaks], dtype=np.int64)])
    _require_countable(int(starts[-1]))
    peak = np.concatenate([np.zeros(0, np.uint16), *peaks])
    del peaks

    def column(name: str, dtype: Any) -> NDArray[Any]:
        found = np.empty(starts[-1], dtype)
        for index, objects in zip(indices, evidence.read_all(OBJECTS, indices)):
            found[starts[index] : starts[index + 1]] = objects[name]
        return found

    with tempfile.TemporaryDirectory(dir=scratch, prefix="unet-flows-edges-") as folder:
        _require_room(int(starts[-1]), pairs, memory, folder)
        edges = EdgeSpill(Path(folder), memory=memory)
        for batch in _batches(blocking, evidence, starts):
            edges.append(batch)
        roots, kept = merge(
            peak, edges, criterion, min_size=min_size, sizes=lambda: column("size", np.uint32)
        )
    first = column("first", np.uint64)
    earliest = np.full(len(roots), _NEVER)
    np.minimum.at(earliest, roots, first)
    del first
    heads = np.flatnonzero((roots == np.arange(len(roots), dtype=np.uint32)) & kept)
    heads = heads[np.argsort(earliest[heads])]
    number = earliest  # their memory serves again
    number[:] = 0
    number[heads] = np.arange(1, len(heads) + 1, dtype=np.uint64)
    kind = id_type(len(heads))
    none = {"labels": np.zeros(0, np.uint32), "ids": np.zeros(0, kind)}
    for index in indices:
        own = number[roots[starts[index] : starts[index + 1]]].astype(kind)
        evidence.write(IDS, index, {"ids": np.concatenate([np.zeros(1, kind), own])})
        evidence.write(JOINED, index, none)
    evidence.write(MERGED, 0, {"largest": np.array([len(heads)], np.uint64)})
    return len(heads)


def _batches(blocking: Blocking, evidence: Evidence, starts: NDArray[np.int64]) -> Iterator[Batch]:
    """Edges of blocks and seams, between nodes of the whole volume."""
    indices = range(len(blocking))
    for index, objects in zip(indices, evidence.read_all(OBJECTS, indices)):
        yield _batch(objects, starts[index], starts[index])
    for index, found in zip(indices, evidence.read_all(SEAMS, indices)):
        for number in np.unique(found["offset"]):
            there = blocking.neighbour(index, OFFSETS[number])
            if there is not None:
                chosen = found["offset"] == number
                part = {name: column[chosen] for name, column in found.items()}
                yield _batch(part, starts[index], starts[there])


def _batch(edges: Arrays, a: int, b: int) -> Batch:
    """Labels from 1 on as nodes from `a` and `b` on."""
    return Batch(
        edges["saddle"],
        (edges["a"].astype(np.int64) + (a - 1)).astype(np.uint32),
        (edges["b"].astype(np.int64) + (b - 1)).astype(np.uint32),
        edges["direction"],
    )


def _require_room(nodes: int, edges: int, memory: int, folder: str) -> None:
    """Refuse a merge that this machine cannot do, with the numbers, before it fills the disk."""
    needed, free = memory + NODE_BYTES * nodes, psutil.virtual_memory().available
    disk, left = EDGE_BYTES * edges, shutil.disk_usage(folder).free
    for what, much, there in (("memory", needed, free), (f"the disk of {folder}", disk, left)):
        if much > there:
            raise StoreError(
                f"the merge of {nodes:,} pieces of basins does not fit in {what}",
                expected=f"{much / GIB:.2f} GiB",
                found=f"{there / GIB:.2f} GiB",
                fix="free some, or go on where there is more; TMPDIR names the folder for edges",
            )


def _require_countable(nodes: int) -> None:
    if nodes > NODES_MOST:
        raise InputError(
            "too many pieces for one merge",
            expected=f"at most {NODES_MOST:,}",
            found=f"{nodes:,}",
            fix="choose larger blocks, or a coarser --persistence: blocks merge more by themselves",
        )
