"""A stage as the ledger sees it: a row of blocks, each the one writer of its box in some arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from unet_core.geometry import Box, Shape


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A plan of `count` blocks. Holds nothing per block: boxes come by arithmetic.

    Attributes
    ----------
    arrays
        Paths of the arrays that a block writes, in the order in which their voxels enter its digest.
    target
        Time point and box (z, y, x, in the arrays' voxels) that block `index` writes.
    factors
        Voxels of the finest level per voxel of these arrays, z, y, x.
    """

    name: str
    count: int
    arrays: tuple[str, ...]
    target: Callable[[int], tuple[int, Box]]
    factors: Shape = (1, 1, 1)

    def extent(self, index: int) -> tuple[int, Box]:
        """Time point and box of a block in voxels of the finest level."""
        timepoint, box = self.target(index)
        return timepoint, box.refine(self.factors)


@dataclass(frozen=True)
class Done:
    """What a block's function returns: voxels written, and input chunks that were absent (fill value)."""

    voxels: int
    absent: int = 0
