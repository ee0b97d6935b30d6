"""Where the voxels of a patch come from: turned, or rotated, scaled and warped, always with exact context.

A transform is drawn first, then it is placed in a volume; only what it needs there is read:

    what the network sees     |--lower--|==== patch ====|--upper--|
    lies in the volume        a turned box (`Turn`, exact), or a curved shape (`Warp`, interpolated) within
    `image_box`; the patch's labels lie at the same places, within `label_box`

Class voxel j always lies on image voxel j + lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import cos, exp, log1p, radians, sin
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from unet_core.augment.elastic import Elastic, ElasticGrid, lattice
from unet_core.augment.orientation import Orientation, orientations
from unet_core.augment.settings import AugmentSettings
from unet_core.augment.warp import warp
from unet_core.geometry import Box, Shape
from unet_core.tiling import Footprint

T = TypeVar("T", bound=np.generic)

# Sections this many times as thick as the finest edge stay as they were cut: between two of them, a plane
# would show every outline twice. nnU-Net's threshold for anisotropic data (Isensee 2021).
THICK = 3.0


class View(Protocol):
    """A transform at its place: what it reads, and what it makes of that."""

    @property
    def image_box(self) -> Box: ...

    @property
    def label_box(self) -> Box: ...

    def image(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """(channel, z, y, x) data of `image_box` to the patch with the network's context, contiguous."""
        ...

    def labels(self, data: NDArray[T], *, linear: bool = False) -> NDArray[T]:
        """(z, y, x) data of `label_box` to the patch, contiguous; the nearest voxel, or `linear`."""
        ...


class Transform(Protocol):
    """A drawn transform of a patch that has no place yet."""

    def place(self, box: Box, voxel: Sequence[int] | None = None) -> View:
        """At a box of the patch's shape, so that `voxel`, one of the box's, stays in the patch."""
        ...


@dataclass(frozen=True)
class Turn:
    """Right angles and mirror images: a box stays a box, every voxel a voxel."""

    orientation: Orientation
    footprint: Footprint

    def place(self, box: Box, voxel: Sequence[int] | None = None) -> View:
        around = self.orientation.grow(box, self.footprint.lower, self.footprint.upper)
        return _Turned(around, box, self.orientation)


@dataclass(frozen=True)
class _Turned:
    image_box: Box
    label_box: Box
    orientation: Orientation

    def image(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.orientation.turn(data))

    def labels(self, data: NDArray[T], *, linear: bool = False) -> NDArray[T]:
        return np.ascontiguousarray(self.orientation.turn(data))


@dataclass(frozen=True)
class Warp:
    """A patch voxel's place = place of the patch's centre + matrix @ steps from it + displacement."""

    matrix: NDArray[np.float64]
    elastic: Elastic
    footprint: Footprint
    patch: Shape

    def place(self, box: Box, voxel: Sequence[int] | None = None) -> View:
        middle = (np.array(self.patch) - 1) / 2
        centre = (np.array(box.lower) + np.array(box.upper) - 1) / 2
        if voxel is not None:
            # Where it would come to lie, or the nearest place inside: there it is put.
            found = np.linalg.solve(self.matrix, voxel - centre) + middle
            kept = np.clip(np.rint(found), 0, np.array(self.patch) - 1)
            displaced = self.elastic.at([int(k) + a for k, a in zip(kept, self.footprint.lower)])
            centre = voxel - self.matrix @ (kept - middle) - displaced
        origin = centre - self.matrix @ middle
        lower, upper = self.footprint.lower, self.footprint.upper
        seen = self._hull(origin, [-a for a in lower], [n - 1 + b for n, b in zip(self.patch, upper)])
        return _Warped(seen, self._hull(origin, (0, 0, 0), [n - 1 for n in self.patch]), self, origin)

    def _hull(self, origin: NDArray[np.float64], first: Sequence[int], last: Sequence[int]) -> Box:
        """All voxels of the volume that patch voxels `first` to `last` may be interpolated from."""
        steps = [lattice(a, b) for a, b in zip(first, last)]
        positions = [step + a for step, a in zip(steps, self.footprint.lower)]
        places = np.tensordot(self.matrix, np.stack(np.meshgrid(*steps, indexing="ij")), axes=1)
        places += self.elastic.on(positions)
        slack = self.elastic.between(positions)
        low = np.floor(origin + places.min(axis=(1, 2, 3)) - slack)
        high = np.ceil(origin + places.max(axis=(1, 2, 3)) + slack)
        return Box(tuple(int(n) for n in low), tuple(int(n) + 1 for n in high))


@dataclass(frozen=True)
class _Warped:
    image_box: Box
    label_box: Box
    by: Warp
    origin: NDArray[np.float64]  # the place of the patch's first voxel

    def image(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        lower, upper = self.by.footprint.lower, self.by.footprint.upper
        return warp(
            data,
            shape=tuple(n + a + b for n, a, b in zip(self.by.patch, lower, upper)),
            origin=self.origin - self.by.matrix @ np.array(lower) - self.image_box.lower,
            matrix=self.by.matrix,
            elastic=self.by.elastic,
            offset=(0, 0, 0),
            linear=True,
        )

    def labels(self, data: NDArray[T], *, linear: bool = False) -> NDArray[T]:
        warped: NDArray[T] = warp(
            data[np.newaxis],
            shape=self.by.patch,
            origin=self.origin - self.label_box.lower,
            matrix=self.by.matrix,
            elastic=self.by.elastic,
            offset=self.by.footprint.lower,
            linear=linear,
        )[0]
        return warped


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """What may be drawn for one network, patch and voxel size (z, y, x), decided up front."""

    settings: AugmentSettings
    footprint: Footprint
    patch: Shape
    voxel_size: tuple[float, ...]

    def draw(self, rng: np.random.Generator) -> Transform:
        """A share of `deformed` patches is interpolated, the others are exact."""
        orientation = self.orientations[int(rng.integers(len(self.orientations)))]
        if not (self.settings.deforms and rng.random() < self.settings.deformed):
            return Turn(orientation, self.footprint)
        matrix = self._rotation(rng) @ orientation.matrix
        size = log1p(self.settings.scaling)
        matrix[list(self.moving)] *= exp(rng.uniform(-size, size))
        return Warp(matrix, self.grid.draw(rng), self.footprint, self.patch)

    def still(self) -> Transform:
        """Nothing changes."""
        return Turn(Orientation((0, 1, 2), (False,) * 3), self.footprint)

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Axes that rotations may mix: equal voxel size, equal patch length."""
        kinds: dict[tuple[float, int], list[int]] = {}
        for axis, (size, length) in enumerate(zip(self.voxel_size, self.patch)):
            # Sizes come from metadata in decimal fractions: equal means equal to six digits.
            kinds.setdefault((float(f"{size:.6g}"), length), []).append(axis)
        return tuple(tuple(axes) for axes in kinds.values())

    @cached_property
    def orientations(self) -> tuple[Orientation, ...]:
        """All orientations that may be drawn, the identity among them."""
        return orientations(
            self.groups, self.patch, flips=self.settings.flips, rotations=self.settings.rotations
        )

    @cached_property
    def moving(self) -> tuple[int, ...]:
        """Axes along which voxels may move to places between voxels: not across thick sections."""
        long = [axis for axis in range(3) if self.patch[axis] > 1]
        finest = min((self.voxel_size[axis] for axis in long), default=1.0)
        return tuple(axis for axis in long if self.voxel_size[axis] <= THICK * finest)

    @cached_property
    def grid(self) -> ElasticGrid:
        """The elastic grid over all that the network reads."""
        return ElasticGrid.of(
            self._read_shape,
            self.voxel_size,
            self.moving,
            elastic=self.settings.elastic,
            nodes=self.settings.elastic_grid,
        )

    @cached_property
    def largest_read(self) -> Shape:
        """No draw reads more voxels along an axis: what bounds the memory of one patch."""
        shape = np.array(self._read_shape, float)
        turns = self.settings.rotations
        rotates = self.settings.deforms and self.settings.rotation > 0
        for group in self.groups:
            edges = sorted(shape[list(group)])
            if rotates and any(set(plane) <= set(group) for plane in self._planes):
                shape[list(group)] = np.hypot(*edges[-2:])  # the diagonal of a plane
            elif turns:
                shape[list(group)] = edges[-1]
        if self.settings.deforms:
            moving = list(self.moving)
            shape[moving] *= 1 + self.settings.scaling
            shape[moving] += 2 * self.grid.bound[moving] + 4  # slack; both neighbours of a place
        return tuple(int(np.ceil(n)) for n in shape)

    @property
    def _read_shape(self) -> Shape:
        return tuple(n + a + b for n, a, b in zip(self.patch, self.footprint.lower, self.footprint.upper))

    @cached_property
    def _planes(self) -> tuple[tuple[int, int], ...]:
        """The planes of free rotation."""
        groups = [[axis for axis in group if axis in self.moving] for group in self.groups]
        return tuple((a, b) for group in groups for a in group for b in group if a < b)

    def _rotation(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """In one plane, drawn evenly: with right-angle turns before it, about any axis."""
        matrix = np.eye(3)
        if self._planes and self.settings.rotation:
            a, b = self._planes[int(rng.integers(len(self._planes)))]
            angle = radians(rng.uniform(-self.settings.rotation, self.settings.rotation))
            matrix[a, a] = matrix[b, b] = cos(angle)
            matrix[a, b], matrix[b, a] = -sin(angle), sin(angle)
        return matrix
