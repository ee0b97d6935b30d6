"""The only package that opens arrays in a store: reading boxes, writing multiscales, naming stores."""

from unet_core.volumes.stores import Store
from unet_core.volumes.volume import Volume
from unet_core.volumes.writing import create_multiscale, open_for_writing, write_box

__all__ = ["Store", "Volume", "create_multiscale", "open_for_writing", "write_box"]
