"""From classes to instances: every object once, as if the volume had been labelled whole, block by block.

    foreground  which voxels               components  one block's labels    faces  what meets across a seam
    holes       which background to fill   merging     union-find, ids       ranking  ids by first voxels
    evidence    what blocks leave for one another, kept for merging anew
    plan        what is asked for, resolved; the stages    blocks  one function per stage, on stores

The module for another way to make instances has the same shape: it labels a block, finds what meets across
seams, merges, and leaves ids for `relabel`.
"""

from unet_core.instances.blocks import InstanceWorker
from unet_core.instances.in_memory import label_components
from unet_core.instances.layout import begin_instances, begin_merge, create_final, only_level
from unet_core.instances.plan import InstancePlan, InstanceRequest, plan_instances

__all__ = [
    "InstancePlan",
    "InstanceRequest",
    "InstanceWorker",
    "begin_instances",
    "begin_merge",
    "create_final",
    "label_components",
    "only_level",
    "plan_instances",
]
