"""Blocks and tiles as plain data. Reads no array and computes no voxel.

    tile grid, anchored at the volume's origin                one tile, on one axis
    0        w        2w       3w                             a-lower      a    b     b+upper
    |--------|--------|--------|                                 |---------|====|---------|
    |====block 0======|==block 1 ...                             read box       write box
               volume ends ^ : the last tile overhangs, its surplus is clipped, nothing is shifted back

A write box is a multiple of the network's stride, a read box is that plus the context, always legal.
A block is whole tiles and whole output shards, and has one writer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from unet_core.architecture import UNetSpec
from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, Shape, ceil_div, round_up


@dataclass(frozen=True)
class Tile:
    """One forward pass: what it reads, what it computes, and what of that is kept (inside volume and ROI)."""

    read: Box
    write: Box
    keep: Box


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A network as tiles see it: stride and context on z, y, x. A 2D network has stride 1, context 0 in z."""

    stride: Shape
    lower: Shape
    upper: Shape

    @classmethod
    def of(cls, spec: UNetSpec) -> Footprint:
        lower, upper = spec.context
        flat = (0,) * (3 - spec.ndim)
        return cls(stride=(1,) * len(flat) + spec.stride, lower=flat + lower, upper=flat + upper)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The whole plan of who computes what, for one volume; all shapes z, y, x.

    Raises
    ------
    InputError
        A tile that is not a multiple of the stride, a block that is not whole tiles and shards, an ROI
        outside the volume.
    """

    volume: Shape
    roi: Box
    footprint: Footprint
    tile: Shape
    chunk: Shape
    shard: Shape
    block: Shape

    def __post_init__(self) -> None:
        whole = Box.of_shape(self.volume)
        if len(self.roi.lower) != len(self.volume) or not self.roi or not whole.contains(self.roi):
            raise InputError(
                "the ROI is not inside the volume", expected=f"a box within {whole}", found=self.roi
            )
        _require_multiple("--tile", self.tile, self.footprint.stride, "the network's stride")
        _require_multiple("shard", self.shard, self.tile, "the tile")
        _require_multiple("shard", self.shard, self.chunk, "the chunk")
        _require_multiple("--block", self.block, self.shard, "the shard, which is whole tiles")

    @property
    def blocks(self) -> Grid:
        return Grid(self.roi, self.block)

    def block_box(self, index: int) -> Box:
        """The part of block `index` that is written: inside the volume and the ROI."""
        return self.blocks[index].intersect(self.roi)

    def block_read_box(self, index: int) -> Box:
        """The union of the read boxes of the block's tiles."""
        return self._read(_tiles_hull(self.block_box(index), self.tile))

    def tiles(self, index: int) -> Iterator[Tile]:
        """The tiles of one block, in raster order."""
        keep = self.block_box(index)
        for write in Grid(keep, self.tile):
            yield Tile(self._read(write), write, write.intersect(keep))

    @property
    def tile_count(self) -> int:
        """Tiles of all blocks, by arithmetic."""
        # Blocks are whole tiles, so no tile belongs to two blocks.
        return len(Grid(self.roi, self.tile))

    @property
    def read_shape(self) -> Shape:
        """Input shape of every forward pass."""
        return self._read(Box.of_shape(self.tile)).shape

    def _read(self, write: Box) -> Box:
        return write.grow(self.footprint.lower, self.footprint.upper)


def halved(tile: Shape, stride: Shape) -> Shape | None:
    """A tile with the side halved that is the most strides long; None for the smallest tile."""
    longest = max(range(3), key=lambda axis: tile[axis] // stride[axis])
    if tile[longest] <= stride[longest]:
        return None
    half = round_up(tile[longest] // 2, stride[longest])
    return (*tile[:longest], half, *tile[longest + 1 :])


def _tiles_hull(box: Box, tile: Shape) -> Box:
    return box.coarsen(tile).refine(tile)


def _require_multiple(name: str, shape: Shape, unit: Shape, of: str) -> None:
    if len(shape) != len(unit) or any(n < 1 or n % u for n, u in zip(shape, unit)):
        nearest = (
            tuple(max(u, round_up(n, u)) for n, u in zip(shape, unit)) if len(shape) == len(unit) else unit
        )
        raise InputError(
            f"{name} is not a multiple of {of}",
            expected=f"multiples of {unit} on z, y, x, such as {','.join(map(str, nearest))}",
            found=",".join(map(str, shape)),
        )


def chunk_and_shard(tile: Shape, volume: Shape) -> tuple[Shape, Shape]:
    """Output chunk and shard for a tile: a shard is whole chunks and whole tiles.

    They depend on the tile and the volume alone, never on the block: for one tile shape the stored
    bytes are the same whatever the blocks. Aims: chunks of about 64 voxels per axis and shards of
    about 256; in planes (tiles one voxel thick) 512 and 2048, one plane to a shard.
    """
    if tile[0] == 1:
        planes = [_axis(t, v, 512, 2048) for t, v in zip(tile[1:], volume[1:])]
        return (1, *(c for c, _ in planes)), (1, *(s for _, s in planes))
    axes = [_axis(t, v, 64, 256) for t, v in zip(tile, volume)]
    return tuple(c for c, _ in axes), tuple(s for _, s in axes)


def _axis(tile: int, volume: int, chunk_aim: int, shard_aim: int) -> tuple[int, int]:
    if tile <= chunk_aim:
        chunk = tile * min(chunk_aim // tile, ceil_div(volume, tile))
    else:
        # The divisor nearest to the aim, as a ratio: 248 gives 62.
        divisors = [d for d in range(1, tile + 1) if tile % d == 0]
        chunk = min(divisors, key=lambda d: max(d / chunk_aim, chunk_aim / d))
    unit = max(tile, chunk)
    # At least two shards per axis where there are two tiles: a small volume is shared out, too.
    return chunk, unit * max(1, min(shard_aim // unit, ceil_div(volume, 2 * unit)))
