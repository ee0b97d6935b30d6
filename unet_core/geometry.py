"""Boxes, grids and mirrored axes: integer arithmetic and nothing else (standard library only).

Axis order is always z, y, x (y, x in two dimensions). All boxes are half-open.

    Grid(extent, cell)            the cells are anchored at the origin, not at the extent:
    0     c     2c    3c    4c
    |-----|--[==|=====|==]--|     [====] is the extent; cells 1, 2 and 3 meet it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from unet_core.errors import InputError

Shape = tuple[int, ...]

_GOLDEN = (5**0.5 - 1) / 2


def ceil_div(a: int, b: int) -> int:
    """Smallest integer not below a / b, for b > 0 and any a."""
    return -(-a // b)


def round_up(a: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is not below a."""
    return ceil_div(a, multiple) * multiple


@dataclass(frozen=True, order=True)
class Box:
    """A half-open integer box: `lower <= voxel < upper` on every axis. May be empty, may be negative.

    Raises
    ------
    InputError
        The corners differ in length, or an upper corner lies below the lower one.
    """

    lower: Shape
    upper: Shape

    def __post_init__(self) -> None:
        if len(self.lower) != len(self.upper) or any(a > b for a, b in zip(self.lower, self.upper)):
            raise InputError(
                "a box must have lower <= upper on every axis", found=f"{self.lower} to {self.upper}"
            )

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Box:
        """The box of a whole array: the origin to its shape."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def parse(cls, text: str) -> Box:
        """Read `z0:z1,y0:y1,x0:x1` (or `y0:y1,x0:x1`)."""
        try:
            pairs = [tuple(int(edge) for edge in axis.split(":")) for axis in text.split(",")]
            lower, upper = zip(*((low, high) for low, high in pairs))
        except ValueError:
            raise InputError(
                "this is not a box",
                expected="z0:z1,y0:y1,x0:x1 in voxels, half-open, such as 0:64,128:256,0:512",
                found=repr(text),
            ) from None
        if any(a >= b for a, b in zip(lower, upper)):
            raise InputError("this box is empty", expected="start < stop on every axis", found=repr(text))
        return cls(lower, upper)

    @property
    def shape(self) -> Shape:
        return tuple(b - a for a, b in zip(self.lower, self.upper))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as numpy slices; only meaningful where no corner is negative."""
        return tuple(slice(a, b) for a, b in zip(self.lower, self.upper))

    def __bool__(self) -> bool:
        return self.size > 0

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.lower, self.upper))

    def intersect(self, other: Box) -> Box:
        """The common part; an empty box at this box's corner where there is none."""
        lower = tuple(max(a, b) for a, b in zip(self.lower, other.lower))
        upper = tuple(min(a, b) for a, b in zip(self.upper, other.upper))
        if any(a >= b for a, b in zip(lower, upper)):
            return Box(self.lower, self.lower)
        return Box(lower, upper)

    def contains(self, other: Box) -> bool:
        return all(a <= b for a, b in zip(self.lower, other.lower)) and all(
            a >= b for a, b in zip(self.upper, other.upper)
        )

    def shift(self, offset: Sequence[int]) -> Box:
        return Box(
            tuple(a + o for a, o in zip(self.lower, offset)),
            tuple(b + o for b, o in zip(self.upper, offset)),
        )

    def in_volume(self, shape: Shape) -> Box:
        """The same box; where it is one of y, x and the volume (z, y, x) a plane, that of this plane."""
        if len(self.lower) == 2 and len(shape) == 3 and shape[0] == 1:
            return Box((0, *self.lower), (1, *self.upper))
        return self

    def relative_to(self, origin: Sequence[int]) -> Box:
        """The same box in coordinates that start at `origin`."""
        return self.shift([-o for o in origin])

    def grow(self, lower: Sequence[int], upper: Sequence[int]) -> Box:
        """The box with a margin of its own on each side of each axis."""
        return Box(
            tuple(a - m for a, m in zip(self.lower, lower)),
            tuple(b + m for b, m in zip(self.upper, upper)),
        )

    def coarsen(self, factors: Sequence[int]) -> Box:
        """The smallest box, in voxels `factors` times as large, that covers this one."""
        return Box(
            tuple(a // f for a, f in zip(self.lower, factors)),
            tuple(ceil_div(b, f) for b, f in zip(self.upper, factors)),
        )

    def refine(self, factors: Sequence[int]) -> Box:
        """The voxels, `factors` times as small, that this box covers."""
        return Box(
            tuple(a * f for a, f in zip(self.lower, factors)),
            tuple(b * f for b, f in zip(self.upper, factors)),
        )


def hull(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds them all; there must be one."""
    corners = [(box.lower, box.upper) for box in boxes]
    lower = tuple(map(min, zip(*(a for a, _ in corners))))
    return Box(lower, tuple(map(max, zip(*(b for _, b in corners)))))


@dataclass(frozen=True)
class Grid:
    """The cells of a grid anchored at the origin that meet `extent`, in raster order, never listed.

    `len(grid)` and `grid[i]` are arithmetic: a grid of 10^8 cells costs nothing.
    """

    extent: Box
    cell: Shape

    def __post_init__(self) -> None:
        if len(self.cell) != len(self.extent.lower) or any(c < 1 for c in self.cell):
            raise InputError(
                "a grid needs one positive cell size per axis",
                expected=f"{len(self.extent.lower)} sizes",
                found=self.cell,
            )

    @property
    def counts(self) -> Shape:
        """Number of cells per axis."""
        cells = self.extent.coarsen(self.cell)
        return cells.shape if self.extent else (0,) * len(self.cell)

    def __len__(self) -> int:
        return prod(self.counts)

    def __getitem__(self, index: int) -> Box:
        """Cell `index` in raster order, whole: it may reach beyond the extent."""
        if not 0 <= index < len(self):
            raise IndexError(f"cell {index} of a grid with {len(self)} cells")
        lower = []
        for count, cell, start in zip(
            reversed(self.counts), reversed(self.cell), reversed(self.extent.lower)
        ):
            index, position = divmod(index, count)
            lower.append((start // cell + position) * cell)
        corner = tuple(reversed(lower))
        return Box(corner, tuple(a + c for a, c in zip(corner, self.cell)))

    def __iter__(self) -> Iterator[Box]:
        first = self.extent.coarsen(self.cell).lower
        for position in product(*(range(n) for n in self.counts)):
            corner = tuple((f + p) * c for f, p, c in zip(first, position, self.cell))
            yield Box(corner, tuple(a + c for a, c in zip(corner, self.cell)))

    def spread(self, count: int) -> Iterator[Box]:
        """`count` of the cells (all where there are no more), spread evenly over every axis, in raster order.

        One from each of as many equal stretches of the raster order, each time at another place of it. The
        same place each time would be one face of the grid wherever a stretch is a whole line of cells.
        """
        cells = len(self)
        count = min(count, cells)
        for k in range(count):
            start, stop = k * cells // count, (k + 1) * cells // count
            # Multiples of the golden ratio, modulo 1: the most even of all such sequences.
            yield self[start + int((0.5 + k * _GOLDEN) % 1 * (stop - start))]


def mirrored(position: int, length: int) -> int:
    """Where a position beyond the faces of an axis is found inside it.

    numpy's `reflect`: the face voxel is not repeated, reflection repeats for as long as it must,
    and an axis of one voxel repeats that voxel.
    """
    if length == 1:
        return 0
    period = 2 * (length - 1)
    offset = position % period
    return min(offset, period - offset)


def mirrored_span(start: int, stop: int, length: int) -> tuple[int, int]:
    """The part [low, high) of an axis that holds every voxel of the mirrored range [start, stop)."""
    if start >= stop:
        return 0, 0
    if stop - start >= 2 * length:
        return 0, length
    inside = [mirrored(p, length) for p in (start, stop - 1)]
    # Between two positions the mirrored value turns only at multiples of length - 1.
    turn = max(length - 1, 1)
    first_turn = ceil_div(start, turn)
    inside.extend(mirrored(k * turn, length) for k in range(first_turn, (stop - 1) // turn + 1))
    return min(inside), max(inside) + 1
