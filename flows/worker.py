"""What runs on a worker: one block of one stage. Arguments are a URL and integers; results are counts.

The same functions run in the flow process, on a local Dask worker and on a cluster's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from unet_core import budget, devices, segmentation, speed
from unet_core.architecture import UNetSpec
from unet_core.errors import LostLeaseError
from unet_core.ledger import SEGMENT, Done, Part, RunRecord, read_record
from unet_core.pyramid import PyramidPlan
from unet_core.segmentation import BlockWorker, SegmentPlan, pyramid_block
from unet_core.tile_choice import Rates
from unet_core.volumes import Store, Volume

if TYPE_CHECKING:
    from unet_core.instances.blocks import InstanceWorker
    from unet_core.verification import RunOnDisk


def predict(url: str, fingerprint: str, epoch: int, model: str, index: int) -> Done:
    """One block of the `predict` stage of the run at `url`."""
    return _block_worker(url, fingerprint, epoch, model).predict(index)


def predict_many(
    url: str, fingerprint: str, epoch: int, model: str, indices: Iterator[int]
) -> Iterator[tuple[int, Done | Exception]]:
    """`predict` of many blocks, each with what came of it: one is read while another is computed."""
    return _block_worker(url, fingerprint, epoch, model).stream(indices)


def pyramid(url: str, fingerprint: str, epoch: int, level: int, index: int) -> Done:
    """One block of a pyramid level of the output at `url`."""
    return pyramid_block(url, _pyramid_plan(url, fingerprint), level, index, epoch=epoch)


def instances(url: str, fingerprint: str, epoch: int, stage: str, index: int) -> Done:
    """One block of a stage that makes instances, of the output at `url`."""
    return _instance_worker(url, fingerprint, epoch).do(stage, index)


def verify(url: str, fingerprint: str, epoch: int, stage: str, index: int) -> Done:
    """Read one finished block of the output at `url`; DataError if it is not what was committed."""
    from unet_core.verification import verify_block  # with all source formats: not at every worker's start

    run = _run(url, fingerprint)
    part = _part(url, fingerprint, epoch, stage, index // SEGMENT)
    return verify_block(run.store, run.stage(stage), index, f"{part.digest[index - part.start]:016x}")


def resolve(plan: dict[str, Any], normalisation: str) -> dict[str, Any]:
    """`segmentation.resolve`, where the blocks will be computed."""
    return segmentation.resolve(SegmentPlan.from_dict(plan), normalisation).to_dict()


def rates(spec: UNetSpec, dtype: str, memory: int) -> Rates:
    """`speed.rates_of` this worker's device."""
    return speed.rates_of(spec, device=devices.device_kind(), dtype=dtype, memory=memory)


def device() -> str:
    """The kind of device that this worker computes on."""
    return devices.device_kind()


def tile_memory() -> int:
    """Bytes that one tile's forward pass may take on this worker's device."""
    return budget.tile_memory(devices.device_kind())


def require_gpu() -> None:
    """Refuse a training on a GPU where this worker has none."""
    from unet_core.training import require_device  # 50 MB of modules that segmenting workers do without

    require_device("cuda")


def training_dtype(device: str) -> str:
    """What "auto" means in training: the 16-bit type that this device computes natively, else float32."""
    return devices.fast_dtype(device) or "float32"


def tile_that_fits(url: str, fingerprint: str) -> str | None:
    """A tile, as --tile takes it, that this worker has memory for; None if there is none."""
    plan = SegmentPlan.from_dict(dict(_record(url, fingerprint).plan))
    tile = segmentation.tile_that_fits(plan, devices.free_memory(plan.device))
    return None if tile is None else ",".join(map(str, tile))


def forget() -> None:
    """Give back the memory that is kept between blocks."""
    _block_worker.cache_clear()
    _instance_worker.cache_clear()
    devices.release_memory()


@lru_cache(maxsize=1)  # one network at a time in a worker's memory, loaded once
def _block_worker(url: str, fingerprint: str, epoch: int, model: str) -> BlockWorker:
    plan = SegmentPlan.from_dict(dict(_record(url, fingerprint).plan))
    return BlockWorker(url, plan, epoch=epoch, model_url=model)


@lru_cache(maxsize=1)
def _instance_worker(url: str, fingerprint: str, epoch: int) -> InstanceWorker:
    from unet_core.instances import InstancePlan
    from unet_core.instances.blocks import InstanceWorker  # with cc3d and numba

    record = _record(url, fingerprint).plan
    plan = InstancePlan.from_dict(record["instances"])
    return InstanceWorker(url, plan, image=Volume.reopen(record), fingerprint=fingerprint, epoch=epoch)


@lru_cache(maxsize=1)
def _pyramid_plan(url: str, fingerprint: str) -> PyramidPlan:
    return PyramidPlan.from_dict(_record(url, fingerprint).plan["pyramid"])


@lru_cache(maxsize=1)
def _run(url: str, fingerprint: str) -> RunOnDisk:
    from unet_core.verification import RunOnDisk

    return RunOnDisk(Store(url), _record(url, fingerprint))


@lru_cache(maxsize=1)
def _part(url: str, fingerprint: str, epoch: int, stage: str, segment: int) -> Part:
    """What was committed of a segment; nothing changes while the owner of this epoch looks."""
    return _run(url, fingerprint).ledger(stage).part(segment * SEGMENT)


def _record(url: str, fingerprint: str) -> RunRecord:
    record = read_record(Store(url))
    if record is None or record.fingerprint != fingerprint:
        raise LostLeaseError("the output was replaced while this run was going on", where=url)
    return record
