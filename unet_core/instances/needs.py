"""Memory and disk of the instance stages, predicted before anything runs, in bytes."""

from __future__ import annotations

from math import prod

import psutil

from unet_core.budget import GIB, WORKER_BASE
from unet_core.errors import InputError
from unet_core.instances.plan import InstancePlan

# Per voxel of a block, measured in `label`, the largest: values, labels, cc3d's own tables, and what the
# arrays' encoder holds of the shards that it writes.
_PER_VOXEL = 16
# What fibres, cells and nuclei took at most, local labels and final ids together (of 8 bytes a voxel).
_STORED_PER_VOXEL = 0.6


def worker_bytes(plan: InstancePlan) -> int:
    """Memory of a worker process in the stages that do one block at a time."""
    block = prod(min(b, v) for b, v in zip(plan.block, plan.volume))
    return WORKER_BASE + _PER_VOXEL * block


def merge_bytes(plan: InstancePlan, labels_on_faces: int) -> int:
    """Memory of the merge for so many local labels that lie on faces between blocks, at most."""
    planes = plan.roi.shape[0] * plan.blocking.grid.counts[1]
    return WORKER_BASE + 24 * labels_on_faces + 8 * planes


def disk_bytes(plan: InstancePlan) -> int:
    """Estimate of what local labels, ids with their pyramid, and evidence take."""
    return int(plan.roi.size * _STORED_PER_VOXEL) + 64 * 1024 * len(plan.blocking)


def require_memory(plan: InstancePlan, *, workers: int, available: int | None) -> None:
    """Refuse blocks that this machine cannot hold, one in each worker.

    Raises
    ------
    InputError
        Naming what is needed, what is there and the options to change.
    """
    free = psutil.virtual_memory().available if available is None else available
    needed = workers * worker_bytes(plan)
    if needed > free:
        raise InputError(
            "the blocks of the instances do not fit in memory",
            expected=f"{needed / GIB:.2f} GiB for {workers} worker{'s' if workers > 1 else ''}"
            f" with blocks of {'×'.join(map(str, plan.block))}",
            found=f"{free / GIB:.2f} GiB available",
            fix="choose a smaller --block or --tile, or fewer --workers",
        )
