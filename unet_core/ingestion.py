"""Ingest: any source into an OME-Zarr 0.5 multiscale, slab by slab, in bounded memory.

A slab is what one step reads and writes: all channels of one time point, some planes, all of x. Its cuts
are shard boundaries, so each shard has one writer whatever runs at the same time:

    z = 0   |shard|shard|sha|    slab 0       as thick as a shard, as many rows as fit (all, if they can)
    z = 64  |shard|shard|sha|    slab 1
            y, x ->

Levels above 0 are created empty here; the pyramid stage fills them from the level below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite, prod
from typing import Any, Literal

import numpy as np
import zarr

from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, Shape, round_up
from unet_core.ledger import Stage, digest_of
from unet_core.metadata import PyramidLevel, pyramid_levels
from unet_core.pyramid import Method, PyramidPlan
from unet_core.sources import Source, SourceSpec, space_unit
from unet_core.volumes import Store, create_multiscale, write_box

GIB = 1 << 30
Kind = Literal["image", "labels"]
KIND = "ingest"
COPY = "copy"

_METHOD: dict[Kind, Method] = {"image": "mean", "labels": "mode"}

_THICKEST = 256  # planes: a shard no larger than 256 cubed, in 64 cubed chunks
# Chunks of about 2^18 voxels whatever their thickness: (thickness, rows and columns).
_CHUNKS = ((64, 64), (32, 64), (16, 128), (8, 128), (4, 256), (2, 256), (1, 512))
_CHUNKS_PER_SHARD = 4  # along y and x
# zarr encodes up to 10 shards of a write at once and holds each encoded twice: measured on noise, zarr 3.1.
_SHARD_COPIES = 20
_FIXED = 32 << 20  # what streams, chunk caches and codecs need whatever the slab


@dataclass(frozen=True, kw_only=True)
class IngestPlan:
    """What an ingest will do; plain data. Shapes are z, y, x.

    Attributes
    ----------
    source, source_digest
        What is read, and what changes when its files do.
    axes, leading
        Axes of the arrays, such as "czyx", and the sizes of t and c where there are such axes.
    slab
        Size of a slab in voxels; slabs at the far faces are clipped.
    raw_bytes
        Bytes of all levels uncompressed: what noise takes on disk; metadata (some kB) comes on top.
    peak_bytes
        Predicted peak of one slab being read and written, in bytes, above the process's own size.
    """

    source: SourceSpec
    source_digest: str
    name: str
    kind: Kind
    axes: str
    leading: Shape
    shape: Shape
    dtype: str
    levels: tuple[PyramidLevel, ...]
    chunk: Shape
    shard: Shape
    slab: Shape
    voxel_size: tuple[float, ...]
    unit: str | None
    raw_bytes: int
    peak_bytes: int

    @property
    def channels(self) -> int:
        return dict(zip(self.axes, self.leading)).get("c", 1)

    @property
    def timepoints(self) -> int:
        return dict(zip(self.axes, self.leading)).get("t", 1)

    @property
    def grid(self) -> Grid:
        """The slabs of one time point."""
        return Grid(Box.of_shape(self.shape), self.slab)

    def __len__(self) -> int:
        """Number of slabs, all time points together."""
        return self.timepoints * len(self.grid)

    def slab_at(self, index: int) -> tuple[int, Box]:
        """Time point and box of slab `index`; ascending indices read a stream forward."""
        timepoint, position = divmod(index, len(self.grid))
        return timepoint, self.grid[position].intersect(Box.of_shape(self.shape))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Copying the source into level 0, then the coarser levels."""
        copy = Stage(name=COPY, count=len(self), arrays=("0",), target=self.slab_at)
        return (copy, *self.pyramid.stages)

    @property
    def pyramid(self) -> PyramidPlan:
        """How the levels above 0 are made."""
        return PyramidPlan(
            levels=self.levels,
            shard=self.shard,
            method=_METHOD[self.kind],
            extent=Box.of_shape(self.shape),
            timepoints=self.timepoints,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"source": self.source.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> IngestPlan:
        """The plan that `to_dict` described, also after a passage through JSON."""
        values = {f.name: data[f.name] for f in fields(cls)}
        for name in ("leading", "shape", "chunk", "shard", "slab", "voxel_size"):
            values[name] = tuple(values[name])
        values["source"] = SourceSpec.from_dict(values["source"])
        values["levels"] = tuple(
            PyramidLevel(level["index"], tuple(level["shape"]), tuple(level["factors"]))
            for level in values["levels"]
        )
        return cls(**values)


def plan_ingest(
    source: Source,
    *,
    voxel_size: Sequence[float] | None = None,
    unit: str | None = None,
    kind: Kind = "image",
    name: str | None = None,
    memory: int = GIB,
) -> IngestPlan:
    """Plan the arrays and the slabs of an ingest. Reads and writes nothing.

    Parameters
    ----------
    voxel_size, unit
        z, y, x (or y, x of a plane) and OME-Zarr's name of the unit; they override the file's. Where
        neither says, voxels measure 1.0 without a unit.
    memory
        Bytes that one slab may need, read and encoded.

    Raises
    ------
    InputError
        Voxel sizes that are not positive, a unit that OME-Zarr does not know or one without voxel sizes,
        labels that are not integers or have channels, or slabs that cannot be cut small enough.
    """
    if kind == "labels":
        _check_labels(source)
    size, length = _voxel_size(source, voxel_size, unit)
    slab, chunk, shard, peak = _cut(source, memory)
    levels = tuple(pyramid_levels(source.shape, size))
    sizes = {"t": source.timepoints, "c": source.channels}
    leading = tuple(sizes[a] for a in source.axes if a in sizes)
    return IngestPlan(
        source=source.spec,
        source_digest=source.digest(),
        name=name or source.name,
        kind=kind,
        axes=source.axes,
        leading=leading,
        shape=source.shape,
        dtype=source.dtype.str,
        levels=levels,
        chunk=chunk,
        shard=shard,
        slab=slab,
        voxel_size=size,
        unit=length,
        raw_bytes=sum(prod(level.shape) for level in levels) * prod(leading) * source.dtype.itemsize,
        peak_bytes=peak,
    )


def create_output(plan: IngestPlan, store: Store) -> None:
    """Create the multiscale's group and empty arrays; `volumes.create_multiscale` says what if they exist."""
    create_multiscale(
        store,
        kind=plan.kind,
        axes=plan.axes,
        leading=plan.leading,
        levels=plan.levels,
        dtype=np.dtype(plan.dtype),
        chunk=plan.chunk,
        shard=plan.shard,
        voxel_size=plan.voxel_size,
        origin=(0.0, 0.0, 0.0),
        unit=plan.unit,
        name=plan.name,
        method=_METHOD[plan.kind],
    )


@dataclass(frozen=True)
class Slab:
    """What was copied: the digest of its voxels, and of labels how many of them are below 0."""

    digest: str
    below_zero: int = 0


def write_slab(plan: IngestPlan, source: Source, array: zarr.Array[Any], index: int) -> Slab:
    """Copy slab `index` into level 0, whole shards of it. Twice leaves the same bytes.

    Parameters
    ----------
    array
        Level 0 of the output, from `volumes.open_for_writing(store, "0")`.

    Raises
    ------
    DataError
        The source's bytes cannot be decoded there.
    """
    timepoint, box = plan.slab_at(index)
    data = source.read(box, timepoint=timepoint)
    write_box(array, box, data if "c" in plan.axes else data[0], timepoint=timepoint)
    signed = plan.kind == "labels" and data.dtype.kind == "i"
    return Slab(digest_of(data), int(np.count_nonzero(data < 0)) if signed else 0)


def _check_labels(source: Source) -> None:
    if source.dtype.kind not in "ui":
        raise InputError(
            "labels must be integers",
            where=source.where,
            expected="an integer data type",
            found=source.dtype,
            fix="ingest it with --as image, or choose the labels with --dataset",
        )
    if source.channels > 1:
        raise InputError(
            "labels have one channel",
            where=source.where,
            expected="ids, one number per voxel",
            found=f"{source.channels} channels (a colour picture of labels?)",
            fix="export the ids themselves",
        )


def _voxel_size(
    source: Source, asked: Sequence[float] | None, unit: str | None
) -> tuple[tuple[float, ...], str | None]:
    if asked is None:
        if unit is not None:
            raise InputError(
                "a unit says nothing without voxel sizes",
                found=f"--unit {unit}",
                fix=f"add them, such as --voxel-size 10,10,10 --unit {unit}",
            )
        return source.voxel_size or (1.0, 1.0, 1.0), source.unit
    sizes = tuple(float(v) for v in asked)
    if len(sizes) == 2 and "z" not in source.axes:
        sizes = (1.0, *sizes)
    if len(sizes) != 3 or not all(isfinite(v) and v > 0 for v in sizes):
        raise InputError(
            "this is not a voxel size",
            expected="three positive numbers: z, y, x",
            found=", ".join(map(str, asked)),
            fix="such as --voxel-size 40,4,4 --unit nanometer",
        )
    return sizes, space_unit(unit) if unit is not None else None


def _cut(source: Source, memory: int) -> tuple[Shape, Shape, Shape, int]:
    """Slab, chunk, shard and predicted peak: the thickest shards that fit; whole planes where they can.

    Rows are split before shards get thinner than a chunk should be, because thin chunks are slow to read
    from every side; but only where the source can read some rows without decoding the plane.
    """
    peak = 0
    for thickness, chunk in _shapes(source.shape):
        shard = (thickness, *(_CHUNKS_PER_SHARD * c for c in chunk[1:]))
        rows, columns = (round_up(n, s) for n, s in zip(source.shape[1:], shard[1:]))
        peak = _peak(source, (thickness, rows, columns), shard)
        if peak <= memory:
            return (thickness, rows, columns), chunk, shard, peak
        if source.splits_rows and thickness <= chunk[0]:
            for band in range(rows - shard[1], 0, -shard[1]):
                slab = (thickness, band, columns)
                if (banded := _peak(source, slab, shard)) <= memory:
                    return slab, chunk, shard, banded
    raise InputError(
        "one slab of this source does not fit into memory",
        where=source.where,
        expected=f"at most {memory:,} bytes",
        found=f"{peak:,} bytes for one plane of {source.shape[1:]} voxels",
        fix="allow more memory, or save the source as tiled TIFF or HDF5, which can be read in part",
    )


def _shapes(shape: Shape) -> Iterator[tuple[int, Shape]]:
    """Shard thicknesses and the chunks that go with them, the preferred one first."""
    for depth, side in _CHUNKS:
        if depth >= 2 * shape[0]:
            continue
        thickest = min(_THICKEST, round_up(shape[0], depth)) if depth == _CHUNKS[0][0] else depth
        for thickness in range(thickest, 0, -depth):
            yield thickness, (depth, side, side)


def _peak(source: Source, slab: Shape, shard: Shape) -> int:
    """Bytes of a slab being read, one plane being decoded and the shards being encoded."""
    voxel = source.channels * source.dtype.itemsize
    read = prod(min(a, n) for a, n in zip(slab, source.shape))
    plane = prod(min(a, n) for a, n in zip(slab[1:], source.shape[1:]))
    shards = prod(-(-n // s) for n, s in zip(slab, shard))
    encoding = min(_SHARD_COPIES, 2 * shards) * prod(shard)
    return (read + plane + encoding) * voxel + _FIXED
