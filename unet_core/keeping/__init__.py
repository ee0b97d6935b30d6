"""Skipping what is empty: which voxels of a volume are to be computed, by a mask or by a low pyramid level.

    KeepRequest -> plan_keep -> KeepPlan -> Keeper.of(box) -> tiles_kept, leave_out
                   (grids found, refused)   (reads the part for one block)

What is kept is decided for each voxel, so results depend on neither blocks nor tiles: a voxel that is not
kept is background, whether the tile around it was computed or not.

    mask voxel        |  keep  |   -    |   -    |  keep  |
    image voxels      |xxxxxxxx|        |        |xxxxxxxx|     x: the network's answer, else background
    tiles             |--computed--|--skipped-|--computed--|
"""

from unet_core.keeping.estimate import Estimate, estimate
from unet_core.keeping.keeper import LEFT_OUT, Keeper, leave_out, tiles_kept
from unet_core.keeping.plan import Below, KeepPlan, KeepRequest, Mask, plan_keep

__all__ = [
    "LEFT_OUT",
    "Below",
    "Estimate",
    "KeepPlan",
    "KeepRequest",
    "Keeper",
    "Mask",
    "estimate",
    "leave_out",
    "plan_keep",
    "tiles_kept",
]
