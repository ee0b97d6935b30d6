"""Memory of a training step, predicted: a replay of `unet_core.model.UNet` forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from unet_core.architecture import FEWEST_CHANNELS_3D, UNetSpec
from unet_core.budget.forward import ITEM_SIZE
from unet_core.geometry import Shape

# Steps whose patches a training reads while the network works.
STEPS_AHEAD = 3
# Bytes of freed tensors that the C library of a training rank is told to keep (`flows.rank_host`).
TRAINING_KEPT = 48 * 2**20
# Bytes of decoded chunks that a training rank keeps: patches come from the same ones again and again.
CHUNKS_KEPT = 128 * 2**20


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
