"""Heights whose hills are objects: how deep inside a voxel lies, from the probability that it is inside.

    height = mean over levels of  min(distance to the nearest voxel with p < level, radius)  +  p

Distance finds the necks between objects that touch, as in the usual watershed of the distance transform.
Several levels let the network's doubt speak: a weak line between two cells cuts the higher levels'
distances, and a small gap in one object ends those of the highest level alone. The p at the end orders what
lies within no level at all, so that objects grow over boundaries up the slope of p.

Everything is integers: a box of heights is the whole volume's, wherever it is cut out, if p is known `reach`
around it. Beyond the volume nothing ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape

VOXEL = 64  # heights per smallest voxel edge
UNIT = 64  # squared distances are counted in 1/64 of the smallest edge squared: the rounding of odd edges
_RADIUS_MOST = 2**16 // VOXEL - 2


@dataclass(frozen=True, kw_only=True)
class HeightMap:
    """How probabilities become heights.

    Attributes
    ----------
    levels
        Probabilities times 255, 1 to 255.
    radius
        Distances above it are not told apart; in smallest voxel edges. Objects wider than twice that, joined
        by a neck as wide, are one.
    voxel_size
        z, y, x, any unit.
    planar
        Planes stand alone.

    Raises
    ------
    InputError
        No levels, levels that are no probability, a radius out of range.
    """

    levels: tuple[int, ...]
    radius: int
    voxel_size: tuple[float, ...]
    planar: bool = False

    def __post_init__(self) -> None:
        if not self.levels or not all(1 <= level <= 255 for level in self.levels):
            raise InputError("not levels of a probability", expected="some of 1 to 255", found=self.levels)
        if not 1 <= self.radius <= _RADIUS_MOST:
            raise InputError(
                "not a radius", where="--radius", expected=f"1 to {_RADIUS_MOST}", found=self.radius
            )

    @property
    def reach(self) -> Shape:
        """Voxels beyond a box, z, y, x, whose probabilities its heights depend on."""
        return reach(self.radius, self.voxel_size, planar=self.planar)

    def of(
        self, inside: NDArray[np.uint8], mask: NDArray[np.bool_], within: Box | None = None
    ) -> NDArray[np.uint16]:
        """Heights of a box.

        Parameters
        ----------
        inside
            (z, y, x) probability of being inside an object, times 255; of `within` and `reach` around it,
            or up to the volume's faces.
        mask
            (z, y, x) which voxels are to be labelled.
        within
            The box of both that is wanted; all by default.

        Returns
        -------
        uint16 (z, y, x) of `within`, in 1 / `VOXEL` of the smallest edge; 0 outside the mask, else above.
        """
        # Here, because numba takes its time, and whoever plans needs no kernel.
        from unet_core.instances.watershed.distance import add_root, bounded_distance, finish

        box = within or Box.of_shape(inside.shape)
        squares = squared_edges(self.voxel_size, planar=self.planar)
        total = np.zeros(box.shape, np.int32)
        for level in self.levels:
            add_root(total, bounded_distance(inside >= level, squares, self.radius, within=box))
        found: NDArray[np.uint16] = finish(
            total,
            len(self.levels),
            np.ascontiguousarray(inside[box.slices]),
            np.ascontiguousarray(mask[box.slices]),
        )
        return found


def squared_edges(voxel_size: Sequence[float], *, planar: bool = False) -> tuple[int, int, int]:
    """Squared voxel edges z, y, x as integers, those of the smallest edge being `UNIT`; z 0 where planar."""
    edges = [float(edge) for edge in voxel_size]
    smallest = min(edges[1:] if planar else edges)
    z, y, x = (max(1, round(UNIT * (edge / smallest) ** 2)) for edge in edges)
    return (0 if planar else z), y, x


def reach(radius: int, voxel_size: Sequence[float], *, planar: bool = False) -> Shape:
    """Voxels beyond a box, z, y, x, that can be nearer than `radius` smallest edges."""
    squares = squared_edges(voxel_size, planar=planar)
    return tuple(0 if s == 0 else isqrt(UNIT * radius * radius // s) for s in squares)
