"""Memory and disk of the instance stages, predicted before anything runs, in bytes."""

from __future__ import annotations

from math import prod

from unet_core import machine
from unet_core.budget import GIB, WORKER_BASE
from unet_core.errors import InputError
from unet_core.instances.plan import InstancePlan
from unet_core.instances.watershed.settings import EDGE_BYTES, NODE_BYTES, NODES_MOST

# Per voxel of a block, measured in `label`: values, labels, cc3d's own tables, and what the arrays' encoder
# holds of the shards that it writes. In `relabel`: labels, ids and classes, and beside them every channel of
# the image and what its sums take. Where probabilities decide, of every class what is read and decoded.
_PER_VOXEL = 16
_RELABELLING, _PER_CHANNEL = 9, 4
_DECIDING, _PER_CLASS = 8, 2
# Of a watershed: per voxel of a block and its ring; and per voxel that heights are made from, with p.
_PER_BASIN_VOXEL, _PER_HEIGHT_VOXEL = 24, 14
# What a block leaves to the merge lies along its faces: of noise one basin for so many voxels, with edges.
_FACE_PER_BASIN, _EDGES_PER_BASIN = 3, 8
_BYTES_PER_BASIN, _BYTES_PER_FACE_VOXEL = 26, 6
_SORTING = 2**30  # `watershed.stages.merge_all`
# Nuclei that fill a third of a volume left one for 400 voxels of faces; a fifth of that is the margin.
_FACE_PER_BASIN_AT_LEAST = 2000
# What fibres, cells and nuclei took at most, local labels and final ids together (of 8 bytes a voxel).
_STORED_PER_VOXEL = 0.6


def worker_bytes(plan: InstancePlan, *, classes: int, channels: int, itemsize: int) -> int:
    """Memory of a worker process in the stages that do one block at a time.

    `classes`: that the network knows. `channels`, `itemsize`: of the image, which is measured.
    """
    shape = tuple(min(b, v) for b, v in zip(plan.block, plan.volume))
    deciding = plan.threshold is not None or (plan.watershed is not None and len(plan.foreground) > 1)
    each = max(
        _PER_VOXEL,
        _RELABELLING + channels * (itemsize + _PER_CHANNEL),
        _DECIDING + _PER_CLASS * classes if deciding else 0,
    )
    block = each * prod(shape)
    if plan.watershed is None:
        return WORKER_BASE + block
    reach = plan.watershed.heights.reach
    read = prod(min(b + 2 * r + 2, v) for b, r, v in zip(shape, reach, plan.volume))
    heights = (_PER_HEIGHT_VOXEL + _PER_CLASS * classes) * read
    return WORKER_BASE + max(block, heights, _PER_BASIN_VOXEL * prod(n + 2 for n in shape))


def merge_bytes(plan: InstancePlan, nodes: int) -> int:
    """Memory of the merge, at most.

    `nodes`: local labels that lie on faces between blocks; of a watershed basins that do (`watershed.nodes`).
    """
    if plan.watershed is not None:
        return WORKER_BASE + _SORTING + NODE_BYTES * nodes
    planes = plan.roi.shape[0] * plan.blocking.grid.counts[1]
    return WORKER_BASE + 24 * nodes + 8 * planes


def disk_bytes(plan: InstancePlan) -> int:
    """Estimate of what local labels, ids with their pyramid, and evidence take."""
    stored = int(plan.roi.size * _STORED_PER_VOXEL) + 64 * 1024 * len(plan.blocking)
    if plan.watershed is None:
        return stored
    basins = basins_at_most(plan)
    edges = _EDGES_PER_BASIN * EDGE_BYTES * basins
    return stored + edges + _BYTES_PER_BASIN * basins + _BYTES_PER_FACE_VOXEL * _face_voxels(plan)


def basins_at_most(plan: InstancePlan) -> int:
    """Basins that the merge of a watershed gets of pure noise; of objects hundreds of times fewer."""
    return _face_voxels(plan) // _FACE_PER_BASIN


def scratch_bytes(plan: InstancePlan, basins: int) -> int:
    """Local disk that the merge takes to sort the edges of so many basins; none for components."""
    return 0 if plan.watershed is None else _EDGES_PER_BASIN * EDGE_BYTES * basins


def _face_voxels(plan: InstancePlan) -> int:
    """Voxels on faces between blocks, both sides."""
    counts, shape = plan.blocking.grid.counts, plan.roi.shape
    planes = (2 * (n - 1) * plan.roi.size // s for n, s in zip(counts, shape))
    across_z, *others = planes
    return sum(others) + (0 if plan.planar else across_z)


def require_memory(plan: InstancePlan, each: int, *, workers: int, available: int | None) -> None:
    """Refuse blocks that this machine cannot hold, one in each worker; `each`: `worker_bytes`.

    Raises
    ------
    InputError
        Naming what is needed, what is there and the options to change.
    """
    free = machine.free_memory() if available is None else available
    needed = workers * each
    if needed > free:
        raise InputError(
            "the blocks of the instances do not fit in memory",
            expected=f"{needed / GIB:.2f} GiB for {workers} worker{'s' if workers > 1 else ''}"
            f" with blocks of {'×'.join(map(str, plan.block))}",
            found=f"{free / GIB:.2f} GiB available",
            fix="choose a smaller --block or --tile, or fewer --workers",
        )


def require_merge(plan: InstancePlan, *, available: int | None) -> None:
    """Refuse a watershed whose merge, one process, is far from fitting this machine: before all other work.

    What is nearer to fitting, only the merge can tell, which counts the basins (`watershed.stages`): what it
    refuses is not lost.

    Raises
    ------
    InputError
        Naming what is needed at least, what is there and the options to change.
    """
    if plan.watershed is None:
        return
    free = machine.free_memory() if available is None else available
    fewest = _face_voxels(plan) // _FACE_PER_BASIN_AT_LEAST
    needed = merge_bytes(plan, fewest)
    if needed > free or fewest > NODES_MOST:
        raise InputError(
            "the watershed's merge would not fit",
            where=f"blocks of {'×'.join(map(str, plan.block))}, {len(plan.blocking):,} of them",
            expected=f"at least {needed / GIB:.1f} GiB of memory, for {fewest:,} basins on the blocks' faces",
            found=f"{free / GIB:.1f} GiB, and {NODES_MOST:,} basins at most",
            fix="choose a larger --block, whose faces are fewer, or a smaller --roi; --instances components"
            " needs far less",
        )
