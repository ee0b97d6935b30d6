"""Reading: an image or label volume in Zarr as (channel, z, y, x) boxes, mirrored beyond its faces."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import NodeTypeValidationError

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box, Grid, Shape, mirrored_span
from unet_core.metadata import AXES, SPATIAL, Dataset, Multiscale, parse_multiscale
from unet_core.recent import Recent
from unet_core.volumes.chunks import box_of_key, read_checked, read_kept
from unet_core.volumes.faults import before_work
from unet_core.volumes.stores import Store
from unet_core.volumes.zarr_store import CheckedStore

_SAMPLE_BOXES, _SAMPLE_SIDE = 16, 64  # what `Volume.identity` looks at
# Axes of a plain array that names none, by its number of dimensions.
_PLAIN_AXES = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}


@dataclass(frozen=True)
class Volume:
    """One resolution level of a volume, at one time point, some or all of its channels.

    `shape` is z, y, x: a plane has z = 1. `spatial_axes` says which of these the array really has.
    `voxel_size` and `origin` are z, y, x in `unit`s; 1.0 and 0.0 where the volume does not say.
    """

    url: str
    path: str
    axes: str
    shape: Shape
    dtype: np.dtype[Any]
    channels: tuple[int, ...]
    timepoint: int
    voxel_size: tuple[float, ...]
    origin: tuple[float, ...]
    unit: str | None
    metadata_digest: str
    array: zarr.Array[Any]
    _recent: Recent | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls, url: str, *, level: int = 0, channels: Sequence[int] | None = None, timepoint: int = 0
    ) -> Volume:
        """Open an OME-Zarr 0.4 or 0.5 image or label image, or a plain Zarr array (v2 or v3).

        Parameters
        ----------
        level
            Position in the multiscale's list of datasets; 0 is the finest.
        channels
            Which channels to read; None reads all.

        Raises
        ------
        InputError
            Nothing there, not a Zarr, no multiscales, a level, channel or time point that does not exist,
            an array that is not numeric, or a store that refuses or does not answer.
        """
        with before_work():
            return cls._open(url, level, channels, timepoint)

    @classmethod
    def reopen(cls, plan: Mapping[str, Any]) -> Volume:
        """What a run's plan names: `volume`, `level`, `channels` and `timepoint`. Raises as `open`."""
        return cls.open(
            plan["volume"], level=plan["level"], channels=plan["channels"], timepoint=plan["timepoint"]
        )

    @classmethod
    def _open(cls, url: str, level: int, channels: Sequence[int] | None, timepoint: int) -> Volume:
        store = Store(url)
        node = _open_node(store)
        if isinstance(node, zarr.Array):
            if level != 0:
                raise InputError("a plain array has no pyramid", where=url, expected="--level 0", found=level)
            array, multiscale, path = node, _plain(node, url), ""
        else:
            multiscale = parse_multiscale(dict(node.attrs), where=store.url)
            array, path = _open_level(node, multiscale, level, store)
        if array.ndim != len(multiscale.axes):
            raise InputError(
                "wrong number of dimensions",
                where=f"{store.url}/{path}",
                expected=f"{len(multiscale.axes)} ({', '.join(multiscale.axes)})",
                found=f"{array.ndim}, shape {array.shape}",
            )
        dtype = np.dtype(array.dtype)
        if dtype.kind not in "uifb":
            raise InputError("this array does not hold numbers", where=store.url, found=dtype)
        if min(array.shape) < 1:
            raise InputError(
                "this volume is empty", where=f"{store.url}/{path}", found=f"shape {array.shape}"
            )
        size = dict(zip(multiscale.axes, array.shape))
        wanted = tuple(range(size.get("c", 1))) if channels is None else tuple(channels)
        for name, chosen, limit in (
            ("channel", wanted, size.get("c", 1)),
            ("time point", (timepoint,), size.get("t", 1)),
        ):
            if not chosen or any(not 0 <= c < limit for c in chosen):
                raise InputError(
                    f"no such {name}",
                    where=store.url,
                    expected=f"0 to {limit - 1}",
                    found=", ".join(map(str, chosen)) or "none",
                )
        return cls(
            url=store.url,
            path=path,
            axes=multiscale.axes,
            shape=tuple(size.get(a, 1) for a in SPATIAL),
            dtype=dtype,
            channels=wanted,
            timepoint=timepoint,
            voxel_size=multiscale.voxel_size(level),
            origin=multiscale.origin(level),
            unit=multiscale.unit,
            metadata_digest=_metadata_digest(store.child(path)),
            array=array,
        )

    @property
    def where(self) -> str:
        """The array's place, for messages."""
        return f"{self.url}/{self.path}".rstrip("/")

    @property
    def box(self) -> Box:
        return Box.of_shape(self.shape)

    @property
    def spatial_axes(self) -> str:
        return "".join(a for a in SPATIAL if a in self.axes)

    @property
    def chunk_shape(self) -> Shape:
        """What one read decodes, z, y, x."""
        size = dict(zip(self.axes, self.array.chunks))
        return tuple(size.get(a, 1) for a in SPATIAL)

    def identity(self) -> dict[str, Any]:
        """What makes two inputs the same input to a run; JSON-ready, no credentials.

        `content` holds digests of the voxels of a few boxes spread evenly over the volume: they tell another
        volume under the same name, at the cost of a few chunks, not a change of single voxels. A box that
        cannot be decoded has None: the volume is the same before and after it is mended.
        """
        return {
            "url": self.url,
            "dataset": self.path,
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            "channels": list(self.channels),
            "timepoint": self.timepoint,
            "metadata": self.metadata_digest,
            "content": self._content_digests(),
        }

    def _content_digests(self) -> list[str | None]:
        cell = tuple(min(n, c, _SAMPLE_SIDE) for n, c in zip(self.shape, self.chunk_shape))
        grid = Grid(self.box, cell)
        count = min(len(grid), _SAMPLE_BOXES)
        # The middle of each of `count` equal stretches of the grid.
        boxes = (grid[(2 * k + 1) * len(grid) // (2 * count)] for k in range(count))
        return [self._digest(box.intersect(self.box)) for box in boxes]

    def _digest(self, box: Box) -> str | None:
        try:
            voxels = np.ascontiguousarray(self.read(box))
        except DataError:
            return None
        return hashlib.sha256(voxels.data).hexdigest()[:16]

    def read(self, box: Box) -> NDArray[Any]:
        """Voxels of `box` as (channel, z, y, x), in the volume's data type.

        Beyond the faces the volume goes on mirrored, as numpy's `reflect` mode pads it: the face voxel
        is not repeated, reflection repeats where the box is wider than the axis, and an axis of one
        voxel repeats it.

        Raises
        ------
        DataError
            A chunk is damaged: the message names it. An absent chunk is no error, see `take_absent`.
        StoreError
            The store does not give what it has.
        """
        spans = [mirrored_span(a, b, n) for a, b, n in zip(box.lower, box.upper, self.shape)]
        inside = Box(tuple(a for a, _ in spans), tuple(b for _, b in spans))
        data = self._read_inside(inside)
        for axis, (start, stop, (low, high), n) in enumerate(zip(box.lower, box.upper, spans, self.shape), 1):
            if (start, stop) != (low, high):
                data = np.take(data, mirrored_indices(start, stop, n) - low, axis=axis)
        return data

    def keeping(self, recent: Recent) -> Volume:
        """The same volume, whose chunks `recent` keeps decoded: for many small reads all over it."""
        return replace(self, _recent=recent)

    def take_absent(self) -> frozenset[Box]:
        """Chunks met by reads since the last call whose objects are not there: z, y, x boxes, clipped.

        They read as the fill value: background in one volume, a lost object in another; only the caller can
        tell. A shard counts as one chunk, and an empty chunk inside a shard that is there does not count.
        Channels and time points fall together. Reads may run in any threads; at most 131,072 objects are
        kept for the next call.
        """
        store = self.array.store
        keys = store.take_absent() if isinstance(store, CheckedStore) else []
        boxes = (box_of_key(self.array, self.axes, key) for key in keys)
        return frozenset(box for box in boxes if box is not None)

    def _read_inside(self, box: Box) -> NDArray[Any]:
        selection: dict[str, Any] = dict(zip(SPATIAL, box.slices))
        selection["t"] = self.timepoint
        spatial = self.spatial_axes
        if "c" not in self.axes:
            data = self._stored(selection)[np.newaxis]
            if len(self.channels) > 1:  # channel 0 more than once: grey values for an RGB model
                data = np.repeat(data, len(self.channels), axis=0)
        else:
            first, last = min(self.channels), max(self.channels)
            if set(self.channels) == set(range(first, last + 1)):
                selection["c"] = slice(first, last + 1)
                block = self._stored(selection)
                block = np.moveaxis(block, self.axes.replace("t", "").index("c"), 0)
                data = block[[c - first for c in self.channels]]
            else:
                data = np.stack([self._stored({**selection, "c": c}) for c in self.channels])
        # The array may hold its axes in another order than z, y, x; absent ones have length 1.
        stored = [a for a in self.axes if a in SPATIAL]
        data = data.transpose(0, *(1 + stored.index(a) for a in spatial))
        return data.reshape(len(self.channels), *box.shape)

    def _stored(self, selection: Mapping[str, int | slice]) -> NDArray[Any]:
        """One part of the array, in its own order of axes."""
        part = tuple(selection[a] for a in self.axes)
        if self._recent is None:
            return read_checked(self.array, part, self.axes)
        return read_kept(self.array, part, self.axes, self._recent)


def mirrored_indices(start: int, stop: int, length: int) -> NDArray[np.intp]:
    """`geometry.mirrored` for a whole range of positions."""
    positions = np.arange(start, stop)
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * (length - 1)
    offsets = positions % period
    return np.minimum(offsets, period - offsets)


def _open_node(store: Store) -> zarr.Array[Any] | zarr.Group:
    if not store.exists():
        raise InputError("no such volume", where=store.url, fix="check the path")
    if not store.remote and not store.path.is_dir():
        raise InputError(
            "this is a file, not a Zarr",
            where=store.url,
            expected="the folder of a Zarr array or an OME-Zarr image",
            fix=f"convert it first: unet-flows ingest {store.path.name} --to VOLUME.zarr",
        )
    try:
        return zarr.open(store.zarr(read_only=True), mode="r", use_consolidated=False)
    except (FileNotFoundError, NodeTypeValidationError, KeyError, ValueError) as error:
        raise InputError(
            "this is not a Zarr",
            where=store.url,
            expected="a folder with zarr.json, .zarray or .zgroup",
            found=str(error).splitlines()[0] if isinstance(error, ValueError) else "none of them",
            fix="name the folder of the image or the array itself; unet-flows ingest converts other files",
        ) from None


def _open_level(
    group: zarr.Group, multiscale: Multiscale, level: int, store: Store
) -> tuple[zarr.Array[Any], str]:
    present = [i for i, d in enumerate(multiscale.datasets) if isinstance(group.get(d.path), zarr.Array)]
    if not 0 <= level < len(multiscale.datasets):
        raise InputError(
            "no such pyramid level",
            where=store.url,
            expected=f"0 to {len(multiscale.datasets) - 1}",
            found=level,
        )
    path = multiscale.datasets[level].path
    if level not in present:
        raise InputError(
            f"level {level} is listed in the metadata but its array is missing",
            where=f"{store.url}/{path}",
            expected="every dataset of the multiscale",
            found=f"levels {', '.join(map(str, present))}" if present else "none of them",
            fix=f"use --level {present[0]}" if present else None,
        )
    array = group[path]
    if not isinstance(array, zarr.Array):
        raise InputError("this dataset is a group, not an array", where=f"{store.url}/{path}")
    return array, path


def _plain(array: zarr.Array[Any], where: str) -> Multiscale:
    names = getattr(array.metadata, "dimension_names", None)
    axes = "".join(n or "?" for n in names) if names else _PLAIN_AXES.get(array.ndim, "")
    if names and (set(axes) - set(AXES) or len(axes) != array.ndim):
        axes = _PLAIN_AXES.get(array.ndim, "")
    if not {"y", "x"} <= set(axes) or len(set(axes)) != len(axes):
        raise InputError(
            "wrong number of dimensions",
            where=where,
            expected="2 (y, x) to 5 (t, c, z, y, x) dimensions",
            found=f"{array.ndim}, shape {array.shape}",
        )
    dataset = Dataset("", (1.0,) * array.ndim, (0.0,) * array.ndim)
    return Multiscale("plain", axes, None, (dataset,))


def _metadata_digest(store: Store) -> str:
    document = store.read("zarr.json") or store.read(".zarray") or b""
    return hashlib.sha256(document).hexdigest()[:16]
