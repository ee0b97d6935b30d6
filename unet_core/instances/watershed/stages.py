"""What the label, seams and merge stages do for a watershed, through evidence: in a store or in memory.

    evidence written   OBJECTS     peak, size, first voxel of every label; pairs of labels     by block
                       FACES       labels and heights on faces, where pieces leave to          by block
                       SEAMS       where labels lead that leave the block, pairs of nodes      by block
                       IDS, MERGED as by `instances.merging`

`HeightMap` gives the heights; from there on nothing knows what they mean.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unet_core import machine
from unet_core.budget import GIB
from unet_core.errors import InputError, StoreError
from unet_core.instances.blocking import Blocking, Connectivity
from unet_core.instances.evidence import Arrays, Evidence
from unet_core.instances.faces import Faces, faces_of
from unet_core.instances.kinds import FACES, IDS, JOINED, MERGED, OBJECTS, SEAMS
from unet_core.instances.ranking import id_type
from unet_core.instances.watershed.basins import neighbours
from unet_core.instances.watershed.block import NOWHERE, label_block
from unet_core.instances.watershed.criterion import Criterion
from unet_core.instances.watershed.exits import HEIGHTS, HERE, LABELS, LEAVES_TO, offset_of
from unet_core.instances.watershed.merging import Merging
from unet_core.instances.watershed.nodes import Nodes, keys_of, stay
from unet_core.instances.watershed.seams import seam_edges
from unet_core.instances.watershed.settings import EDGE_BYTES, NODE_BYTES, NODES_MOST
from unet_core.instances.watershed.spill import Batch, EdgeSpill


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
    """Find where a block's pieces lead, and the pairs of its pieces and across its lower seams."""
    faces: dict[int, Faces] = {HERE: evidence.read(FACES, index)}
    near = neighbours(full=connectivity == "full", planar=blocking.planar)
    for code in map(int, np.flatnonzero(near)):  # blocks touch as voxels do
        if (there := blocking.neighbour(index, offset_of(code))) is not None:
            faces[code] = evidence.read(FACES, there)
    within = evidence.read(OBJECTS, index)
    evidence.write(SEAMS, index, seam_edges(blocking, index, faces, within, near))


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
    nodes, peak, edges = _nodes(blocking, evidence)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="unet-flows-edges-") as folder:
        _require_room(len(nodes), edges, memory, folder)
        merging, spill = Merging(peak), EdgeSpill(Path(folder), memory=memory)
        del peak
        earliest = np.full(len(nodes), NOWHERE)
        voxels = np.zeros(len(nodes) if min_size > 1 else 0, np.uint64)
        for index, objects, found in _left(blocking, evidence):
            merging.join(*nodes.joined(index, found))
            a, b = (nodes.named(index, found, end) for end in ("a", "b"))
            spill.append(Batch(found["saddle"], a, b, found["direction"]))
            labels = nodes.of_labels(index, found)
            np.minimum.at(earliest, labels, objects["first"])
            if min_size > 1:
                np.add.at(voxels, labels, objects["size"].astype(np.uint64))
        sizes = np.minimum(voxels, np.uint64(2**32 - 1)).astype(np.uint32)
        del voxels
        merging.merge(spill, criterion)
        enough = merging.merge_small(spill, sizes, min_size) if min_size > 1 else True
        del sizes
    roots = merging.roots()
    np.minimum.at(earliest, roots, earliest)
    heads = np.flatnonzero(enough & (roots == np.arange(len(roots), dtype=np.uint32)))
    heads = heads[np.argsort(earliest[heads])]
    number = earliest  # their memory serves again
    number[:] = 0
    number[heads] = np.arange(1, len(heads) + 1, dtype=np.uint64)
    kind = id_type(len(heads))
    none = {"labels": np.zeros(0, np.uint32), "ids": np.zeros(0, kind)}
    for index, found in zip(indices, evidence.read_all(SEAMS, indices)):
        own = number[roots[nodes.of_labels(index, found)]].astype(kind)
        evidence.write(IDS, index, {"ids": np.concatenate([np.zeros(1, kind), own])})
        evidence.write(JOINED, index, none)
    evidence.write(MERGED, 0, {"largest": np.array([len(heads)], np.uint64)})
    return len(heads)


def _nodes(blocking: Blocking, evidence: Evidence) -> tuple[Nodes, NDArray[np.uint16], int]:
    """All nodes, the height of each one's peak, and how many edges there are."""
    staying = np.zeros(len(blocking), np.int64)
    peaks, open_, edges = [np.zeros(0, np.uint16)], [np.zeros(0, np.uint64)], 0
    for index, objects, found in _left(blocking, evidence):
        staying[index] = found["staying"][0]
        peaks.append(objects["peak"][stay(found)])
        open_.append(keys_of(blocking, index, found))
        edges += len(found["a"])
    nodes = Nodes(blocking, staying, np.concatenate(open_))
    _require_countable(len(nodes))
    # What is at the end of a sight gets its height where it is joined.
    peak = np.zeros(len(nodes), np.uint16)
    np.concatenate(peaks, out=peak[: int(staying.sum())])
    return nodes, peak, edges


def _left(blocking: Blocking, evidence: Evidence) -> Iterator[tuple[int, Arrays, Arrays]]:
    """Of every block in turn: its index, objects and seams."""
    indices = range(len(blocking))
    yield from zip(indices, evidence.read_all(OBJECTS, indices), evidence.read_all(SEAMS, indices))


def _require_room(nodes: int, edges: int, memory: int, folder: str) -> None:
    """Refuse a merge that this machine cannot do, with the numbers, before it fills the disk."""
    needed, free = memory + NODE_BYTES * nodes, machine.free_memory()
    disk, left = EDGE_BYTES * edges, shutil.disk_usage(folder).free
    for what, much, there in (("memory", needed, free), (f"the disk of {folder}", disk, left)):
        if much > there:
            raise StoreError(
                f"the merge of {nodes:,} basins does not fit in {what}",
                expected=f"{much / GIB:.2f} GiB",
                found=f"{there / GIB:.2f} GiB",
                fix="free some, or go on where there is more; TMPDIR names the folder for edges",
            )


def _require_countable(nodes: int) -> None:
    if nodes > NODES_MOST:
        raise InputError(
            "too many basins for one merge",
            expected=f"at most {NODES_MOST:,}",
            found=f"{nodes:,}",
            fix="choose larger blocks, or a coarser --persistence: blocks merge more by themselves",
        )
