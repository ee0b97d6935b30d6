"""The semantic segmentation of one volume as a plan, an output, and one function per block and stage.

    SegmentRequest -> plan_segmentation -> Planned -> resolve, start -> BlockWorker.predict, pyramid_block
                      (plan: checks, choices)         (blocks)          block by block, each committed

Only the output's URL and a block index travel to workers: they find the plan in the run record.
"""

from unet_core.segmentation.blocks import (
    BlockWorker,
    prepare_final,
    pyramid_block,
    resolve,
    start,
    tile_that_fits,
)
from unet_core.segmentation.plan import KIND, SegmentPlan
from unet_core.segmentation.planning import Planned, plan_segmentation
from unet_core.segmentation.request import SegmentRequest

__all__ = [
    "KIND",
    "BlockWorker",
    "Planned",
    "SegmentPlan",
    "SegmentRequest",
    "plan_segmentation",
    "prepare_final",
    "pyramid_block",
    "resolve",
    "start",
    "tile_that_fits",
]
