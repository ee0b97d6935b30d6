"""Memory and disk of a segmentation, predicted before anything runs, in bytes.

Tests hold a whole worker to within 25 % of what is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from unet_core import machine
from unet_core.architecture import UNetSpec
from unet_core.budget.forward import REUSED, forward_bytes, weight_bytes
from unet_core.errors import InputError
from unet_core.geometry import Box, Shape, round_up
from unet_core.tiling import Tiling

GIB = 2**30
# A worker process of `flows.cluster` with torch, zarr and distributed loaded and kernels used, beside what is
# counted below (measured: 301 and 308 MiB, 112 MiB of them libraries' files, which workers share).
WORKER_BASE = 310 * 2**20
# No larger tile is chosen unless asked for, so that blocks stay short enough to retry and to share out.
TILE_MEMORY = 3 * GIB
# Bytes of decoded chunks that a segmenting worker keeps at most, for the blocks that come next.
INPUT_KEPT = 256 * 2**20


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes one worker needs at its peak, and what they are for."""

    base: int
    weights: int
    input: int
    forward: int
    output: int
    chunks: int = 0

    @property
    def total(self) -> int:
        return self.base + self.weights + self.input + self.forward + self.output + self.chunks


def worker_memory(
    spec: UNetSpec,
    tiling: Tiling,
    *,
    dtype: str,
    device: str,
    input_item: int,
    input_chunk: Shape,
    probabilities: bool,
) -> WorkerMemory:
    """Peak bytes of one worker: input of one block and the next, output of one and the last, a tile.

    `input_item` is bytes per voxel and channel, `input_chunk` (z, y, x) what is decoded at a time.
    """
    block = Box.of_shape(tiling.block)
    tiles_in_block = block.intersect(
        Box.of_shape(tuple(round_up(n, t) for n, t in zip(tiling.volume, tiling.tile)))
    )
    block_read = tiles_in_block.grow(tiling.footprint.lower, tiling.footprint.upper)
    # One is computed of. The next is put together of whole chunks, or mirrored, each beside its source.
    item = input_item * spec.in_channels
    kept = kept_chunks(tiling, item, input_chunk)
    met = item * prod(_met(block_read.shape, input_chunk, tiling.volume))
    data = item * block_read.size
    data = 2 * data + max(data, min(met, kept))
    network = tiling.read_shape[3 - spec.ndim :]
    forward = forward_bytes(spec, network, dtype, device, probabilities=probabilities)
    holes = 0 if device == "cuda" else min(REUSED, forward // 4)  # in what is kept of freed tensors
    channels = 1 + (spec.classes if probabilities else 0)
    answer = 2 * channels * prod(tiling.tile)  # a tile's, and that of the one before
    written = channels * tiles_in_block.size
    return WorkerMemory(
        base=WORKER_BASE,
        weights=weight_bytes(spec, dtype),
        input=data,
        forward=forward + holes + answer,
        output=3 * written,  # the block; the one before and its encoded shards
        chunks=kept,
    )


def kept_chunks(tiling: Tiling, item: int, chunk: Shape) -> int:
    """Bytes of decoded chunks that a segmenting worker keeps: a slab of blocks, if that is not too much.

    Blocks are done in raster order, so then each chunk is decoded about once. `item` is bytes per voxel,
    `chunk` (z, y, x) what is decoded at a time: the slab is counted in whole ones.
    """
    whole = Box.of_shape(tiling.volume)
    slab = tiling.roi.grow(tiling.footprint.lower, tiling.footprint.upper).intersect(whole).shape
    thick = tiling.block[0] + tiling.footprint.lower[0] + tiling.footprint.upper[0]
    slab = (min(thick, slab[0]), *slab[1:])
    return min(item * prod(_met(slab, chunk, tiling.volume)), INPUT_KEPT)


def _met(shape: Shape, chunk: Shape, volume: Shape) -> Shape:
    """The chunks that a box meets at most, wherever it begins, as a shape."""
    return tuple(min(round_up(n, c) + c, v) for n, c, v in zip(shape, chunk, volume))


def disk_bytes(tiling: Tiling, *, classes: int, probabilities: bool) -> int:
    """Estimate of the output's bytes: labels with their pyramid, and probabilities.

    Assumes that class labels compress 6-fold and probabilities not at all; on fib25 and isbi2012 it was
    16-fold and 1.4-fold. Labels of noise may take more than this estimate.
    """
    labels = tiling.roi.size * 8 // 7 // 6
    return labels + (tiling.roi.size * classes if probabilities else 0) + 64 * 1024 * len(tiling.blocks)


def tile_memory(device: str) -> int:
    """Bytes that one tile's forward pass may take; depends on the machine, not on the number of workers.

    InputError for a GPU where this process sees none.
    """
    if device == "cuda":
        return int(_free_on_gpu() * 0.6)
    return min(TILE_MEMORY, machine.total_memory() // machine.cores() // 2)


def require_memory(needed: WorkerMemory, device: str, *, workers: int, available: int | None) -> None:
    """Refuse a plan whose workers do not fit into the memory of this machine, or into what they may have.

    Raises
    ------
    InputError
        Naming what is needed, what is there and the options to change.
    """
    # On GPUs the forward pass lives on the device; the host keeps blocks.
    host = needed.total - (needed.forward if device == "cuda" else 0)
    free = machine.free_memory() if available is None else available
    _require("memory", workers * host, free, "--tile or --block, or fewer --workers", needed, workers)


def require_gpu_memory(needed: WorkerMemory) -> None:
    """As `require_memory`, for the GPU of this machine: there is one worker to each."""
    _require("the GPU's memory", needed.forward, _free_on_gpu(), "--tile", needed, 1)


def _free_on_gpu() -> int:
    from unet_core.devices import free_memory  # with torch, which plans for CPUs do without

    return free_memory("cuda")


def _require(what: str, total: int, free: int, options: str, needed: WorkerMemory, workers: int) -> None:
    if total > free:
        raise InputError(
            f"this plan does not fit in {what}",
            expected=f"{total / GIB:.2f} GiB for {workers} worker{'s' if workers > 1 else ''}"
            f" ({needed.forward / GIB:.2f} GiB of it for one tile's forward pass, each)",
            found=f"{free / GIB:.2f} GiB available",
            fix=f"choose a smaller {options}",
        )
