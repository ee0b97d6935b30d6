"""Microscopy files that are not Zarr, opened lazily and read box by box: TIFF, HDF5, NPZ, PNG series.

opening    which reader a path needs; series of files
files      which files paths, folders and patterns mean
source     what every reader is turned into: (channel, z, y, x) boxes in canonical axis order
tiff | hdf5 | npz | images    one reader per kind, in the axis order of its file
linear     C-order bytes behind a stream: npz, npy and uncompressed TIFF
stack      several files of one shape as one array
axes | units                  what the axes are called and what a voxel measures
"""

from unet_core.sources.files import files_of, volume_name
from unet_core.sources.opening import open_source
from unet_core.sources.source import Source, SourceSpec
from unet_core.sources.units import space_unit

__all__ = ["Source", "SourceSpec", "files_of", "open_source", "space_unit", "volume_name"]
