"""The blocks that a volume is labelled in, and which of them touch. Standard library alone.

index      0 | 1 | 2        raster order: a block's lower neighbours have lower indices,
          ---+---+---       so whoever goes through the blocks in order has met them all
           3 | 4 | 5
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, Shape

Connectivity = Literal["face", "full"]
Offset = tuple[int, int, int]

# All neighbours that come earlier in raster order; those across faces first.
OFFSETS: tuple[Offset, ...] = tuple(
    sorted(
        ((z, y, x) for z, y, x in product((-1, 0, 1), repeat=3) if (z, y, x) < (0, 0, 0)),
        key=lambda d: (sum(map(abs, d)), d),
    )
)
FACES = 3  # so many of them are across faces


@dataclass(frozen=True, kw_only=True)
class Blocking:
    """Blocks of one shape over the part of a volume that is labelled; shapes and boxes z, y, x.

    `planar`: every plane is an image of its own; nothing touches across z.

    Raises
    ------
    InputError
        A block of 2**32 voxels or more: its labels would not fit in 32 bits.
    """

    volume: Shape
    roi: Box
    block: Shape
    planar: bool = False

    def __post_init__(self) -> None:
        size = Box.of_shape(tuple(b + 2 for b in self.block)).size  # with the voxels around it
        if size >= 2**32:
            raise InputError(
                "this block is too large to be labelled",
                expected=f"fewer than {2**32:,} voxels, with those around it",
                found=f"{size:,}",
                fix="choose a smaller --block",
            )

    @property
    def grid(self) -> Grid:
        return Grid(self.roi, self.block)

    def __len__(self) -> int:
        return len(self.grid)

    def box(self, index: int) -> Box:
        """The voxels of a block, inside the ROI."""
        return self.grid[index].intersect(self.roi)

    def position(self, index: int) -> Shape:
        """Where a block lies in the grid of blocks."""
        _, rows, columns = self.grid.counts
        return index // (rows * columns), index // columns % rows, index % columns

    def neighbour(self, index: int, offset: Offset) -> int | None:
        """The block at an offset from another, in blocks; None where none is, or none that could touch."""
        counts = self.grid.counts
        if self.planar and offset[0] != 0:
            return None
        there = tuple(p + o for p, o in zip(self.position(index), offset))
        if any(not 0 <= p < n for p, n in zip(there, counts)):
            return None
        return (there[0] * counts[1] + there[1]) * counts[2] + there[2]

    def lower_neighbours(self, index: int, connectivity: Connectivity) -> Iterator[tuple[int, int]]:
        """(number of the offset in `OFFSETS`, block) of those that touch a block and come before it."""
        for number, offset in enumerate(OFFSETS[: FACES if connectivity == "face" else None]):
            if (there := self.neighbour(index, offset)) is not None:
                yield number, there

    def inner_sides(self, index: int) -> list[tuple[int, int]]:
        """(axis, 0 for the lower side or 1 for the upper) of the faces behind which another block lies."""
        sides = ((axis, side) for axis in range(3) for side in (0, 1))
        return [(axis, side) for axis, side in sides if self._across(index, axis, side) is not None]

    def _across(self, index: int, axis: int, side: int) -> int | None:
        step = [0, 0, 0]
        step[axis] = 2 * side - 1
        return self.neighbour(index, (step[0], step[1], step[2]))


def complement(connectivity: Connectivity) -> Connectivity:
    """What the background is connected by, so that no line of it crosses a line of the foreground."""
    return "full" if connectivity == "face" else "face"
