"""The only package that opens arrays in a store: reading boxes, writing multiscales, naming stores."""

from unet_core.volumes.faults import before_work
from unet_core.volumes.stores import Store
from unet_core.volumes.volume import Volume
from unet_core.volumes.writing import (
    axis_names,
    create_group,
    create_multiscale,
    create_records_node,
    group_metadata,
    open_for_reading,
    open_for_writing,
    read_box,
    set_attributes,
    write_box,
)

__all__ = [
    "Store",
    "Volume",
    "axis_names",
    "before_work",
    "create_group",
    "create_multiscale",
    "create_records_node",
    "group_metadata",
    "open_for_reading",
    "open_for_writing",
    "read_box",
    "set_attributes",
    "write_box",
]
