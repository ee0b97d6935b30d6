"""Asking a finished label volume: which object is here, which objects are there, where is this one?

labels = Labels.open("s3://bucket/labels.zarr")
large = labels.objects("volume > 1000 and touches_border == false", sort="-volume", limit=20)
box, mask = labels.mask(large["id"][0].as_py())
"""

from unet_core.query.expression import unknown_column
from unet_core.query.files import json_rows, save_crop, save_mask, save_table, table_bytes
from unet_core.query.labels import Crop, Labels

__all__ = [
    "Crop",
    "Labels",
    "json_rows",
    "save_crop",
    "save_mask",
    "save_table",
    "table_bytes",
    "unknown_column",
]
