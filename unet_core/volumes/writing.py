"""Writing: OME-Zarr 0.5 multiscales, sharded so that one block owns each shard, every byte checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import NodeTypeValidationError

from unet_core.errors import DataError
from unet_core.geometry import Box, Shape
from unet_core.metadata import SPATIAL, PyramidLevel, ome_attributes
from unet_core.volumes.chunks import read_checked, write_checked
from unet_core.volumes.faults import scrub
from unet_core.volumes.stores import Store


def create_multiscale(
    store: Store,
    *,
    kind: Literal["image", "labels"],
    axes: str,
    leading: Shape,
    levels: Sequence[PyramidLevel],
    dtype: np.dtype[Any],
    chunk: Shape,
    shard: Shape,
    voxel_size: Sequence[float],
    origin: Sequence[float],
    unit: str | None,
    name: str,
    method: str | None = None,
    source: str | None = None,
    opens: bool = True,
) -> None:
    """Create the group and its empty arrays `0`, `1`, ...; those that are there already are kept.

    Parameters
    ----------
    axes, leading
        Axes of the arrays, such as "czyx", and the sizes of those before the spatial ones. Chunks
        hold one index of each leading axis, shards hold all channels and one time point.
    chunk, shard
        z, y, x; a shard is whole chunks. An axis that the arrays do not have must be 1.
    opens
        False leaves out the image's metadata: what is written opens as a volume only after the same call with
        True. For what has no run record to say that it is whole.

    Missing chunks mean fill value 0; crc32c guards every chunk and every shard index.
    """
    spatial = [i for i, a in enumerate(SPATIAL) if a in axes]
    attributes = ome_attributes(
        kind=kind,
        axes=axes,
        levels=levels,
        voxel_size=voxel_size,
        origin=origin,
        unit=unit,
        name=name,
        method=method,
        source=source,
    )
    if group_metadata(store) is None:  # a crash may have left half of one
        store.delete(["zarr.json"])
    group = zarr.open_group(store.zarr(read_only=False), mode="a", zarr_format=3, use_consolidated=False)
    if opens:
        group.attrs.update(attributes)
    leading_shard = tuple(n if a == "c" else 1 for a, n in zip(axes, leading))
    for level in levels:
        if str(level.index) in group:
            continue
        group.create_array(
            str(level.index),
            shape=(*leading, *(level.shape[i] for i in spatial)),
            dtype=dtype,
            chunks=((1,) * len(leading)) + tuple(chunk[i] for i in spatial),
            shards=(*leading_shard, *(shard[i] for i in spatial)),
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            fill_value=0,
            dimension_names=tuple(axes),
            config={"write_empty_chunks": False},
            overwrite=False,
        )


def create_group(store: Store) -> None:
    """A Zarr group without metadata of its own, where there is none yet: arrays and groups come into it."""
    if group_metadata(store) is None:  # a crash may have left half of one
        store.delete(["zarr.json"])
    zarr.open_group(store.zarr(read_only=False), mode="a", zarr_format=3, use_consolidated=False)


def open_for_writing(store: Store, path: str) -> zarr.Array[Any]:
    """An array of a multiscale made by `create_multiscale`.

    Raises
    ------
    DataError
        It is not there, or its metadata is damaged.
    """
    return _open(store.child(path), "r+")


def open_for_reading(store: Store, path: str) -> zarr.Array[Any]:
    """The same, for those who only look."""
    return _open(store.child(path), "r")


def _open(store: Store, mode: Literal["r", "r+"]) -> zarr.Array[Any]:
    try:
        return zarr.open_array(
            store.zarr(read_only=mode == "r"), mode=mode, config={"write_empty_chunks": False}
        )
    except (FileNotFoundError, NodeTypeValidationError, KeyError, ValueError) as error:
        raise DataError(
            "this array cannot be opened",
            where=store.url,
            expected="an array that this run made",
            found=f"{type(error).__name__}: {scrub(str(error))}",
            fix="give the command again with --restart, or choose another --to",
        ) from None


def write_box(array: zarr.Array[Any], box: Box, data: NDArray[Any], *, timepoint: int = 0) -> None:
    """Write (z, y, x) or, where the array has channels, (channel, z, y, x) data of a box inside the array.

    One writer per shard is the planner's promise, not checked here: two processes that write parts of
    one shard lose data. A damaged shard is replaced: what the box leaves of it, nobody has written.

    Raises
    ------
    StoreError
        The store is full, read-only, out of reach.
    """
    axes = axis_names(array)
    selection: dict[Any, Any] = {"t": timepoint, "c": slice(None), **dict(zip(SPATIAL, box.slices))}
    present = [n for a, n in zip(SPATIAL, box.shape) if a in axes]
    part = tuple(selection[a] for a in axes)
    write_checked(array, part, data.reshape(*data.shape[:-3], *present), axes)


def read_box(array: zarr.Array[Any], box: Box, *, timepoint: int = 0) -> NDArray[Any]:
    """(channel, z, y, x) data of a box of an array of `create_multiscale`; one channel if it has none.

    Raises
    ------
    DataError
        A chunk is damaged: the message names it.
    StoreError
        The store does not give what it has.
    """
    axes = axis_names(array)
    selection: dict[Any, Any] = {"t": timepoint, "c": slice(None), **dict(zip(SPATIAL, box.slices))}
    return read_checked(array, tuple(selection[a] for a in axes), axes).reshape(-1, *box.shape)


def create_records_node(
    store: Store, path: str, *, holds: str = "run record and ledgers; no image data"
) -> None:
    """Make a folder of plain objects, such as the run's records, a Zarr array node without data.

    zarr-python warns about folders in a group that are no Zarr nodes; into an array nobody descends.
    """
    if store.read(f"{path}/zarr.json") is not None:
        return
    zarr.create_array(
        store.zarr(read_only=False),
        name=path,
        shape=(0,),
        dtype="uint8",
        chunks=(1,),
        attributes={"unet-flows": holds},
        overwrite=False,
    )


def axis_names(array: zarr.Array[Any]) -> tuple[str, ...]:
    """The axes of an array made by `create_multiscale`, such as ("c", "z", "y", "x")."""
    return tuple(str(name) for name in getattr(array.metadata, "dimension_names", None) or ())


def set_attributes(store: Store, attributes: Mapping[str, Any]) -> None:
    """Put attributes beside those that the Zarr group at `store` has; does nothing where no group is."""
    document = group_metadata(store)
    if document is not None:
        document["attributes"] = {**document.get("attributes", {}), **attributes}
        store.write("zarr.json", json.dumps(document, indent=2).encode())


def group_metadata(store: Store) -> dict[str, Any] | None:
    """The zarr.json of a group; None where there is none that can be read."""
    try:
        document = json.loads(store.read("zarr.json") or b"")
    except ValueError:
        return None
    return document if isinstance(document, dict) and document.get("node_type") == "group" else None
