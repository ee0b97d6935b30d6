"""Acquisitions under a prefix: which OME-Zarr images there are, and whether they are still being written.

finding   a walk over folders: never into an image, so never over its chunks
growing   finished or growing: by a marker file, by our own records, or by age and what is there
"""

from unet_core.acquisition.finding import Found, find_volumes
from unet_core.acquisition.growing import Patience, stamp, why_growing

__all__ = ["Found", "Patience", "find_volumes", "stamp", "why_growing"]
