"""Doing what a plan says: the output's record and arrays, then one function per block and stage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core import budget, inference, pyramid
from unet_core.architecture import UNetSpec
from unet_core.checkpoint import load_model
from unet_core.devices import fast_dtype
from unet_core.errors import DataError, InputError
from unet_core.geometry import Box, Shape
from unet_core.instances import begin_instances, create_final, only_level
from unet_core.keeping import LEFT_OUT, Keeper, leave_out, tiles_kept
from unet_core.ledger import Done, Ledger, RunRecord, begin, digest_of, require_epoch
from unet_core.model import UNet
from unet_core.normalisation import Scale, measure
from unet_core.pipelined import pipelined
from unet_core.probe import probe
from unet_core.pyramid import PyramidPlan
from unet_core.recent import Recent
from unet_core.segmentation.plan import KIND, PREDICT, SegmentPlan
from unet_core.segmentation.planning import Planned, identity_of
from unet_core.table import TablePlan, quanta_of
from unet_core.tile_choice import choose_tile
from unet_core.tiling import Tile, halved
from unet_core.volumes import Store, Volume, create_multiscale, open_for_writing, write_box

_CLASSES = np.dtype(np.uint8)  # of classes and probabilities
_TRIED = 8  # blocks looked at for one that can be decoded


def resolve(plan: SegmentPlan, normalisation: str) -> SegmentPlan:
    """The choices that need voxels or the workers' device: the intensity scale, the dtype, the probe.

    To be called where the blocks will be computed. Reads the volume and the model by their URLs.
    """
    model = load_model(plan.model)
    volume = _open_volume(plan)
    scale = model.card.scale
    if normalisation == "volume":
        scale = measure(volume, model.card.normalisation)
    network = model.network()
    dtype = plan.dtype
    if dtype == "auto":
        dtype = _choose_dtype(plan, volume, network, scale)
    predictor = inference.Predictor(network, scale=scale, device=plan.device, dtype=dtype)
    instances = plan.instances
    if instances is not None:
        instances = replace(instances, table=_table_of(plan, volume, scale))
    probed = probe(predictor, plan.tiling)
    return replace(plan, scale=scale, dtype=dtype, probe=probed, instances=instances)


def _table_of(plan: SegmentPlan, volume: Volume, scale: Scale) -> TablePlan:
    return TablePlan(
        volume=volume.shape,
        extent=plan.tiling.roi,
        planar=plan.tiling.roi.shape[0] == 1,
        voxel_size=volume.voxel_size,
        origin=volume.origin,
        unit=volume.unit,
        chunk=plan.tiling.chunk,
        shard=plan.tiling.shard,
        channels=volume.channels,
        quanta=quanta_of(volume.dtype, scale.offset, [a + n for a, n in zip(scale.offset, scale.spread)]),
        classes=plan.classes,
    )


def _choose_dtype(plan: SegmentPlan, volume: Volume, network: UNet, scale: Scale) -> str:
    """Decide on the middle block's first tile, or on the next that can be decoded."""
    fast = fast_dtype(plan.device)
    if fast is None:
        return "float32"
    count = len(plan.tiling.blocks)
    for index in range(count // 2, min(count // 2 + _TRIED, count)):
        tile = _in_memory_of(fast, next(plan.tiling.tiles(index)), network.spec, plan)
        with suppress(DataError):
            data = volume.read(tile.read)
            return inference.choose_dtype(network, data, tile, scale=scale, device=plan.device)
    return "float32"


def _in_memory_of(fast: str, tile: Tile, spec: UNetSpec, plan: SegmentPlan) -> Tile:
    """As much of a tile as a GPU computes in float32 in the memory that was counted, for the `fast` type.

    A CPU has room for all of it: the fewer voxels are compared, the more chance decides.
    """
    if plan.device == "cpu":
        return tile
    foot, flat = plan.tiling.footprint, 3 - spec.ndim
    read, write = tile.read, tile.write
    counted = budget.forward_bytes(spec, read.shape[flat:], fast, plan.device)
    while budget.forward_bytes(spec, read.shape[flat:], "float32", plan.device) > counted:
        smaller = halved(write.shape, foot.stride)
        if smaller is None:
            break
        write = Box.of_shape(smaller).shift(write.lower)
        read = write.grow(foot.lower, foot.upper)
    return Tile(read, write, write)


def start(planned: Planned, resolved: SegmentPlan) -> None:
    """Write the run record, then the output's empty arrays; a run begun before keeps its own.

    Parameters
    ----------
    resolved
        The plan as `resolve` completed it, or as it came from the record of a run that goes on.
    """
    plan = resolved
    request, volume = planned.request, planned.volume
    tiling, output = plan.tiling, Store(request.to)
    identity = identity_of(request, volume, planned.model, tiling.roi, plan, planned.fitting.keeper)
    begin(output, planned.record or RunRecord(KIND, identity, plan.to_dict()))
    name = output.url.rsplit("/", 1)[-1].removesuffix(".zarr")
    common: dict[str, Any] = {
        "chunk": tiling.chunk,
        "shard": tiling.shard,
        "voxel_size": volume.voxel_size,
        "origin": volume.origin,
        "unit": volume.unit,
    }
    if plan.instances is not None:
        begin_instances(output, axes=volume.spatial_axes, levels=only_level(volume.shape), **common)
    else:
        create_multiscale(
            output,
            kind="labels",
            axes=volume.spatial_axes,
            leading=(),
            levels=plan.pyramid.levels,
            dtype=_CLASSES,
            name=name,
            method="mode",
            source=_relative(volume.url, output),
            **common,
        )
    if plan.probabilities:
        create_multiscale(
            output.child("probabilities"),
            kind="image",
            axes=f"c{volume.spatial_axes}",
            leading=(len(plan.classes),),
            levels=only_level(volume.shape),
            dtype=_CLASSES,
            name=f"{name} probabilities",
            **common,
        )


def prepare_final(output: Store, plan: SegmentPlan) -> None:
    """Make the arrays of the instances' ids, once they are merged."""
    create_final(
        output,
        template=output.child("local").url,
        pyramid=plan.pyramid,
        chunk=plan.tiling.chunk,
        shard=plan.tiling.shard,
        source=_relative(plan.volume, output),
    )


class BlockWorker:
    """What a worker process keeps between blocks: the plan, the volume, the network on its device."""

    def __init__(self, url: str, plan: SegmentPlan, *, epoch: int, model_url: str | None = None) -> None:
        # A run may go on with the same model in another place.
        model = load_model(model_url or plan.model)
        if model.digest != plan.model_digest:
            raise InputError(
                "the model folder has changed since this run was begun",
                where=plan.model,
                expected=plan.model_digest[:16],
                found=model.digest[:16],
                fix="put the model back, or choose another --to",
            )
        if plan.scale is None or plan.probe is None:
            raise InputError("this plan was never started", where=url)
        self._plan = plan
        self._epoch = epoch
        self._output = Store(url)
        volume = _open_volume(plan)
        self._chunks = Recent(
            budget.kept_chunks(plan.tiling, volume.dtype.itemsize * len(volume.channels), volume.chunk_shape)
        )
        self._volume = volume.keeping(self._chunks)
        self._absent: set[Box] = set()
        self._keeper = None if plan.keep is None else Keeper.open(plan.keep, self._volume)
        self._predictor = inference.Predictor(
            model.network(), scale=plan.scale, device=plan.device, dtype=plan.dtype
        )
        plan.probe.require(probe(self._predictor, plan.tiling))
        self._labels = open_for_writing(self._output, plan.predicted)
        self._probabilities = (
            open_for_writing(self._output, "probabilities/0") if plan.probabilities else None
        )
        self._ledger = Ledger(self._output, PREDICT, len(plan.tiling.blocks), epoch)

    def predict(self, index: int) -> Done:
        """Compute and write one block, then record it. Doing it twice is harmless."""
        return self._put(index, self._compute(self._fetch(index)))

    def stream(self, indices: Iterable[int]) -> Iterator[tuple[int, Done | Exception]]:
        """`predict` of many blocks: one is read and another written while a third is computed."""
        return pipelined(indices, fetch=self._fetch, work=self._compute, put=self._put)

    def _fetch(self, index: int) -> _Fetched:
        plan = self._plan
        kept = None if self._keeper is None else self._keeper.of(plan.tiling.block_box(index))
        tiles = None if kept is None else tiles_kept(plan.tiling, index, kept)
        made = self._chunks.made
        source = inference.read_block(self._volume, plan.tiling, index, tiles=tiles)
        absent = self._absent_of(index)
        return _Fetched(source, kept, absent, self._chunks.made - made)

    def _absent_of(self, index: int) -> int:
        """Absent chunks that this block counts, met now or, since chunks are kept, for a block before it."""
        tiling = self._plan.tiling
        self._absent |= self._volume.take_absent()
        # What ends before this block reads is of no block to come: they are done in raster order.
        first = tiling.block_read_box(index).lower[0]
        self._absent = {chunk for chunk in self._absent if chunk.upper[0] > first}
        return _owned(self._absent, tiling.block_box(index), tiling.roi)

    def _compute(self, fetched: _Fetched) -> tuple[inference.BlockResult, Done]:
        plan, kept = self._plan, fetched.kept
        result = inference.compute_block(
            fetched.source, plan.tiling, self._predictor, probabilities=plan.probabilities
        )
        if kept is not None:
            value = 0 if plan.instances is None else LEFT_OUT
            leave_out(kept, result.classes, result.probabilities, value=value)
        empty = not fetched.source.tiles
        return result, Done(result.box.size, fetched.absent, empty=empty, decoded=fetched.decoded)

    def _put(self, index: int, computed: tuple[inference.BlockResult, Done]) -> Done:
        result, done = computed
        require_epoch(self._output, self._epoch)
        write_box(self._labels, result.box, result.classes)
        written = [result.classes]
        if self._probabilities is not None and result.probabilities is not None:
            write_box(self._probabilities, result.box, result.probabilities)
            written.append(result.probabilities)
        self._ledger.commit(index, digest_of(*written), absent=done.absent, empty=done.empty)
        return done


@dataclass(frozen=True)
class _Fetched:
    """A block's input; which of its voxels are kept (None: all); its absent chunks; bytes decoded for it."""

    source: inference.BlockInput
    kept: NDArray[np.bool_] | None
    absent: int
    decoded: int


def pyramid_block(url: str, plan: PyramidPlan, level: int, index: int, *, epoch: int) -> Done:
    """Compute, write and record one block of a pyramid level."""
    store = Store(url)
    require_epoch(store, epoch)
    box, digest = pyramid.write_block(store, plan, level, index)
    Ledger(store, f"{pyramid.STAGE}{level}", plan.count(level), epoch).commit(index, digest)
    return Done(box.size)


def tile_that_fits(plan: SegmentPlan, free: int) -> Shape | None:
    """A tile (z, y, x) for a worker that ran out of memory with the plan's, and has `free` bytes left.

    It needs at most half of what the plan's tile needs, and of what is free; None where none does.
    """
    spec = load_model(plan.model).card.spec
    tiling = plan.tiling
    needed = budget.forward_bytes(spec, tiling.read_shape[3 - spec.ndim :], plan.dtype, plan.device)
    memory = min(free, needed) // 2
    try:
        return choose_tile(
            spec, tiling.volume, tiling.roi, dtype=plan.dtype, device=plan.device, memory=memory
        )
    except InputError:
        return None


def _open_volume(plan: SegmentPlan) -> Volume:
    return Volume.open(plan.volume, level=plan.level, channels=plan.channels, timepoint=plan.timepoint)


def _owned(absent: Iterable[Box], block: Box, roi: Box) -> int:
    """How many absent chunks this block counts: those whose first voxel inside the ROI is its own.

    Neighbours read the same chunks as context; blocks partition the ROI, so each chunk is counted once.
    """
    inside = (chunk.intersect(roi) for chunk in absent)
    return sum(
        bool(box) and block.contains(Box(box.lower, tuple(a + 1 for a in box.lower))) for box in inside
    )


def _relative(source: str, output: Store) -> str:
    """The source image as the spec wants it: relative to the label image where both are local."""
    return source if output.remote or "://" in source else os.path.relpath(source, output.url)
