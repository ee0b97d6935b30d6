"""Coarser levels of a multiscale, block by block, each from the finished level below it.

Labels go by mode (the most frequent label, the smallest on a tie), never by interpolation: a mean of
labels is another label. Images go by mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Grid, Shape
from unet_core.ledger import Stage, digest_of
from unet_core.metadata import PyramidLevel, steps_between
from unet_core.volumes import Store, axis_names, open_for_reading, open_for_writing, read_box, write_box

Method = Literal["mode", "mean"]
STAGE = "pyramid-"  # and the level


@dataclass(frozen=True, kw_only=True)
class PyramidPlan:
    """The pyramid of one multiscale. A block is one shard of one level at one time point; shapes z, y, x.

    `extent` is the part of level 0 that holds data (an ROI, or everything).
    """

    levels: tuple[PyramidLevel, ...]
    shard: Shape
    method: Method
    extent: Box
    timepoints: int = 1

    def blocks(self, level: int) -> Grid:
        """The shards of one level that meet the extent."""
        coarse = self.extent.coarsen(self.levels[level].factors)
        return Grid(coarse.intersect(Box.of_shape(self.levels[level].shape)), self.shard)

    def count(self, level: int) -> int:
        """Blocks of one level, all time points."""
        return len(self.blocks(level)) * self.timepoints

    def target(self, level: int, index: int) -> tuple[int, Box]:
        """Time point and box (in that level's voxels) of one block."""
        grid = self.blocks(level)
        timepoint, position = divmod(index, len(grid))
        return timepoint, grid[position].intersect(Box.of_shape(self.levels[level].shape))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage per level above the finest."""
        return tuple(
            Stage(
                name=f"{STAGE}{level.index}",
                count=self.count(level.index),
                arrays=(str(level.index),),
                target=partial(self.target, level.index),
                factors=level.factors,
            )
            for level in self.levels[1:]
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "levels": [[list(level.shape), list(level.factors)] for level in self.levels],
            "shard": list(self.shard),
            "method": self.method,
            "extent": str(self.extent),
            "timepoints": self.timepoints,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PyramidPlan:
        return cls(
            levels=tuple(PyramidLevel(i, tuple(s), tuple(f)) for i, (s, f) in enumerate(data["levels"])),
            shard=tuple(data["shard"]),
            method=data["method"],
            extent=Box.parse(data["extent"]),
            timepoints=data["timepoints"],
        )


def write_block(store: Store, plan: PyramidPlan, level: int, index: int) -> tuple[Box, str]:
    """Compute and write one block of `level` >= 1; returns its box in that level's voxels, and its digest."""
    timepoint, box = plan.target(level, index)
    steps = steps_between(plan.levels[level - 1], plan.levels[level])
    finer = box.refine(steps).intersect(Box.of_shape(plan.levels[level - 1].shape))
    data = read_box(open_for_reading(store, str(level - 1)), finer, timepoint=timepoint)
    coarse = np.stack([reduce_by(channel, steps, plan.method) for channel in data])
    array = open_for_writing(store, str(level))
    write_box(array, box, coarse if "c" in axis_names(array) else coarse[0], timepoint=timepoint)
    return box, digest_of(coarse)


def reduce_by(data: NDArray[Any], steps: Shape, method: Method) -> NDArray[Any]:
    """(z, y, x) to the ceiling of its shape divided by `steps` (each 1 or 2), in the same data type."""
    # At an odd end the last voxel is repeated: every voxel of that window then counts equally often,
    # so neither the mode, nor its ties, nor the mean change.
    odd = [(0, -n % step) for n, step in zip(data.shape, steps)]
    padded = np.pad(data, odd, mode="edge")
    views = [
        padded[tuple(slice(offset, None, step) for offset, step in zip(offsets, steps))]
        for offsets in product(*(range(step) for step in steps))
    ]
    if len(views) == 1:
        return data
    return _mode(views) if method == "mode" else _mean(views)


def _mode(views: list[NDArray[Any]]) -> NDArray[Any]:
    best, best_count = views[0].copy(), np.zeros(views[0].shape, np.uint8)
    for candidate in views:
        count = np.zeros(candidate.shape, np.uint8)
        for other in views:
            count += candidate == other
        better = (count > best_count) | ((count == best_count) & (candidate < best))
        best = np.where(better, candidate, best)
        best_count = np.maximum(count, best_count)
    return best


def _mean(views: list[NDArray[Any]]) -> NDArray[Any]:
    mean = np.zeros(views[0].shape, np.float64)
    for view in views:
        mean += view
    mean /= len(views)
    if views[0].dtype.kind == "f":
        return mean.astype(views[0].dtype)
    return np.floor(mean + 0.5).astype(views[0].dtype)
