"""Watershed of a volume too big for memory, exactly as of the volume whole.

    probability -> heights -> pointers to the best neighbour -> pieces of basins -> across seams -> objects
         heights, distance    basins                            saddles, simplify   seams           merging
                                                                block                               spill

Blocks change nothing: everything is decided by integers and by orders that are total in voxels alone.
`stages` does it for the blocks of a volume, `in_memory` for an array.
"""

from unet_core.instances.watershed.criterion import Criterion
from unet_core.instances.watershed.heights import VOXEL, HeightMap
from unet_core.instances.watershed.settings import WatershedPlan, plan_watershed

__all__ = ["VOXEL", "Criterion", "HeightMap", "WatershedPlan", "plan_watershed"]
