"""The only package that opens arrays in a store: reading boxes, writing multiscales, naming stores."""

from unet_core.volumes.chunks import outer_keys, some_keys
from unet_core.volumes.faults import before_work
from unet_core.volumes.listing import Facts
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
    "Facts",
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
    "outer_keys",
    "read_box",
    "set_attributes",
    "some_keys",
    "write_box",
]
