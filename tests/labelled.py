"""Label volumes with an object table, made of given labels: what `segment --instances` leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zarr

from unet_core.geometry import Box, Grid, Shape
from unet_core.ledger import RunRecord, begin, set_status
from unet_core.metadata import PyramidLevel
from unet_core.table import TablePlan, quanta_of, write_sums, write_tables
from unet_core.volumes import Store, create_multiscale, open_for_writing, write_box

CLASSES = ("background", "cell", "nucleus")


def write_labels(
    root: str,
    labels: np.ndarray,
    image: np.ndarray,
    classes: np.ndarray,
    *,
    chunk: Shape = (4, 8, 8),
    block: Shape = (8, 16, 16),
    voxel_size: Sequence[float] = (2.0, 0.5, 0.25),
    origin: Sequence[float] = (10.0, 0.0, -5.0),
) -> str:
    """`root`/labels.zarr and the image beside it; returns the labels' URL. Image is c, z, y, x."""
    zarr.create_array(
        Store(f"{root}/image.zarr").zarr(read_only=False),
        data=image,
        chunks=(1, *chunk),
        dimension_names=list("czyx"),
    )
    store = Store(f"{root}/labels.zarr")
    extent = Box.of_shape(labels.shape)
    channels = tuple(range(len(image)))
    plan = TablePlan(
        volume=labels.shape,
        extent=extent,
        planar=labels.shape[0] == 1,
        voxel_size=tuple(voxel_size),
        origin=tuple(origin),
        unit="micrometer",
        chunk=chunk,
        shard=block,
        channels=channels,
        quanta=quanta_of(image.dtype, (0.0,) * len(image), (1.0,) * len(image)),
        classes=CLASSES,
    )
    inputs = {"volume": f"{root}/image.zarr", "level": 0, "channels": list(channels), "timepoint": 0}
    record = RunRecord("segment", {"labels": root}, {**inputs, "classes": list(CLASSES)})
    begin(store, record)
    create_multiscale(
        store,
        kind="labels",
        axes="zyx",
        leading=(),
        levels=[PyramidLevel(0, labels.shape, (1, 1, 1))],
        dtype=labels.dtype,
        chunk=chunk,
        shard=block,
        voxel_size=voxel_size,
        origin=origin,
        unit="micrometer",
        name="labels",
    )
    blocks = Grid(extent, block)
    for index, cell in enumerate(blocks):
        box = cell.intersect(extent)
        write_box(open_for_writing(store, "0"), box, labels[box.slices])
        part = plan.measure(
            labels[box.slices], box, image=image[(slice(None), *box.slices)], classes=classes[box.slices]
        )
        write_sums(store, index, part)
    write_tables(store, plan, blocks=len(blocks), fingerprint=record.fingerprint)
    set_status(store, "complete")
    return store.url
