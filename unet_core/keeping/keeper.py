"""Reading which voxels are kept, for one box at a time, and what follows for its tiles and its result."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape, ceil_div
from unet_core.keeping.plan import KeepPlan, open_level
from unet_core.tiling import Tile, Tiling
from unet_core.volumes import Volume

# Of voxels that are not kept, in the classes that instances are made of: class 0 can be the inside of
# objects. In labels they are 0, and all their probabilities are 0, as of nothing that a network can say.
LEFT_OUT = 255


@dataclass(frozen=True)
class _Grid:
    """A coarse volume over the image; `below`: None keeps what is not 0."""

    volume: Volume
    factors: Shape
    below: float | None
    margin: int

    def of(self, box: Box) -> NDArray[np.bool_]:
        """bool (z, y, x) of a box inside the image."""
        own = self._cells(box)
        seen = own.grow((self.margin,) * 3, (self.margin,) * 3).intersect(self.volume.box)
        data = self.volume.read(seen)
        # What is no number is not known to be empty.
        voxels = np.not_equal(data, 0) if self.below is None else ~np.less_equal(data, self.below)
        kept: NDArray[np.bool_] = np.logical_or.reduce(voxels, axis=0)
        if self.margin and kept.any():
            from scipy.ndimage import maximum_filter  # a second of imports that masks do without

            kept = maximum_filter(kept, size=2 * self.margin + 1, mode="constant", cval=0)
        kept = kept[own.relative_to(seen.lower).slices]
        if not kept.any():
            return np.zeros(box.shape, np.bool_)
        for axis, (a, b, f, n) in enumerate(zip(box.lower, box.upper, self.factors, self.volume.shape)):
            if f > 1:
                cells = np.minimum(np.arange(a, b) // f, n - 1)
                kept = np.take(kept, cells - own.lower[axis], axis=axis)
        return kept

    def _cells(self, box: Box) -> Box:
        """The voxels of this volume that cover the box; the last one covers what a pyramid left over."""
        zipped = zip(box.lower, box.upper, self.factors, self.volume.shape)
        spans = [(min(a // f, n - 1), min(ceil_div(b, f), n)) for a, b, f, n in zipped]
        return Box(tuple(a for a, _ in spans), tuple(b for _, b in spans))

    def bytes_for(self, shape: Shape) -> int:
        """Bytes of reading the part for a block, the answer included."""
        zipped = zip(shape, self.factors, self.volume.shape)
        cells = prod(min(ceil_div(n, f) + 1 + 2 * self.margin, m) for n, f, m in zipped)
        return prod(shape) + cells * len(self.volume.channels) * (self.volume.dtype.itemsize + 2)


@dataclass(frozen=True)
class Keeper:
    """Which voxels of an image are kept, by box. Nothing is read before it is needed, nor held."""

    grids: tuple[_Grid, ...]
    plan: KeepPlan

    @classmethod
    def open(cls, plan: KeepPlan, image: Volume) -> Keeper:
        """What a plan for this image names. Raises as `Volume.open`."""
        grids = []
        if (mask := plan.mask) is not None:
            volume = Volume.open(mask.url, level=mask.level, timepoint=mask.timepoint)
            grids.append(_Grid(volume, mask.factors, None, 0))
        if (below := plan.below) is not None:
            grids.append(_Grid(open_level(image, below.level), below.factors, below.value, below.margin))
        return cls(tuple(grids), plan)

    def of(self, box: Box) -> NDArray[np.bool_]:
        """bool (z, y, x) of a box inside the image.

        Raises
        ------
        DataError
            A chunk of the mask, or of the level that is looked at, is damaged.
        StoreError
            A store does not give what it has.
        """
        first, *others = self.grids
        kept = first.of(box)
        for grid in others:
            if not kept.any():
                break
            kept = kept & grid.of(box)
        return kept

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which voxels are kept, for the run's fingerprint; reads a few chunks."""
        plan = self.plan.to_dict()
        given = [name for name in ("mask", "below") if plan[name] is not None]
        return {
            name: {**plan[name], "factors": list(plan[name]["factors"]), "volume": grid.volume.identity()}
            for name, grid in zip(given, self.grids)
        }

    def bytes_for(self, shape: Shape) -> int:
        """Bytes that a worker needs for a block of this shape."""
        return sum(grid.bytes_for(shape) for grid in self.grids)


def tiles_kept(tiling: Tiling, index: int, kept: NDArray[np.bool_]) -> list[Tile]:
    """The tiles of a block that hold a kept voxel; `kept` is the block's."""
    corner = tiling.block_box(index).lower
    return [tile for tile in tiling.tiles(index) if kept[tile.keep.relative_to(corner).slices].any()]


def leave_out(
    kept: NDArray[np.bool_],
    classes: NDArray[np.uint8],
    probabilities: NDArray[np.uint8] | None,
    *,
    value: int,
) -> None:
    """Overwrite, in place, what was computed beside kept voxels: classes by `value`, probabilities by 0."""
    np.copyto(classes, np.uint8(value), where=~kept)
    if probabilities is not None:
        probabilities *= kept
