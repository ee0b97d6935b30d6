"""From classes to instances: every object once, as if the volume had been labelled whole, block by block.

    foreground  which voxels               components  one block's labels    faces  what meets across a seam
    holes       which background to fill   merging     union-find, ids       ranking  ids by first voxels
    evidence    what blocks leave for one another, kept for merging anew
    plan        what is asked for, resolved; the stages    blocks  one function per stage, on stores

`blocks`, and `in_memory` for arrays, are to be imported where they are used: they load cc3d and numba.

The module for another way to make instances has the same shape: it labels a block, finds what meets across
seams, merges, and leaves ids for `relabel`.
"""

from unet_core.instances.layout import begin_instances, begin_merge, create_final, only_level
from unet_core.instances.needs import (
    basins_at_most,
    disk_bytes,
    merge_bytes,
    require_memory,
    require_merge,
    scratch_bytes,
    worker_bytes,
)
from unet_core.instances.plan import InstancePlan, InstanceRequest, plan_instances
from unet_core.instances.stitching import (
    PlannedStitch,
    StitchPlan,
    StitchRequest,
    plan_stitch,
    prepare_stitched,
    start_stitch,
)

__all__ = [
    "InstancePlan",
    "InstanceRequest",
    "PlannedStitch",
    "StitchPlan",
    "StitchRequest",
    "basins_at_most",
    "begin_instances",
    "begin_merge",
    "create_final",
    "disk_bytes",
    "merge_bytes",
    "only_level",
    "plan_instances",
    "plan_stitch",
    "prepare_stitched",
    "require_memory",
    "require_merge",
    "scratch_bytes",
    "start_stitch",
    "worker_bytes",
]
