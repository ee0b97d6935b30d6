"""Random changes of training patches that leave the labels true.

`AugmentSettings` says what may change. `Spatial` moves voxels: exactly (right angles, mirror images) or
interpolated (rotation, scaling, elastic). `recolour` changes intensities.

Why not a library
-----------------
batchgeneratorsv2 (nnU-Net) and MONAI were read first. Both transform what was cut from the volume before: the
corners of a rotated patch come from beyond the cut and are filled with zeros, or the caller cuts a margin by
rule of thumb. With valid convolutions every voxel of the context counts, so here the transform is drawn first
and says which box of the volume it needs. Both draw by default from generators that all threads share
(numpy's global one in batchgeneratorsv2), and a patch must follow from (seed, step, item) alone. Their
elastic deformation is Gaussian-filtered noise per voxel, which costs more than all the rest, not the paper's
coarse grid. elasticdeform has that grid, but neither rotation nor scaling.
"""

from unet_core.augment.intensity import recolour
from unet_core.augment.settings import AugmentSettings
from unet_core.augment.spatial import Spatial, Transform, View

__all__ = ["AugmentSettings", "Spatial", "Transform", "View", "recolour"]
