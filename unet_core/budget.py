"""Memory, disk and arithmetic of a plan, predicted before anything runs, in bytes and multiply-accumulates.

The model of one forward pass is a replay of `unet_core.model.UNet.forward` that counts the tensors
alive at each step; tests hold it to within 5 % of what a forward pass really takes, and a whole worker to
within 25 %, where the C library gives freed memory back at once (MALLOC_TRIM_THRESHOLD_, as workers have it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import psutil

from unet_core.architecture import FEWEST_CHANNELS_3D, UNetSpec
from unet_core.errors import InputError
from unet_core.geometry import Box, Shape, round_up
from unet_core.tiling import Tiling

GIB = 2**30
# A worker process of `flows.cluster` with torch, zarr and distributed loaded and kernels used, beside what is
# counted below (measured: 301 and 308 MiB, 112 MiB of them libraries' files, which workers share).
WORKER_BASE = 310 * 2**20
ITEM_SIZE = {"float32": 4, "auto": 4, "bfloat16": 2, "float16": 2}
# No larger tile is chosen unless asked for, so that blocks stay short enough to retry and to share out.
TILE_MEMORY = 3 * GIB
# Steps whose patches a training reads while the network works.
STEPS_AHEAD = 3
# Bytes of freed tensors that the C library of a training rank is told to keep (`flows.rank_host`).
TRAINING_KEPT = 48 * 2**20
# Bytes of decoded chunks that a segmenting worker keeps at most, for the blocks that come next.
INPUT_KEPT = 256 * 2**20
# Bytes of decoded chunks that a training rank keeps: patches come from the same ones again and again.
CHUNKS_KEPT = 128 * 2**20


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


def forward_bytes(spec: UNetSpec, input_shape: Shape, dtype: str) -> int:
    """Peak bytes of the tensors of one forward pass, the input tensor included, batch 1."""
    return max(_alive(spec.padded(), input_shape)) * ITEM_SIZE[dtype]


def _alive(spec: UNetSpec, input_shape: Shape) -> Iterator[int]:
    """Elements alive at each step of `UNet.forward`."""
    levels = spec.levels(input_shape)
    caller = spec.in_channels * prod(input_shape)  # the caller keeps the input
    skips = 0
    x = 0  # what this frame holds of its own
    for level, (shapes, kernel, width) in enumerate(zip(levels, spec.kernels, spec.widths)):
        middle = width * prod(n - k + 1 for n, k in zip(shapes.input, kernel))
        output = width * prod(shapes.contracted)
        yield caller + skips + x + middle
        yield caller + skips + x + middle + output
        if level == spec.depth:
            x = output
            break
        skip = width * prod(shapes.expand_in)
        # One axis after the other, the last first: each result beside the one it is made of.
        pooled, before = output, 0
        for factor in reversed(spec.pools[level]):
            if factor > 1:
                before, pooled = pooled, pooled // factor
                yield caller + skips + output + skip + pooled + (before if before < output else 0)
        skips += skip
        x = pooled
    for level in reversed(range(spec.depth)):
        shapes, kernel, width = levels[level], spec.kernels[level], spec.widths[level]
        up = width * prod(shapes.expand_in)
        if spec.upsampling == "nearest":
            enlarged = spec.widths[level + 1] * prod(
                n * p for n, p in zip(levels[level + 1].output, spec.pools[level])
            )
            yield caller + skips + x + enlarged + up
        yield caller + skips + x + up
        yield caller + skips + up + 2 * up
        skips -= up
        middle = width * prod(n - k + 1 for n, k in zip(shapes.expand_in, kernel))
        x = width * prod(shapes.output)
        yield caller + skips + 2 * up + middle
        yield caller + skips + 2 * up + middle + x
    logits = spec.classes * prod(levels[0].output)
    yield caller + x + logits


def weight_bytes(spec: UNetSpec, dtype: str) -> int:
    """Bytes of the network's weights."""
    total = 0
    spec = spec.padded()
    for level, (kernel, width) in enumerate(zip(spec.kernels, spec.widths)):
        above = spec.widths[level - 1] if level else spec.in_channels
        total += prod(kernel) * width * (above + width)
        if level < spec.depth:
            total += prod(kernel) * width * 3 * width
            total += prod(spec.pools[level]) * spec.widths[level + 1] * width
    return total * ITEM_SIZE[dtype]


def training_bytes(
    spec: UNetSpec,
    patch: Shape,
    batch: int,
    dtype: str,
    *,
    optimiser_states: int = 2,
    average: bool = False,
) -> int:
    """Peak bytes of one training step: weights with all that goes with them, and tensors kept for backward.

    A worker's `WORKER_BASE` and what lies beside the step (`beside_training_bytes`) are not counted.

    Parameters
    ----------
    patch
        Output shape of one patch, one entry per axis of the network.
    dtype
        That of the activations, as autocast has them; weights and loss are float32 whatever it is.
    optimiser_states
        Numbers kept per weight: 2 for AdamW, 1 for SGD with momentum.
    average
        Whether a running average of the weights is kept too.
    """
    item = ITEM_SIZE[dtype]
    weights = training_weights(spec)
    copies = 2 + optimiser_states + average  # the weights and their gradients
    cast = 0 if item == 4 else item
    activations = batch * max(_kept(spec, spec.read_shape(patch), item))
    return weights * (4 * copies + cast) + activations + TRAINING_KEPT


def beside_training_bytes(spec: UNetSpec, patch: Shape, items: int, *, border: bool = False) -> int:
    """Bytes that a training holds beside its step, in the host's memory whatever the device.

    They are the best weights so far, and the patches of the step and of those that are read ahead: image with
    context and border weights in float32, classes in a byte.

    Parameters
    ----------
    patch
        As in `training_bytes`.
    items
        Patches of a step, all of its parts together.
    border
        Whether there is a border weight map.
    """
    one = 4 * spec.in_channels * prod(spec.read_shape(patch)) + prod(patch) * (1 + 4 * border)
    return 4 * training_weights(spec) + (STEPS_AHEAD + 1) * items * one


def training_weights(spec: UNetSpec) -> int:
    """Number of weights as they are trained, biases and norms left out: they are few."""
    total = spec.widths[0] * spec.classes
    for level, (kernel, width) in enumerate(zip(spec.kernels, spec.widths)):
        above = spec.widths[level - 1] if level else spec.in_channels
        total += prod(kernel) * width * (above + width)
        if level < spec.depth:
            total += prod(kernel) * width * 3 * width
            total += prod(spec.pools[level]) * spec.widths[level + 1] * width
    return total


def _kept(spec: UNetSpec, input_shape: Shape, item: int) -> Iterator[int]:
    """Bytes alive at each step of a training step's forward and backward pass, batch 1.

    Backward needs each convolution's input. A ReLU works in place on a tensor that is the next one's input;
    batch norm keeps its own input besides. Backward frees what it has used, from the top of the expanding
    path on: the peak lies at the end of the forward pass, or where the first level's gradients meet. Here
    convolutions free what they kept and nothing else does: about so much of the freed small tensors stays
    with the C library.
    """
    levels = spec.levels(input_shape)
    held = 2 if spec.norm == "batch" else 1
    first = max(FEWEST_CHANNELS_3D if spec.ndim == 3 else 0, spec.in_channels)
    kept = spec.in_channels * prod(input_shape) * 4
    kept += first * prod(input_shape) * item if first > spec.in_channels or item < 4 else 0
    steps: list[tuple[int, int]] = []  # per convolution: bytes kept, bytes of its two gradients

    def convolve(width: int, inputs: int, before: Shape, after: Shape) -> None:
        nonlocal kept
        output = width * prod(after) * item
        kept += held * output
        steps.append((held * output, output + inputs * prod(before) * item))

    def double(level: int, inputs: int, before: Shape, after: Shape) -> None:
        width, kernel = spec.widths[level], spec.kernels[level]
        middle = tuple(n - k + 1 for n, k in zip(before, kernel))
        convolve(width, inputs, before, middle)
        convolve(width, width, middle, after)

    skips = 0
    for level, shapes in enumerate(levels):
        width = spec.widths[level]
        inputs = spec.widths[level - 1] if level else first
        double(level, inputs, shapes.input, shapes.contracted)
        if level == spec.depth:
            break
        pooled = width * prod(levels[level + 1].input)
        # Back from the pooling and from the skip, both as large as the whole level, and their sum.
        own, gradients = steps[-1]
        steps[-1] = own, max(gradients, width * prod(shapes.contracted) * (2 * item + 4))
        if item < 4 and spec.ndim == 3:  # autocast on a CPU pools volumes in float32
            kept += width * prod(shapes.contracted) * 4
        skips += width * prod(shapes.expand_in) * item
        kept += pooled * (item + 8)  # max pooling keeps where each maximum was, as int64
        yield kept + skips
    if spec.dropout:
        kept += 2 * spec.widths[-1] * prod(levels[-1].output) * item
    for level in reversed(range(spec.depth)):
        width, shapes, below = spec.widths[level], levels[level], levels[level + 1].output
        up = width * prod(shapes.expand_in) * item
        if spec.upsampling == "nearest":
            factors = prod(spec.pools[level])
            kept += spec.widths[level + 1] * prod(below) * factors * item
        yield kept + skips + up + 2 * up
        skips -= up
        kept += 2 * up
        double(level, 2 * width, shapes.expand_in, shapes.output)
        yield kept + skips
    # The loss in float32: logits, log-probabilities, their gradient, and per voxel class, weight and loss.
    loss = prod(levels[0].output) * 4 * (3 * spec.classes + 3)
    yield kept + loss
    for own, gradients in reversed(steps):
        yield kept + gradients
        kept -= own


def worker_memory(
    spec: UNetSpec,
    tiling: Tiling,
    *,
    dtype: str,
    input_item: int,
    input_chunk: Shape,
    probabilities: bool,
) -> WorkerMemory:
    """Peak bytes of one worker: input of one block and the next, output of one and the last, a tile.

    `input_item` is bytes per voxel and channel, `input_chunk` (z, y, x) what is decoded at a time.
    """
    write = prod(tiling.tile)
    read = prod(tiling.read_shape)
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
    # float32 from raw, then in the network's type and memory format; dropped before the block is written
    staging = spec.in_channels * read * (4 + (0 if dtype == "float32" else ITEM_SIZE[dtype]))
    after = write * (8 + 1 + spec.classes * ITEM_SIZE[dtype])  # argmax indices, labels, logits
    if probabilities:
        after += write * spec.classes * (4 + 4 + 1)
    channels = 1 + (spec.classes if probabilities else 0)
    written = channels * tiles_in_block.size
    return WorkerMemory(
        base=WORKER_BASE,
        weights=weight_bytes(spec, dtype),
        input=data,
        forward=max(forward_bytes(spec, network, dtype) + staging, after + staging),
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
    """Bytes that one tile's forward pass may take; depends on the machine, not on the number of workers."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0] * 0.6)
    return min(TILE_MEMORY, psutil.virtual_memory().total // max(psutil.cpu_count() or 1, 1) // 2)


def require_memory(needed: WorkerMemory, device: str, *, workers: int, available: int | None) -> None:
    """Refuse a plan that this machine cannot hold with so many workers on it.

    Raises
    ------
    InputError
        Naming what is needed, what is there and the options to change.
    """
    host = needed.total
    if device == "cuda":
        import torch

        # The forward pass lives on the device, one worker to each; the host keeps blocks.
        host -= needed.forward
        _require("the GPU's memory", needed.forward, int(torch.cuda.mem_get_info()[0]), "--tile", needed, 1)
    free = psutil.virtual_memory().available if available is None else available
    _require("memory", workers * host, free, "--tile or --block, or fewer --workers", needed, workers)


def _require(what: str, total: int, free: int, options: str, needed: WorkerMemory, workers: int) -> None:
    if total > free:
        raise InputError(
            f"this plan does not fit in {what}",
            expected=f"{total / GIB:.2f} GiB for {workers} worker{'s' if workers > 1 else ''}"
            f" ({needed.forward / GIB:.2f} GiB of it for one tile's forward pass, each)",
            found=f"{free / GIB:.2f} GiB available",
            fix=f"choose a smaller {options}",
        )
