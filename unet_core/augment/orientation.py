"""The 48 ways to lay a box on its axes: exact, no voxel is interpolated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Orientation:
    """Transpose the last three axes, then flip some: axis a of the result is axis `order[a]` before it."""

    order: Shape
    flips: tuple[bool, ...]

    def turn(self, data: NDArray[T]) -> NDArray[T]:
        """Turn the last three axes, z, y, x. A view."""
        leading = data.ndim - 3
        turned = data.transpose(*range(leading), *(leading + axis for axis in self.order))
        index: tuple[Any, ...] = (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))
        result: NDArray[T] = turned[index]
        return result

    def grow(self, box: Box, lower: Sequence[int], upper: Sequence[int]) -> Box:
        """The box, before the turn, whose turned voxels have `lower` and `upper` more around them."""
        below, above = [0] * 3, [0] * 3
        for axis, (source, flip) in enumerate(zip(self.order, self.flips)):
            pair = (lower[axis], upper[axis])
            below[source], above[source] = pair[::-1] if flip else pair
        return box.grow(below, above)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Steps between voxels before the turn = matrix @ steps between voxels after it."""
        matrix = np.zeros((3, 3))
        for axis, (source, flip) in enumerate(zip(self.order, self.flips)):
            matrix[source, axis] = -1 if flip else 1
        return matrix

    @property
    def is_rotation(self) -> bool:
        """Whether it keeps handedness: an even number of swaps and flips together."""
        swaps = sum(a > b for i, a in enumerate(self.order) for b in self.order[i + 1 :])
        return (swaps + sum(self.flips)) % 2 == 0


def orientations(
    groups: Sequence[Sequence[int]], patch: Shape, *, flips: bool, rotations: bool
) -> tuple[Orientation, ...]:
    """All orientations that may be drawn, the identity among them.

    Parameters
    ----------
    groups
        The axes, those together that rotations may exchange.
    patch
        Axes of one voxel are not flipped: it would be the same as without, drawn twice as often.
    """
    group_of = {axis: tuple(group) for group in groups for axis in group}

    def allowed(turn: Orientation) -> bool:
        if any(group_of[axis] != group_of[source] for axis, source in enumerate(turn.order)):
            return False
        flipped = [axis for axis, flip in enumerate(turn.flips) if flip]
        if any(patch[axis] == 1 for axis in flipped):
            return False
        if not rotations and turn.order != (0, 1, 2):
            return False
        if flips:
            return True
        if not rotations:
            return not flipped
        return turn.is_rotation and all(len(group_of[axis]) > 1 for axis in flipped)

    every = (
        Orientation(order, flipped)
        for order in permutations(range(3))
        for flipped in product((False, True), repeat=3)
    )
    return tuple(turn for turn in every if allowed(turn))
