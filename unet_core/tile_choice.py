"""Which tile to compute a region with: the least time that fits in memory.

Larger tiles waste less on context; evenly divided axes waste less on overhang; and an anisotropic network
wants an anisotropic tile, so each axis is tried by itself. Time is arithmetic over the rate at which a device
does it, which may depend on how much memory a tile goes through: `Rates` are measured (`speed`), or all alike
where a run is too short to measure anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import log, prod

import numpy as np

from unet_core.architecture import UNetSpec
from unet_core.budget import forward_bytes
from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, Shape, ceil_div, round_up
from unet_core.tiling import Footprint

# Sides that tiles are tried with, rounded up to the stride: 1 is the smallest tile there is.
_SIDES = (
    *(1, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256),
    *(320, 384, 448, 512, 640, 768, 1024, 1536, 2048),
)
# Voxels of the largest tile: blocks are short enough to retry and to share out, half a minute of two cores.
_LARGEST = 2**25
# Rates from here on, of the best, count as equal: so much do timings of the same vary.
_ALIKE = 0.9
# Of a side, what each axis may have by itself.
_STRETCHES = (1.0, 0.5, 2.0)


@dataclass(frozen=True)
class Rates:
    """Multiply-accumulates per second by the bytes of a forward pass: measured points, bytes ascending."""

    points: tuple[tuple[int, float], ...]

    def at(self, memory: int) -> float:
        """Between points along the logarithm of the bytes; beyond them that of the nearest."""
        sizes, rates = zip(*self.points)
        return float(np.interp(log(memory), [log(size) for size in sizes], rates))

    def ranked(self, memory: int) -> float:
        """`at`, but as fast as each other where they differ by less than timings do."""
        return min(self.at(memory), _ALIKE * max(rate for _, rate in self.points))


@dataclass(frozen=True)
class TileOption:
    """One tile (z, y, x): multiply-accumulates for the region, and bytes of one forward pass."""

    tile: Shape
    macs: int
    memory: int


def choose_tile(
    spec: UNetSpec,
    volume: Shape,
    roi: Box,
    *,
    dtype: str,
    device: str,
    memory: int,
    rates: Rates | None = None,
    held: Callable[[Shape], int] | None = None,
) -> Shape:
    """The tile (z, y, x) that computes `roi` in the least time, in at most `memory` bytes.

    Parameters
    ----------
    rates
        How fast the device is; None: equally fast at all tiles.
    held
        What a worker holds in all with a tile: at most `memory`, too. None: that is no matter.

    Raises
    ------
    InputError
        Even the smallest tile does not fit.
    """
    for option in tile_options(spec, volume, roi, dtype=dtype, device=device, memory=memory, rates=rates):
        if held is None or held(option.tile) <= memory:
            return option.tile
    smallest = Footprint.of(spec).stride
    needed = forward_bytes(spec, spec.read_shape(smallest[3 - spec.ndim :]), dtype, device)
    needed, what = (needed, "one tile") if held is None else (held(smallest), "all that a worker holds")
    raise InputError(
        "not even the smallest tile fits in memory",
        expected=f"{needed:,} bytes for {what}",
        found=f"{memory:,} bytes",
        fix="use a smaller network, a 16-bit --dtype, more --memory, or a larger machine",
    )


def tile_options(
    spec: UNetSpec,
    volume: Shape,
    roi: Box,
    *,
    dtype: str,
    device: str,
    memory: int,
    rates: Rates | None = None,
) -> list[TileOption]:
    """Tiles whose forward pass takes at most `memory` bytes, those that take the least time first.

    They depend on neither the number of workers nor the block, so that these do not change results.
    """
    flat = 3 - spec.ndim
    stride = Footprint.of(spec).stride
    tried: set[Shape] = set()
    for side in _SIDES:
        sizes = (
            {1}
            if axis < flat
            else {_divide(volume[axis], max(1, round(side * s)), stride[axis]) for s in _STRETCHES}
            for axis in range(3)
        )
        tried.update(product(*sizes))
    found = []
    smallest = min(tried, key=prod)
    for tile in tried:
        if prod(tile) > _LARGEST and tile != smallest:
            continue
        read = spec.read_shape(tile[flat:])
        needed = forward_bytes(spec, read, dtype, device)
        if needed <= memory:
            found.append(TileOption(tile, len(Grid(roi, tile)) * spec.padded().macs(read), needed))

    def cost(option: TileOption) -> tuple[float, int, Shape]:
        # Of those that take as long the one with least memory; and one order whatever the set's.
        rate = 1.0 if rates is None else rates.ranked(option.memory)
        return option.macs / rate, option.memory, option.tile

    return sorted(found, key=cost)


def spread(options: list[TileOption], count: int) -> list[TileOption]:
    """The best, and others that show what it was chosen from: each of at most 2/3 of the memory before."""
    shown = options[:1]
    for option in options[1:]:
        if len(shown) == count:
            break
        if option.memory <= shown[-1].memory * 2 / 3 and prod(option.tile) < prod(shown[-1].tile):
            shown.append(option)
    return shown


def _divide(length: int, target: int, stride: int) -> int:
    """About `target`, a multiple of `stride`; a short axis is divided evenly instead."""
    parts = ceil_div(length, target)
    even = parts <= 4
    return round_up(ceil_div(length, parts) if even else target, stride)
