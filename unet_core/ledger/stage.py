"""A stage as the ledger sees it: a row of blocks, each the one writer of its box in some arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from unet_core.geometry import Box, Shape


def _none(index: int) -> Iterable[str]:
    """What most stages write beside their arrays."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A plan of `count` blocks. Holds nothing per block: boxes come by arithmetic.

    Attributes
    ----------
    arrays
        Paths of the arrays that a block writes, in the order in which their voxels enter its digest.
    target
        Time point and box (z, y, x, in the arrays' voxels) that block `index` writes.
    quick
        Whether the digest of its one array, of integers, is `quick_digest` instead of `digest_of`.
    objects
        Keys of plain objects that a block writes beside the arrays; one that ends in "/" is a folder of them.
    margin
        Voxels around its box that a block is made from, too.
    factors
        Voxels of the finest level per voxel of these arrays, z, y, x.
    """

    name: str
    count: int
    arrays: tuple[str, ...]
    target: Callable[[int], tuple[int, Box]]
    quick: bool = False
    objects: Callable[[int], Iterable[str]] = _none
    margin: Shape = (0, 0, 0)
    factors: Shape = (1, 1, 1)

    def extent(self, index: int) -> tuple[int, Box]:
        """Time point and box of a block in voxels of the finest level."""
        timepoint, box = self.target(index)
        return timepoint, box.refine(self.factors)


@dataclass(frozen=True)
class Done:
    """What a block's function returns: voxels written, and input chunks that were absent (fill value).

    `empty`: nothing of it was to be computed, so nothing was read. `decoded`: bytes of input decoded for it.
    """

    voxels: int
    absent: int = 0
    empty: bool = False
    decoded: int = 0
