"""What a segmentation is: asked for, checked, resolved; plain data that travels as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any, Literal

from unet_core import budget
from unet_core.architecture import UNetSpec
from unet_core.checkpoint import StoredModel, load_model
from unet_core.devices import device_kind, fast_dtype
from unet_core.errors import InputError
from unet_core.geometry import Box, Shape, round_up
from unet_core.instances import (
    InstancePlan,
    InstanceRequest,
    plan_instances,
    require_merge,
    worker_bytes,
)
from unet_core.instances import disk_bytes as instance_disk
from unet_core.instances import require_memory as require_instance_memory
from unet_core.keeping import Keeper, KeepPlan, KeepRequest, plan_keep
from unet_core.ledger import RunRecord, Stage, begun, require_apart, require_complete, require_replaceable
from unet_core.metadata import pyramid_levels
from unet_core.normalisation import Scale
from unet_core.probe import Probe
from unet_core.pyramid import PyramidPlan
from unet_core.segmentation.refusals import (
    KEEP,
    probe_finite,
    require_fit,
    require_same_keep,
    require_same_kind,
)
from unet_core.tile_choice import Rates, TileOption, choose_tile, tile_options
from unet_core.tiling import Footprint, Tiling, chunk_and_shard
from unet_core.volumes import Store, Volume

KIND = "segment"
PREDICT = "predict"
_WORTH_MEASURING = 5e13  # multiply-accumulates: five minutes of two cores


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """What is asked for. None and "auto" leave a choice to the plan; boxes and shapes are z, y, x.

    `restart`: what lies at `to` is to be replaced. `partial`: the input need not be complete. `memory`: bytes
    that one worker may take.
    """

    volume: str
    model: str
    to: str
    roi: Box | None = None
    level: int = 0
    channels: tuple[int, ...] | None = None
    timepoint: int = 0
    probabilities: bool = False
    instances: InstanceRequest | None = None
    keep: KeepRequest | None = None
    tile: Shape | None = None
    block: Shape | None = None
    memory: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    normalisation: Literal["volume", "model"] = "volume"
    restart: bool = False
    partial: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmentPlan:
    """Everything that was resolved, JSON-ready: the same plan gives the same bytes, whoever computes it."""

    volume: str
    level: int
    channels: tuple[int, ...]
    timepoint: int
    model: str
    model_digest: str
    classes: tuple[str, ...]
    probabilities: bool
    dtype: str
    device: str
    tiling: Tiling
    pyramid: PyramidPlan
    scale: Scale | None = None
    probe: Probe | None = None
    instances: InstancePlan | None = None
    keep: KeepPlan | None = None

    def to_dict(self) -> dict[str, Any]:
        document = asdict(self)
        if self.instances is None:
            del document["instances"]  # as it was before there were any
        else:
            document["instances"] = self.instances.to_dict()
        if self.keep is None:
            del document["keep"]
        document["tiling"] = {**asdict(self.tiling), "roi": str(self.tiling.roi)}
        document["pyramid"] = self.pyramid.to_dict()
        document["scale"] = None if self.scale is None else self.scale.to_dict()
        document["probe"] = None if self.probe is None else self.probe.to_dict()
        return document

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SegmentPlan:
        t = data["tiling"]
        shapes = {name: tuple(t[name]) for name in ("volume", "tile", "chunk", "shard", "block")}
        return cls(
            **{
                **data,
                "channels": tuple(data["channels"]),
                "classes": tuple(data["classes"]),
                "tiling": Tiling(
                    roi=Box.parse(t["roi"]),
                    footprint=Footprint(**{name: tuple(v) for name, v in t["footprint"].items()}),
                    **shapes,
                ),
                "pyramid": PyramidPlan.from_dict(data["pyramid"]),
                "scale": None if data["scale"] is None else Scale.from_dict(data["scale"]),
                "probe": None if data["probe"] is None else Probe.from_dict(data["probe"]),
                "instances": InstancePlan.from_dict(data["instances"]) if "instances" in data else None,
                "keep": KeepPlan.from_dict(data["keep"]) if "keep" in data else None,
            }
        )

    @property
    def predicted(self) -> str:
        """Path of the array that holds the network's classes."""
        return "0" if self.instances is None else "classes/0"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order."""
        written = (self.predicted, "probabilities/0") if self.probabilities else (self.predicted,)
        predict = Stage(
            name=PREDICT,
            count=len(self.tiling.blocks),
            arrays=written,
            target=lambda index: (0, self.tiling.block_box(index)),
        )
        instances = () if self.instances is None else self.instances.stages
        return (predict, *instances, *self.pyramid.stages)


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
    keeper: Keeper | None = field(repr=False)
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
        """Tiles that this plan's was chosen from, the best first; all tiles where one was asked for."""
        plan, spec = self.plan, self.model.card.spec
        dtype = _sized(plan.dtype, plan.device)
        memory = budget.tile_memory(plan.device)
        if self.request.tile is None:  # those that take more did not fit
            memory = budget.forward_bytes(spec, plan.tiling.read_shape[3 - spec.ndim :], dtype)
        region = plan.tiling.volume, plan.tiling.roi
        return tile_options(spec, *region, dtype=dtype, memory=memory, rates=self.rates)

    @property
    def worth_measuring(self) -> bool:
        """Whether the run is so long that it pays off to find out which tile is fastest."""
        return not self.resumed and self.request.tile is None and self.macs > _WORTH_MEASURING

    @property
    def sized(self) -> tuple[str, int]:
        """The type that memory is counted in, and the bytes that one forward pass may take."""
        memory = self.request.memory or budget.tile_memory(self.plan.device)
        return _sized(self.plan.dtype, self.plan.device), memory

    def in_float32(self) -> Planned:
        """The plan where "auto" turned out to be float32: such tensors take twice what was counted."""
        if self.request.tile is not None:
            return self
        request = replace(self.request, dtype="float32")
        return plan_segmentation(request, workers=None, device=self.plan.device, rates=self.rates)

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
    rates: Rates | None = None,
) -> Planned:
    """Check everything that can be checked and decide everything that is open; writes nothing.

    Parameters
    ----------
    workers
        Worker processes that share `memory` bytes (None: what the machine has available). None: the
        workers run elsewhere, and this machine's memory says nothing about theirs.
    device
        What the workers compute on; None: what this process has.
    rates
        How fast that is with tiles of several sizes; None: equally fast with all.

    Raises
    ------
    InputError
        Whatever would make the run fail and can be known now.
    """
    model = load_model(request.model)
    spec = model.card.spec
    source = Store(request.volume)
    if not request.partial:
        require_complete(source)
    volume = Volume.open(
        request.volume, level=request.level, channels=request.channels, timepoint=request.timepoint
    )
    require_fit(model, volume)
    output = Store(request.to)
    masks = [] if request.keep is None or request.keep.mask is None else [Store(request.keep.mask)]
    if not request.partial:
        for mask in masks:
            require_complete(mask)
    require_apart(output, (source, Store(request.model), *masks))
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
    if record is None:
        plan = _new_plan(request, volume, model, roi, device or device_kind(), rates, keeper)
        plan = replace(plan, keep=None if keeper is None else keeper.plan)
    else:
        plan = SegmentPlan.from_dict(record.plan)
    if request.block is not None and request.block != plan.tiling.block:
        raise InputError(
            "this output was begun with other blocks",
            where=output.url,
            expected=f"--block {_text(plan.tiling.block)}, or none",
            found=_text(request.block),
        )
    memory_needed = budget.worker_memory(
        spec,
        plan.tiling,
        dtype=_sized(plan.dtype, plan.device),
        input_item=volume.dtype.itemsize,
        input_chunk=volume.chunk_shape,
        probabilities=plan.probabilities,
    )
    if keeper is not None:
        beside = keeper.bytes_for(plan.tiling.block)
        memory_needed = replace(memory_needed, input=memory_needed.input + beside)
    planned = Planned(
        request=request,
        plan=plan,
        volume=volume,
        model=model,
        keeper=keeper,
        rates=rates,
        memory=memory_needed,
        disk=budget.disk_bytes(plan.tiling, classes=spec.classes, probabilities=plan.probabilities)
        + (0 if plan.instances is None else instance_disk(plan.instances)),
        macs=plan.tiling.tile_count * spec.padded().macs(plan.tiling.read_shape[3 - spec.ndim :]),
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


def _new_plan(
    request: SegmentRequest,
    volume: Volume,
    model: StoredModel,
    roi: Box,
    device: str,
    rates: Rates | None,
    keeper: Keeper | None,
) -> SegmentPlan:
    """Resolve what the request leaves open, but for what needs voxels: `resolve` decides that."""
    spec = model.card.spec
    # Without a fast 16-bit type there is nothing to decide; else `resolve` decides on a real tile.
    undecided = request.dtype == "auto" and fast_dtype(device) is not None
    dtype = "auto" if undecided else "float32" if request.dtype == "auto" else request.dtype
    tile = request.tile or _choose_tile(request, volume, spec, roi, dtype, device, rates, keeper)
    tiling = _tiling(request, volume, spec, roi, tile)
    shard = tiling.shard
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
        device=device,
        tiling=tiling,
        pyramid=PyramidPlan(
            levels=tuple(pyramid_levels(volume.shape, volume.voxel_size)),
            shard=shard,
            method="mode",
            extent=roi,
        ),
        instances=_instances_of(request, model, roi, volume, shard),
    )


def _choose_tile(
    request: SegmentRequest,
    volume: Volume,
    spec: UNetSpec,
    roi: Box,
    dtype: str,
    device: str,
    rates: Rates | None,
    keeper: Keeper | None,
) -> Shape:
    sized = _sized(dtype, device)
    limit = request.memory
    if limit is None:
        memory = budget.tile_memory(device)
        return choose_tile(spec, volume.shape, roi, dtype=sized, memory=memory, rates=rates)

    def fits(tile: Shape) -> bool:
        tiling = _tiling(replace(request, block=None), volume, spec, roi, tile)
        beside = 0 if keeper is None else keeper.bytes_for(tiling.block)
        needed = budget.worker_memory(
            spec,
            tiling,
            dtype=sized,
            input_item=volume.dtype.itemsize,
            input_chunk=volume.chunk_shape,
            probabilities=request.probabilities,
        )
        return needed.total + beside <= limit

    return choose_tile(spec, volume.shape, roi, dtype=sized, memory=limit, rates=rates, fits=fits)


def _tiling(request: SegmentRequest, volume: Volume, spec: UNetSpec, roi: Box, tile: Shape) -> Tiling:
    chunk, shard = chunk_and_shard(tile, volume.shape)
    return Tiling(
        volume=volume.shape,
        roi=roi,
        footprint=Footprint.of(spec),
        tile=tile,
        chunk=chunk,
        shard=shard,
        block=request.block or shard,
    )


def _sized(dtype: str, device: str) -> str:
    """The type that memory is counted in: where it is open, the one that will be taken but for odd networks.

    If float32 is taken after all, the tile is chosen anew (`Planned.in_float32`).
    """
    return fast_dtype(device) or "float32" if dtype == "auto" else dtype


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
