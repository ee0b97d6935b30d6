"""Which tile to compute a region with: the least arithmetic that fits in memory.

Larger tiles waste less on context; evenly divided axes waste less on overhang; and an anisotropic network
wants an anisotropic tile, so each axis is tried by itself. Time follows the arithmetic: a network runs at
about the same rate at all tiles but tiny ones (`tests/benchmarks/planner.py`). No clock is asked, so the
same command gives the same tile, and the same bits, however busy the machine is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod

from unet_core.architecture import UNetSpec
from unet_core.budget import forward_bytes
from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, Shape, ceil_div, round_up
from unet_core.tiling import Footprint

# Sides that tiles are tried with, rounded up to the stride: 1 is the smallest tile there is.
_SIDES = (1, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
# Of a side, what each axis may have by itself.
_STRETCHES = (1.0, 0.5, 2.0)


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
    memory: int,
    fits: Callable[[Shape], bool] | None = None,
) -> Shape:
    """The tile (z, y, x) that computes `roi` with the least arithmetic in at most `memory` bytes.

    Parameters
    ----------
    fits
        What else a tile must comply with.

    Raises
    ------
    InputError
        Even the smallest tile does not fit.
    """
    for option in tile_options(spec, volume, roi, dtype=dtype, memory=memory):
        if fits is None or fits(option.tile):
            return option.tile
    smallest = Footprint.of(spec).stride[3 - spec.ndim :]
    raise InputError(
        "not even the smallest tile fits in memory",
        expected=f"{forward_bytes(spec, spec.read_shape(smallest), dtype):,} bytes or more for one tile",
        found=f"{memory:,} bytes" + (" for one tile" if fits is None else " for all that a worker holds"),
        fix="use a smaller network, a 16-bit --dtype, more --memory, or a larger machine",
    )


def tile_options(spec: UNetSpec, volume: Shape, roi: Box, *, dtype: str, memory: int) -> list[TileOption]:
    """Tiles whose forward pass takes at most `memory` bytes, those with the least arithmetic first.

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
    for tile in tried:
        read = spec.read_shape(tile[flat:])
        needed = forward_bytes(spec, read, dtype)
        if needed <= memory:
            found.append(TileOption(tile, len(Grid(roi, tile)) * spec.macs(read), needed))
    # Of those with the same arithmetic the one that takes least; and one order whatever the set's.
    return sorted(found, key=lambda option: (option.macs, option.memory, option.tile))


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
