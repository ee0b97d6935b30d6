"""Answers as files: tables as CSV, JSON or Parquet; masks and crops as Zarr, TIFF or NPZ. Local and s3://."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import tifffile
import zarr
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, Shape, ceil_div
from unet_core.metadata import PyramidLevel
from unet_core.query.labels import Labels
from unet_core.volumes import Store, Volume, before_work, create_multiscale, open_for_writing, write_box

TABLES = (".csv", ".json", ".parquet")
ARRAYS = (".zarr", ".tif", ".tiff", ".npz")
_SHARD = 4  # chunks along an axis of a shard
# OME-TIFF has symbols for these; other units are left out.
_SYMBOLS = {"micrometer": "µm", "nanometer": "nm", "millimeter": "mm", "angstrom": "Å", "picometer": "pm"}


def save_table(table: pa.Table, to: str) -> None:
    """Write a table in the format of the file's name: .csv, .json or .parquet.

    Raises
    ------
    InputError
        Another suffix, or something is there already.
    """
    _write(to, table_bytes(table, _suffix(to, TABLES)))


def table_bytes(table: pa.Table, suffix: str) -> bytes:
    """A table as .csv, .json (a list of objects) or .parquet."""
    if suffix == ".json":
        return json.dumps(json_rows(table), indent=1, allow_nan=False).encode()
    sink = pa.BufferOutputStream()
    if suffix == ".csv":
        pa.csv.write_csv(table, sink)
    else:
        pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON takes them: what is no number (an intensity that could not be measured) is null."""
    return [
        {name: None if isinstance(v, float) and v != v else v for name, v in row.items()}
        for row in table.to_pylist()
    ]


def save_mask(labels: Labels, identity: int, to: str) -> Box:
    """Write which voxels of its bounding box are an object's (1, others 0); returns the box.

    Raises
    ------
    InputError
        An id that no object has, another suffix than .zarr, .tif or .npz, something there already, a box
        too large for anything but .zarr.
    DataError
        The labels do not hold what the table says; a .zarr that was begun does not open.
    """
    suffix = _suffix(to, ARRAYS)
    _require_new(to)
    box = labels.box_of(identity)
    if suffix == ".zarr":
        with _created(
            Store(to), labels.volume, box, dtype=np.dtype(np.uint8), name=f"object {identity}"
        ) as array:
            _write_mask(array, labels, identity, box)
        return box
    _, mask = labels.mask(identity)
    if suffix == ".npz":
        _write(to, _npz(labels.volume, box, mask=mask))
    else:
        _write(to, _tiff(labels.volume, mask[np.newaxis].astype(np.uint8)))
    return box


def save_crop(labels: Labels, box: Box, to: str, *, image: bool = True) -> list[str]:
    """Write the labels of a box and the image under them; returns what was written.

    A .zarr is the image with the labels inside, as OME-Zarr has it; beside a .tif lies one of the labels.

    Raises
    ------
    InputError
        As `Labels.crop` and `save_mask`.
    """
    suffix = _suffix(to, ARRAYS)
    box = labels.inside(box)
    beside = f"{to.removesuffix(suffix)}_labels{suffix}"
    several = image and suffix in (".tif", ".tiff")
    for name in (to, beside) if several else (to,):
        _require_new(name)
    if suffix == ".zarr":
        _crop_to_zarr(labels, box, Store(to), image=image)
        return [to]
    crop = labels.crop(box, image=image)
    if suffix == ".npz":
        arrays = {"labels": crop.labels} | ({} if crop.image is None else {"image": crop.image})
        _write(to, _npz(labels.volume, box, **arrays))
        return [to]
    if crop.image is not None:
        _write(to, _tiff(labels.volume, crop.image))
    _write(beside if several else to, _tiff(labels.volume, crop.labels[np.newaxis]))
    return [to, beside] if several else [to]


def _crop_to_zarr(labels: Labels, box: Box, store: Store, *, image: bool) -> None:
    """Shard by shard: the box may be larger than memory."""
    pairs = [(labels.volume, store.child("labels/objects") if image else store, "labels")]
    if image:
        pairs.append((labels.image, store, "image"))
    for volume, target, kind in reversed(pairs):
        channels = volume.channels if kind == "image" else ()
        with _created(
            target, labels.volume, box, channels=channels, dtype=volume.dtype, name="crop"
        ) as array:
            for part in _targets(labels.volume, box):
                data = volume.read(part)
                write_box(array, part.relative_to(box.lower), data if kind == "image" else data[0])
    if image:
        listing = {"ome": {"version": "0.5", "labels": ["objects"]}}
        group = {"zarr_format": 3, "node_type": "group", "attributes": listing}
        store.write("labels/zarr.json", json.dumps(group, indent=2).encode())


def _write_mask(array: zarr.Array[Any], labels: Labels, identity: int, box: Box) -> None:
    """Shard by shard, and reads only what is near the object; DataError as `Labels.mask` raises it."""
    size = _shard(labels.volume, box)
    parts = list(labels.parts(identity, box))
    meeting: dict[tuple[int, ...], list[int]] = {}  # the shards that hold voxels of it, and parts in each
    for number, (part, _) in enumerate(parts):
        inside = part.relative_to(box.lower)
        spans = [range(a // n, ceil_div(b, n)) for a, b, n in zip(inside.lower, inside.upper, size)]
        for cell in product(*spans):
            meeting.setdefault(cell, []).append(number)
    found = [0] * len(parts)
    for cell, numbers in sorted(meeting.items()):
        lower = tuple(a + c * n for a, c, n in zip(box.lower, cell, size))
        target = Box(lower, tuple(a + n for a, n in zip(lower, size))).intersect(box)
        mask = np.zeros(target.shape, np.uint8)
        here = [parts[number][0].intersect(target) for number in numbers]
        hull = Box(
            tuple(map(min, zip(*(part.lower for part in here)))),
            tuple(map(max, zip(*(part.upper for part in here)))),
        )
        mask[hull.relative_to(lower).slices] = labels.volume.read(hull)[0] == identity
        for number, part in zip(numbers, here):
            found[number] += int(np.count_nonzero(mask[part.relative_to(lower).slices]))
        write_box(array, target.relative_to(box.lower), mask)
    for (part, voxels), count in zip(parts, found):
        labels.require_voxels(identity, part, voxels, count)


@contextmanager
def _created(
    store: Store, volume: Volume, box: Box, *, dtype: np.dtype[Any], name: str, channels: tuple[int, ...] = ()
) -> Iterator[zarr.Array[Any]]:
    """An image of these channels, or labels where there are none, placed as the box of `volume`.

    It opens as a volume when the block ends well: what is killed half-way must not look like an answer.
    """
    leading = (len(channels),) if channels else ()
    chunk = tuple(min(c, n) for c, n in zip(volume.chunk_shape, box.shape))
    create = partial(
        create_multiscale,
        store,
        kind="image" if channels else "labels",
        axes="c" * len(leading) + volume.spatial_axes,
        leading=leading,
        levels=[PyramidLevel(0, box.shape, (1, 1, 1))],
        dtype=dtype,
        chunk=chunk,
        shard=tuple(c * min(_SHARD, ceil_div(n, c)) for c, n in zip(chunk, box.shape)),
        voxel_size=volume.voxel_size,
        origin=_origin(volume, box),
        unit=volume.unit,
        name=name,
    )
    create(opens=False)
    yield open_for_writing(store, "0")
    create()


def _shard(volume: Volume, box: Box) -> Shape:
    """What `_created` writes at a time."""
    return tuple(_SHARD * min(c, n) for c, n in zip(volume.chunk_shape, box.shape))


def _targets(volume: Volume, box: Box) -> Iterator[Box]:
    """Pieces of a box, each whole shards of what `_created` makes of it."""
    for cell in Grid(Box.of_shape(box.shape), _shard(volume, box)):
        yield cell.shift(box.lower).intersect(box)


def _origin(volume: Volume, box: Box) -> tuple[float, ...]:
    return tuple(o + a * s for o, a, s in zip(volume.origin, box.lower, volume.voxel_size))


def _npz(volume: Volume, box: Box, **arrays: NDArray[Any]) -> bytes:
    """The arrays with `lower` (voxel), `voxel_size` and `origin` (physical), all z, y, x."""
    buffer = BytesIO()
    place = {"lower": np.array(box.lower), "voxel_size": np.array(volume.voxel_size)}
    np.savez_compressed(buffer, **arrays, **place, origin=np.array(_origin(volume, box)), allow_pickle=False)
    return buffer.getvalue()


def _tiff(volume: Volume, data: NDArray[Any]) -> bytes:
    """(c, z, y, x) as OME-TIFF with voxel sizes; 64-bit ids that fit as 32-bit ones, which OME has."""
    if data.dtype == np.uint64 and (not data.size or data.max() < 2**32):
        data = data.astype(np.uint32)
    sizes: dict[str, Any] = {"axes": "CZYX"}
    for axis, size in zip("ZYX", volume.voxel_size):
        sizes[f"PhysicalSize{axis}"] = size
        if volume.unit in _SYMBOLS:
            sizes[f"PhysicalSize{axis}Unit"] = _SYMBOLS[volume.unit]
    known = data.dtype.itemsize < 8 or data.dtype.kind == "f"
    buffer = BytesIO()
    tifffile.imwrite(
        buffer,
        data,
        ome=known,
        metadata=sizes if known else None,
        photometric="minisblack",
        compression="zlib",
        bigtiff=data.nbytes > 2**31,
    )
    return buffer.getvalue()


def _suffix(to: str, known: tuple[str, ...]) -> str:
    suffix = PurePath(to).suffix.lower()
    if suffix not in known:
        raise InputError("this kind of file is not known", where=to, expected=f"a name in {', '.join(known)}")
    return suffix


@before_work()
def _require_new(to: str) -> None:
    store = Store(to)
    folder, _, name = store.url.rpartition("/")
    if store.exists() or Store(folder).read(name) is not None:
        raise InputError("this is there already", where=store.url, fix="choose another --to, or remove it")


def _write(to: str, data: bytes) -> None:
    _require_new(to)
    folder, _, name = Store(to).url.rpartition("/")
    Store(folder).write(name, data)
