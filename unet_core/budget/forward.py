"""Memory of a forward pass, predicted: what `unet_core.streamed` keeps, and what comes and goes with a slab.

Tests hold it to within 15 % of what a forward pass really takes where freed memory goes back at once: 3 %
mostly, 11 % too much for nearest-neighbour up-sampling. Workers keep some, which `worker` adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from unet_core.architecture import UNetSpec
from unet_core.geometry import Shape, ceil_div, round_up

ITEM_SIZE = {"float32": 4, "auto": 4, "bfloat16": 2, "float16": 2}
# Bytes of a slab with the channels of the first level: so small that what is freed is used again, and so
# large that what is kept of the slab before is little beside it.
_SLAB = 24 * 2**20
# Elements of a tensor that cuDNN's convolutions take: beyond, "GET was unable to find an engine".
_INDEXED = 2**31 - 1
# Bytes of the largest tensor whose memory a segmenting worker keeps for the next instead of giving it back:
# to get it anew, page by page, took a quarter of the time. Older C libraries take no larger number.
REUSED = 32 * 2**20
_PAGE = 2 * 2**20  # a huge one
# What cuDNN takes with the tensors, as a factor. Measured on one H100: 0.98 to 1.18 in bfloat16, 1.75 and
# 1.82 in float32 in 3D. In float32 in 2D it takes all that there is, and less where there is less.
_WORKSPACE = {"float32": 2.0, "auto": 2.0}


def slab_planes(spec: UNetSpec, input_shape: Shape, dtype: str, device: str) -> int:
    """Planes along the first axis that are computed at a time: whole strides, so that all slabs are alike.

    All at once where that would be less than two slabs: to keep things between them would cost more.
    Fixed by network, tile, type and kind of device: another number may round the last bit otherwise. On GPUs
    all at once while cuDNN can index it: slabs were not measured there.
    """
    stride = spec.stride[0]
    if device == "cuda":
        merged = 2 * spec.padded().widths[0] * prod(input_shape[1:])
        most = _INDEXED // merged
        return input_shape[0] if input_shape[0] <= most else max(1, most // (2 * stride)) * stride
    plane = spec.padded().widths[0] * prod(input_shape[1:]) * ITEM_SIZE[dtype]
    planes = max(1, round(_SLAB / (plane * stride))) * stride
    return planes if 2 * planes <= input_shape[0] else input_shape[0]


def forward_bytes(
    spec: UNetSpec, input_shape: Shape, dtype: str, device: str, *, probabilities: bool = False
) -> int:
    """Peak bytes of one tile: from raw intensities to classes, and 8-bit `probabilities` if asked for.

    What the caller has, raw intensities, and what stays, one byte per voxel and output, is not counted.
    """
    slabs = _Slabs(spec.padded(), input_shape, slab_planes(spec, input_shape, dtype, device))
    # Class numbers in 64 bits; or logits and probabilities in float32, and these in 8 bits.
    answer = (
        max(8, spec.classes * 9 if probabilities else 0) * slabs.out[0] * prod(slabs.levels[0].output[1:])
    )
    scaled = spec.in_channels * slabs.into[0] * prod(input_shape[1:]) * 4
    item = ITEM_SIZE[dtype]
    *passing, last = (item * elements for elements in slabs.passing())
    kept = sum(round_up(item * elements, _PAGE) for elements in slabs.kept())
    peak = kept + max(*passing, last + answer, passing[0] + scaled)
    return round(_WORKSPACE.get(dtype, 1.25) * peak) if device == "cuda" else peak


class _Slabs:
    """A forward pass in slabs: planes that go into each level at a time, and out of it."""

    def __init__(self, spec: UNetSpec, input_shape: Shape, planes: int) -> None:
        self.spec, self.levels = spec, spec.levels(input_shape)
        self.once = planes >= input_shape[0]
        self.into = [planes]
        for pool in spec.pools:
            self.into.append(ceil_div(self.into[-1], pool[0]))
        self.out = [self.into[-1]]
        for pool in reversed(spec.pools):
            self.out.insert(0, self.out[0] * pool[0])

    def kept(self) -> Iterator[int]:
        """Elements that have their place from the beginning: rooms where slabs are joined, and skips."""
        spec = self.spec

        def room(channels: int, kernel: Shape, shape: Shape, planes: int) -> int:
            if self.once or kernel[0] == 1:
                return 0
            return channels * min(kernel[0] - 1 + planes, shape[0]) * prod(shape[1:])

        for level, (here, kernel, width) in enumerate(zip(self.levels, spec.kernels, spec.widths)):
            into, out = self.into[level], self.out[level]
            above = spec.widths[level - 1] if level else spec.in_channels
            yield room(above, kernel, here.input, into)
            yield room(width, kernel, _after(here.input, kernel), into)
            if level == spec.depth:
                return
            factors, below = spec.pools[level], spec.widths[level + 1]
            behind = here.contracted[0] - spec.crop_lower(level)[0] - here.expand_in[0]
            behind += prod(pool[0] for pool in spec.pools[level:]) - 1
            yield width * min(into + behind, here.expand_in[0]) * prod(here.expand_in[1:])
            if spec.upsampling == "nearest":
                yield room(below, factors, _times(self.levels[level + 1].output, factors), out)
            if not self.once:
                yield 2 * width * _size(here.expand_in, kernel[0] - 1 + out)
            yield room(width, kernel, _after(here.expand_in, kernel), out)

    def passing(self) -> Iterator[int]:
        """Elements that one slab has alive, step by step; last with the logits."""
        spec = self.spec
        inputs: list[int] = []  # each level's, until all of the level is done
        x = late = 0  # planes that are lost to the convolutions so far
        for level, (here, kernel, width) in enumerate(zip(self.levels, spec.kernels, spec.widths)):
            into = self.into[level]
            above = spec.widths[level - 1] if level else spec.in_channels
            inputs.append(above * _size(here.input, into))
            if not level:
                yield inputs[0]
            middle, x = width * _size(_after(here.input, kernel), into), width * _size(here.contracted, into)
            yield sum(inputs) + middle
            yield sum(inputs) + x + self._beside(kernel, middle)
            if level == spec.depth:
                break
            factors = spec.pools[level]
            late += 2 * (kernel[0] - 1)
            rest = 0 if self.once else -late % factors[0]
            late = ceil_div(late, factors[0])
            joined = x * (into + rest) // into if rest else 0
            # One axis after the other, the last first: each result beside the one it is made of.
            size, before = x, 0
            for factor in reversed(factors):
                if factor > 1:
                    size //= factor
                    yield sum(inputs) + x + joined + before + size * (2 if factor > 2 else 1)
                    before = size
        for level in reversed(range(spec.depth)):
            here, kernel, width, out = (
                self.levels[level],
                spec.kernels[level],
                spec.widths[level],
                self.out[level],
            )
            held, below = sum(inputs[: level + 1]), x
            up = width * _size(here.expand_in, out)
            enlarged = 0
            if spec.upsampling == "nearest":
                factors = spec.pools[level]
                shape = _times(self.levels[level + 1].output, factors)
                enlarged = spec.widths[level + 1] * _size(shape, out)
                yield held + below + enlarged
                enlarged = self._beside(factors, enlarged)
            yield held + below + enlarged + up
            joined = 2 * up if self.once else 0
            yield held + up + joined
            middle, x = width * _size(_after(here.expand_in, kernel), out), width * _size(here.output, out)
            yield held + joined + middle
            yield held + x + self._beside(kernel, middle)
        yield inputs[0] + x + spec.classes * _size(self.levels[0].output, self.out[0])

    def _beside(self, kernel: Shape, source: int) -> int:
        """Of a convolution's input: what is alive beside its output. What is joined in a room is not."""
        return source if self.once or kernel[0] == 1 else 0


def _size(shape: Shape, planes: int) -> int:
    return min(planes, shape[0]) * prod(shape[1:])


def _after(shape: Shape, kernel: Shape) -> Shape:
    return tuple(n - k + 1 for n, k in zip(shape, kernel))


def _times(shape: Shape, factors: Shape) -> Shape:
    return tuple(n * f for n, f in zip(shape, factors))


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
