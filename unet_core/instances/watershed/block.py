"""One block's labels and what the merging needs to know of them: heights in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.instances.watershed.basins import neighbours, pieces_of
from unet_core.instances.watershed.criterion import Criterion
from unet_core.instances.watershed.saddles import (
    DIRECTION_BITS,
    PLACE_BITS,
    Pairs,
    pairs_within,
)
from unet_core.instances.watershed.simplify import simplify

VOXELS_MOST = 2**48  # raster indices share 64 bits with heights
NOWHERE = np.uint64(2**64 - 1)


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """What a block's labels 1, 2, … stand for, one entry per label.

    Attributes
    ----------
    peak
        uint16 height of the highest voxel; of a piece that leaves the block, of the voxel it leaves to.
    size, first
        uint64 voxels, and raster index in the volume of the first one.
    leaves_to
        uint64 raster index in the volume of the voxel beyond the block to which the piece belongs, or
        `NOWHERE`.
    """

    peak: NDArray[np.uint16]
    size: NDArray[np.uint64]
    first: NDArray[np.uint64]
    leaves_to: NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Pairs of labels that touch, best saddle first, each pair once.

    Attributes
    ----------
    a, b
        uint32 labels; of the block, or of two blocks.
    saddle
        uint64: height of the lower voxel of the best pair of voxels (16 bits), its raster index in the
        volume (48).
    direction
        uint8: where the other voxel of that pair lies, of the 27 positions around the lower one.
    area
        uint32 pairs of voxels that share a face.
    """

    a: NDArray[np.uint32]
    b: NDArray[np.uint32]
    saddle: NDArray[np.uint64]
    direction: NDArray[np.uint8]
    area: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.a)


def label_block(
    heights: NDArray[np.uint16],
    box: Box,
    volume: Shape,
    criterion: Criterion,
    *,
    full: bool,
    planar: bool,
) -> tuple[NDArray[np.uint32], Nodes, Edges]:
    """Labels of one block, simplified as far as that is exact.

    Parameters
    ----------
    heights
        uint16 (z + 2, y + 2, x + 2) of the box and one voxel around it; 0 where nothing is to be labelled
        and beyond the volume.
    criterion
        No coarser than what the pieces will be merged by.
    full, planar
        Neighbours through edges and corners, too; planes by themselves.

    Returns
    -------
    uint32 labels (z, y, x), 1, 2, … by the raster order of their first voxels, 0 where heights are; their
    nodes; their edges.
    """
    require_indexable(volume)
    near = neighbours(full=full, planar=planar)
    pieces = pieces_of(heights, near)
    flat = heights.ravel()
    peak = flat[pieces.end]
    pairs = pairs_within(heights, pieces.labels, near, len(peak))
    group, pairs = simplify(peak, ~pieces.open, pairs, criterion)

    count = int(group.max()) + 1 if len(group) else 0
    place = _Places(heights.shape, box, volume)
    peaks, size = np.zeros(count, np.uint16), np.zeros(count, np.uint64)
    first, leaves_to = np.full(count, NOWHERE), np.full(count, NOWHERE)
    np.maximum.at(peaks, group, peak)
    np.add.at(size, group, pieces.size.astype(np.uint64))
    np.minimum.at(first, group, place(pieces.first))
    leaves_to[group[pieces.exits]] = place(pieces.end[pieces.exits])
    numbers = np.concatenate([[0], group + 1]).astype(np.uint32)
    labels = np.take(numbers, pieces.labels[1:-1, 1:-1, 1:-1], mode="clip")
    return labels, Nodes(peak=peaks, size=size, first=first, leaves_to=leaves_to), _edges(pairs, place)


def require_indexable(volume: Shape) -> None:
    """Refuse a volume whose raster indices do not fit.

    Raises
    ------
    InputError
        2^48 voxels or more.
    """
    if Box.of_shape(volume).size >= VOXELS_MOST:
        raise InputError("too many voxels for one watershed", expected="below 2^48", found=volume)


class _Places:
    """Flat indices of a box with its ring, as raster indices of the volume."""

    def __init__(self, shape: Shape, box: Box, volume: Shape) -> None:
        self._shape, self._lower, self._volume = shape, box.lower, volume

    def __call__(self, flat: NDArray[np.int64]) -> NDArray[np.uint64]:
        z, y, x = np.unravel_index(flat, self._shape)
        (a, b, c), (_, height, width) = self._lower, self._volume
        return (((z + a - 1) * height + (y + b - 1)) * width + (x + c - 1)).astype(np.uint64)


def _edges(pairs: Pairs, place: _Places) -> Edges:
    direction = (pairs.saddle & np.uint64(2**DIRECTION_BITS - 1)).astype(np.uint8)
    local = (pairs.saddle >> np.uint64(DIRECTION_BITS)) & np.uint64(2**PLACE_BITS - 1)
    height = pairs.saddle >> np.uint64(DIRECTION_BITS + PLACE_BITS)
    saddle = height << np.uint64(48) | place(local.astype(np.int64))
    return Edges(a=pairs.a, b=pairs.b, saddle=saddle, direction=direction, area=pairs.area)
