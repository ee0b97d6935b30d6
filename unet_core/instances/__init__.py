"""From classes to instances: every object once, as if the volume had been labelled whole, block by block.

foreground  which voxels               components  one block's labels    faces  what meets across a seam
holes       which background to fill   merging     union-find, ids       ranking  ids by first voxels
evidence    what blocks leave for one another, kept for merging anew
"""

from unet_core.instances.in_memory import label_components

__all__ = ["label_components"]
