"""Random changes that leave the labels true: flips, right-angle rotations, intensity jitter; numpy only.

The network's output voxel j lies on its input voxel j + lower, and the context above is another:

    read     |----- m -----|== patch ==|----- m -----|     m: the same on both sides, at least either context
    turned   |----- m -----|== hctap ==|----- m -----|     image and classes alike
    cropped  |     -lower-|== hctap ==|-upper-|            only now: the context as the network wants it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Shape
from unet_core.tiling import Footprint

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """What may change. Intensities are normalised: about 0 to 1.

    Parameters
    ----------
    flips, rotations
        Mirror images, and rotations by right angles between axes of equal voxel size.
    brightness, contrast
        Largest shift, and largest relative change around 0.5, of a patch; both drawn evenly.
    noise
        Largest standard deviation of Gaussian noise; drawn evenly from 0.
    """

    flips: bool = True
    rotations: bool = True
    brightness: float = 0.1
    contrast: float = 0.1
    noise: float = 0.02

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "noise"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError("too strong an augmentation", where=name, expected="0 <= x < 1", found=value)


@dataclass(frozen=True)
class Orientation:
    """One of the 48 ways to lay a box on its axes: transpose the last three axes, then flip some."""

    order: Shape
    flips: tuple[bool, ...]

    def turn(self, data: NDArray[T]) -> NDArray[T]:
        """Turn the last three axes, z, y, x. A view."""
        leading = data.ndim - 3
        turned = data.transpose(*range(leading), *(leading + axis for axis in self.order))
        index: tuple[Any, ...] = (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))
        result: NDArray[T] = turned[index]
        return result

    @property
    def is_rotation(self) -> bool:
        """Whether it keeps handedness: an even number of swaps and flips together."""
        swaps = sum(a > b for i, a in enumerate(self.order) for b in self.order[i + 1 :])
        return (swaps + sum(self.flips)) % 2 == 0


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augmentation for one network, patch and voxel size, z, y, x; what may be drawn is decided up front."""

    settings: AugmentSettings
    footprint: Footprint
    patch: Shape
    voxel_size: tuple[float, ...]

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Axes that rotations may exchange: equal voxel size, equal patch length."""
        kinds: dict[tuple[float, int], list[int]] = {}
        for axis, (size, length) in enumerate(zip(self.voxel_size, self.patch)):
            # Sizes come from metadata in decimal fractions: equal means equal to six digits.
            kinds.setdefault((float(f"{size:.6g}"), length), []).append(axis)
        return tuple(tuple(axes) for axes in kinds.values())

    @cached_property
    def margin(self) -> Shape:
        """Image voxels to read beyond a patch, per axis, the same on both sides: any turn has its context."""
        widest = [max(a, b) for a, b in zip(self.footprint.lower, self.footprint.upper)]
        margin = list(widest)
        if self.settings.rotations:
            for group in self.groups:
                for axis in group:
                    margin[axis] = max(widest[a] for a in group)
        return tuple(margin)

    @cached_property
    def orientations(self) -> tuple[Orientation, ...]:
        """All orientations that may be drawn, the identity among them."""
        every = (
            Orientation(order, flips)
            for order in permutations(range(3))
            for flips in product((False, True), repeat=3)
        )
        return tuple(turn for turn in every if self._allows(turn))

    def _allows(self, turn: Orientation) -> bool:
        group_of = {axis: group for group in self.groups for axis in group}
        if any(group_of[axis] != group_of[source] for axis, source in enumerate(turn.order)):
            return False
        flipped = [axis for axis, flip in enumerate(turn.flips) if flip]
        if any(self.patch[axis] == 1 for axis in flipped):
            return False  # the same as without it: drawn twice as often for nothing
        if not self.settings.rotations and turn.order != (0, 1, 2):
            return False
        if self.settings.flips:
            return True
        if not self.settings.rotations:
            return not flipped
        return turn.is_rotation and all(len(group_of[axis]) > 1 for axis in flipped)

    def apply(
        self, image: NDArray[np.float32], classes: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A changed copy of one patch.

        Parameters
        ----------
        image
            (channel, z, y, x), normalised, with `margin` on both sides of each axis.
        classes
            (z, y, x), the patch alone.

        Returns
        -------
        The image with the network's context, the lower one below and the upper one above, and the
        classes: class voxel j lies on image voxel j + lower. Both contiguous.
        """
        turn = self.orientations[int(rng.integers(len(self.orientations)))]
        # Read with what its axis had before the turn; exchanged axes have the same margin.
        image = self.crop(turn.turn(image))
        return self._recolour(image, rng), np.ascontiguousarray(turn.turn(classes))

    def crop(self, image: NDArray[T]) -> NDArray[T]:
        """From the margin to the network's own context."""
        lower, upper = self.footprint.lower, self.footprint.upper
        cut = (slice(m - a, m + n + b) for m, n, a, b in zip(self.margin, self.patch, lower, upper))
        index: tuple[Any, ...] = (..., *cut)
        result: NDArray[T] = image[index]
        return result

    def _recolour(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        limits = self.settings
        shift = np.float32(rng.uniform(-limits.brightness, limits.brightness))
        factor = np.float32(1 + rng.uniform(-limits.contrast, limits.contrast))
        deviation = np.float32(rng.uniform(0, limits.noise))
        image = (image - np.float32(0.5)) * factor + (np.float32(0.5) + shift)
        if deviation:
            image += rng.standard_normal(image.shape, np.float32) * deviation
        return np.ascontiguousarray(image)


def common_voxel_size(sizes: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The proportions of a voxel that all sources share; without agreement three different ones: no turn.

    Rotations ask only which axes are equal: sources of 4×4×4 and 8×8×8 nm agree that all are.
    """
    proportions: set[tuple[Any, ...]] = {tuple(float(f"{s / size[-1]:.6g}") for s in size) for size in sizes}
    return proportions.pop() if len(proportions) == 1 else (1.0, 2.0, 3.0)
