"""Final ids: the raster order of objects' first voxels in the whole volume, without sorting all of them.

Blocks of the same row (same z and y) are sorted together; between rows only counts per plane matter:

    id = 1 + objects that begin in earlier planes                    \\  `starts[plane, row of blocks]`
           + objects that begin in this plane, in earlier rows       /
           + objects of this row of blocks that begin before it in this plane

So what is held at once is one row of blocks, and one count per plane and row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import ceil_div
from unet_core.instances.blocking import Blocking


@dataclass
class Ranking:
    """Counts objects by their first voxels (places in the volume's raster order), then gives ids to them."""

    blocking: Blocking
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.blocking.roi.shape[0], self.blocking.grid.counts[1]), np.int64)

    def count(self, first: NDArray[np.uint64]) -> None:
        """Take in objects by their first voxels, of any blocks."""
        np.add.at(self.counts, self._places(first), 1)  # no histogram of all places: a block meets few

    @property
    def total(self) -> int:
        """Objects taken in."""
        return int(self.counts.sum())

    def starts(self) -> NDArray[np.int64]:
        """Objects before the first of each (plane, row of blocks)."""
        flat = self.counts.reshape(-1)
        return (np.cumsum(flat) - flat).reshape(self.counts.shape)

    def ids(self, first: NDArray[np.uint64], starts: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The ids of all objects that begin in one row of blocks, in whatever order they are given."""
        order = np.argsort(first, kind="stable")  # of sorted runs, one per block: it merges them
        plane, row = self._places(first[order])
        before = np.arange(len(first)) - np.searchsorted(plane, plane, side="left")
        result = np.empty(len(first), np.uint64)
        result[order] = 1 + starts[plane, row] + before
        return result

    def _places(self, first: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Plane of the ROI and row of blocks that first voxels lie in."""
        _, rows, columns = self.blocking.volume
        z, y = np.divmod(first.astype(np.int64) // columns, rows)
        side, low = self.blocking.block[1], self.blocking.roi.lower
        return z - low[0], y // side - low[1] // side


def id_type(largest: int) -> np.dtype[Any]:
    """What ids up to `largest` are stored as."""
    return np.dtype(np.uint32 if largest < 2**32 else np.uint64)


def rows_of_blocks(blocking: Blocking) -> list[range]:
    """Block indices, row by row."""
    columns = blocking.grid.counts[2]
    return [range(i * columns, (i + 1) * columns) for i in range(ceil_div(len(blocking), columns))]
