"""Planning a segmentation: everything checked that can be known to fail, everything open decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from unet_core import budget
from unet_core.architecture import UNetSpec
from unet_core.checkpoint import StoredModel, load_model
from unet_core.devices import device_kind
from unet_core.errors import InputError
from unet_core.geometry import Box, Shape, round_up
from unet_core.instances import InstancePlan, plan_instances, require_merge, worker_bytes
from unet_core.instances import disk_bytes as instance_disk
from unet_core.instances import require_memory as require_instance_memory
from unet_core.keeping import Keeper, plan_keep
from unet_core.ledger import RunRecord, begun, require_apart, require_complete, require_replaceable
from unet_core.metadata import pyramid_levels
from unet_core.pyramid import PyramidPlan
from unet_core.segmentation.fitting import Fitting, counted, decided
from unet_core.segmentation.plan import KIND, SegmentPlan
from unet_core.segmentation.refusals import (
    KEEP,
    probe_finite,
    require_fit,
    require_same_keep,
    require_same_kind,
)
from unet_core.segmentation.request import SegmentRequest
from unet_core.tile_choice import Rates, TileOption
from unet_core.tiling import Tiling
from unet_core.volumes import Store, Volume

_WORTH_MEASURING = 5e13  # multiply-accumulates: five minutes of two cores
# Finds how fast a device computes a network, in a type, with forward passes of up to so many bytes.
Measure = Callable[[UNetSpec, str, int], Rates]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan with what it was made from and what it will cost. `record`: that of the run it goes on with.

    `instance_memory`: bytes of a worker in the stages after the network; 0 without them.
    """

    request: SegmentRequest
    plan: SegmentPlan
    volume: Volume
    model: StoredModel = field(repr=False)
    memory: budget.WorkerMemory
    disk: int
    macs: int
    fitting: Fitting = field(repr=False)
    rates: Rates | None = None
    instance_memory: int = 0
    record: RunRecord | None

    @property
    def bytes_once(self) -> int:
        """Bytes of the input's chunks that the region and its context meet, each decoded once."""
        whole, foot, chunk = self.volume.box, self.plan.tiling.footprint, self.volume.chunk_shape
        met = self.plan.tiling.roi.grow(foot.lower, foot.upper).intersect(whole)
        voxels = met.coarsen(chunk).refine(chunk).intersect(whole).size
        return voxels * self.volume.dtype.itemsize * len(self.volume.channels)

    def options(self) -> list[TileOption]:
        """As `Fitting.options`."""
        return self.fitting.options(self.plan.tiling, self.rates)

    def in_float32(self) -> Planned:
        """The plan where "auto" turned out to be float32: such tensors take twice what was counted."""
        if self.request.tile is not None:
            return self
        request, rates = replace(self.request, dtype="float32"), self.rates
        measure = None if rates is None else lambda *_: rates
        return plan_segmentation(
            request,
            workers=None,
            device=self.plan.device,
            tile_memory=self.fitting.tile_memory,
            measure=measure,
        )

    @property
    def resumed(self) -> bool:
        """Whether this run was begun before."""
        return self.record is not None

    @property
    def useful(self) -> float:
        """Share of the arithmetic that a single endless tile would need too."""
        return self.model.card.spec.macs_per_voxel() * self.plan.tiling.roi.size / self.macs

    @property
    def bytes_read(self) -> int:
        """Decoded input bytes that the blocks read, context included."""
        tiling = self.plan.tiling
        # Blocks lie on a grid, so the sum over blocks is the product of the sums along the axes.
        voxels = prod(_axis_reads(tiling, axis) for axis in range(3))
        return voxels * self.volume.dtype.itemsize * len(self.volume.channels)


def plan_segmentation(
    request: SegmentRequest,
    *,
    workers: int | None = 1,
    memory: int | None = None,
    device: str | None = None,
    tile_memory: int | None = None,
    measure: Measure | None = None,
) -> Planned:
    """Check everything that can be checked and decide everything that is open; writes nothing.

    Parameters
    ----------
    workers
        Worker processes that share `memory` bytes (None: what the machine has available). None: the
        workers run elsewhere, and this machine's memory says nothing about theirs.
    device
        What the workers compute on; None: what this process has.
    tile_memory
        Bytes that one forward pass may take there; None: what this machine can give.
    measure
        How fast that is with tiles of several sizes, for runs so long that it pays off; None: equally fast
        with all.

    Raises
    ------
    InputError
        Whatever would make the run fail and can be known now.
    """
    model = load_model(request.model)
    spec = model.card.spec
    masks = [] if request.keep is None or request.keep.mask is None else [request.keep.mask]
    sources = [Store(url) for url in (request.volume, *masks)]
    if not request.partial:
        for source in sources:
            require_complete(source)
    volume = Volume.open(
        request.volume, level=request.level, channels=request.channels, timepoint=request.timepoint
    )
    require_fit(model, volume)
    output = Store(request.to)
    require_apart(output, (*sources, Store(request.model)))
    roi = (request.roi or volume.box).in_volume(volume.shape)
    if len(roi.lower) != len(volume.shape):
        raise InputError(
            "the ROI has the wrong number of axes",
            expected=f"z0:z1,y0:y1,x0:x1 within {volume.box}",
            found=roi,
        )
    if request.instances is not None and request.instances.needs_probabilities:
        request = replace(request, probabilities=True)
    keeper = None
    if request.keep is not None:
        keeper = Keeper.open(plan_keep(request.keep, volume, request.level), volume)
    if request.restart:
        require_replaceable(output, KIND)
        record = None
    else:
        record = begun(output, KIND, identity_of(request, volume, model, roi))
        require_same_kind(request.instances, record, output)
        require_same_keep(keeper, record, output)
    kind = device or device_kind()
    dtype = decided(request.dtype, kind)
    if record is not None:
        plan = SegmentPlan.from_dict(record.plan)
        kind, dtype = plan.device, plan.dtype
    if record is None and tile_memory is None:
        # Once: when workers have begun to compute, less of a GPU is free.
        tile_memory = budget.tile_memory(kind)
    fitting = Fitting(request, volume, spec, roi, kind, counted(dtype, kind), keeper, tile_memory)
    rates = None
    if record is None:
        tile, rates = _tile_of(fitting, measure)
        plan = _new_plan(fitting, model, fitting.tiling(tile, request.block), dtype)
    if request.block is not None and request.block != plan.tiling.block:
        raise InputError(
            "this output was begun with other blocks",
            where=output.url,
            expected=f"--block {_text(plan.tiling.block)}, or none",
            found=_text(request.block),
        )
    planned = Planned(
        request=request,
        plan=plan,
        volume=volume,
        model=model,
        fitting=fitting,
        rates=rates,
        memory=fitting.needed(plan.tiling),
        disk=budget.disk_bytes(plan.tiling, classes=spec.classes, probabilities=plan.probabilities)
        + (0 if plan.instances is None else instance_disk(plan.instances)),
        macs=fitting.macs(plan.tiling),
        record=record,
        instance_memory=0
        if plan.instances is None
        else worker_bytes(
            plan.instances,
            classes=spec.classes,
            channels=len(volume.channels),
            itemsize=volume.dtype.itemsize,
        ),
    )
    if request.memory is not None:
        budget.require_memory(planned.memory, plan.device, workers=1, available=request.memory)
    if workers is not None:
        if plan.device == "cuda":
            budget.require_gpu_memory(planned.memory)
        budget.require_memory(planned.memory, plan.device, workers=workers, available=memory)
        if plan.instances is not None:
            require_instance_memory(
                plan.instances, planned.instance_memory, workers=workers, available=memory
            )
            require_merge(plan.instances, available=memory)
    if not planned.resumed:
        output.check_writable(planned.disk)
        probe_finite(volume, roi)
    return planned


def _tile_of(fitting: Fitting, measure: Measure | None) -> tuple[Shape, Rates | None]:
    """The tile that is asked for or chosen, and by what rates: none where the run is too short to measure."""
    if fitting.request.tile is not None:
        return fitting.request.tile, None
    tile = fitting.choose(None)
    if measure is None or fitting.macs(fitting.tiling(tile)) <= _WORTH_MEASURING:
        return tile, None
    rates = measure(fitting.spec, fitting.dtype, fitting.memory)
    return fitting.choose(rates), rates


def _new_plan(fitting: Fitting, model: StoredModel, tiling: Tiling, dtype: str) -> SegmentPlan:
    """Resolve what the request leaves open, but for what needs voxels: `resolve` decides that."""
    request, volume = fitting.request, fitting.volume
    return SegmentPlan(
        volume=volume.url,
        level=request.level,
        channels=volume.channels,
        timepoint=request.timepoint,
        model=model.url,
        model_digest=model.digest,
        classes=model.card.class_names,
        probabilities=request.probabilities,
        dtype=dtype,
        device=fitting.device,
        tiling=tiling,
        pyramid=PyramidPlan(
            levels=tuple(pyramid_levels(volume.shape, volume.voxel_size)),
            shard=tiling.shard,
            method="mode",
            extent=tiling.roi,
        ),
        instances=_instances_of(request, model, tiling.roi, volume, tiling.shard),
        keep=None if fitting.keeper is None else fitting.keeper.plan,
    )


def _instances_of(
    request: SegmentRequest, model: StoredModel, roi: Box, volume: Volume, shard: Shape
) -> InstancePlan | None:
    if request.instances is None:
        return None
    return plan_instances(
        request.instances,
        classes=model.card.class_names,
        target=model.card.target,
        volume=volume.shape,
        roi=roi,
        shard=shard,
        block=request.block,
        voxel_size=volume.voxel_size,
    )


def identity_of(
    request: SegmentRequest,
    volume: Volume,
    model: StoredModel,
    roi: Box,
    plan: SegmentPlan | None = None,
    keeper: Keeper | None = None,
) -> dict[str, Any]:
    """What decides the results. With a plan, its choices stand in for what the request left open.

    Without a `keeper` it says nothing of what is kept, which `require_same_keep` compares.
    """
    tile = plan.tiling.tile if plan else request.tile
    instances = plan.instances if plan else _instances_of(request, model, roi, volume, (1, 1, 1))
    return {
        "volume": volume.identity(),
        "level": request.level,
        "model": model.digest,
        "roi": str(roi),
        "probabilities": request.probabilities,
        "normalisation": request.normalisation,
        "tile": list(tile) if tile else None,
        "dtype": plan.dtype if plan else request.dtype,
        "device": plan.device if plan else None,
        "batch": 1,
        **({} if instances is None else {"instances": instances.identity}),
        **({} if keeper is None else {KEEP: keeper.identity}),
    }


def _axis_reads(tiling: Tiling, axis: int) -> int:
    """Voxels read along one axis by one row of blocks, clipped to the volume."""
    block, tile, foot = tiling.block[axis], tiling.tile[axis], tiling.footprint
    low, high = tiling.roi.lower[axis], tiling.roi.upper[axis]
    total = 0
    for start in range(low // block * block, high, block):
        first = max(start, low) // tile * tile - foot.lower[axis]
        last = round_up(min(start + block, high), tile) + foot.upper[axis]
        total += min(last, tiling.volume[axis]) - max(first, 0)
    return total


def _text(shape: Shape) -> str:
    return ",".join(map(str, shape))
