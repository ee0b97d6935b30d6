"""The semantic segmentation of one volume as a plan, an output, and one function per block and stage.

    SegmentRequest -> plan_segmentation -> Planned -> start -> BlockWorker.predict, block by block
                      (plan: checks, choices)         (blocks) pyramid_block, block by block

Only the output's URL and a block index travel to workers: they find the plan in the run record.
"""

from unet_core.segmentation.blocks import BlockWorker, pyramid_block, start
from unet_core.segmentation.plan import Planned, SegmentPlan, SegmentRequest, plan_segmentation

__all__ = [
    "BlockWorker",
    "Planned",
    "SegmentPlan",
    "SegmentRequest",
    "plan_segmentation",
    "pyramid_block",
    "start",
]
