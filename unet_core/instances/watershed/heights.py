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

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.instances.compiled import compiled
from unet_core.instances.watershed.distance import bounded_distance, reach, squared_edges

VOXEL = 64  # heights per smallest voxel edge
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
        box = within or Box.of_shape(inside.shape)
        squares = squared_edges(self.voxel_size, planar=self.planar)
        total = np.zeros(box.shape, np.int32)
        for level in self.levels:
            _add_root(total, bounded_distance(inside >= level, squares, self.radius, within=box))
        found: NDArray[np.uint16] = _finish(
            total,
            len(self.levels),
            np.ascontiguousarray(inside[box.slices]),
            np.ascontiguousarray(mask[box.slices]),
        )
        return found


@compiled
def _add_root(total: NDArray[np.int32], squared: NDArray[np.int32]) -> None:
    """Add distances, in `VOXEL`s; squared ones are in 1 / 64."""
    sums, squares = total.reshape(-1), squared.reshape(-1)
    for k in range(sums.size):
        sums[k] += np.int32(np.sqrt(np.float64(squares[k]) * 64))


@compiled
def _finish(
    total: NDArray[np.int32], levels: int, inside: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> NDArray[np.uint16]:
    found = np.zeros(total.shape, np.uint16)
    flat, sums, p, wanted = found.reshape(-1), total.reshape(-1), inside.reshape(-1), mask.reshape(-1)
    for k in range(flat.size):
        if wanted[k]:
            flat[k] = 1 + sums[k] // levels + (p[k] >> 2)
    return found
