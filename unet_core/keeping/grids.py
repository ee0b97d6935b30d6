"""How many voxels of an image one voxel of a coarser grid over it covers, found from shapes and voxel sizes.

Shapes alone can be ambiguous: 9 voxels become 3 by one step of 3, or by two of 2 (9, 5, 3). Voxel sizes
decide where both grids have them.
"""

from __future__ import annotations

from unet_core.geometry import ceil_div

_TOLERANCE = 0.02  # of voxel sizes that were rounded before they were written


def steps_that_give(fine: int, coarse: int) -> list[int]:
    """All steps that make `fine` voxels `coarse` ones; empty where none does.

    A pyramid rounds up (1001 -> 501) or, made by others, down (1001 -> 500): then the last coarse voxel
    stands for the few that are left over. Rounding down counts only where nothing rounds up to it.
    """
    if not 1 <= coarse <= fine:
        return []
    if coarse == 1:
        return [fine]  # one voxel covers the axis; larger ones would cover no more
    rounded_up = range(ceil_div(fine, coarse), ceil_div(fine, coarse - 1))
    rounded_down = range(fine // (coarse + 1) + 1, fine // coarse + 1)
    return [s for s in rounded_up if ceil_div(fine, s) == coarse] or list(rounded_down)


def likeliest(steps: list[int], fine: int, coarse: int) -> int | None:
    """The step that shapes alone leave no doubt of: an exact ratio, the only one, the only power of 2."""
    if fine == coarse * (fine // coarse):
        return fine // coarse
    for some in (steps, [s for s in steps if s & (s - 1) == 0]):
        if len(some) == 1:
            return some[0]
    return None


def by_size(steps: list[int], fine: int, coarse: int, ratio: float) -> int | None:
    """The step that a ratio of voxel sizes means; None where none is near it.

    Writers give the step itself, or the ratio of the lengths (1001 / 501 for 2).
    """
    near = [s for s in steps if any(abs(ratio - r) <= _TOLERANCE * r for r in (s, fine / coarse))]
    return min(near, key=lambda s: abs(ratio - s), default=None)
