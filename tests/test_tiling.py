"""Plans: every voxel once, every shard one writer, every tile legal; by arithmetic, whatever the size."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import boxes_within, multiples, network_specs

from unet_core.architecture import UNetSpec
from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, Shape
from unet_core.tiling import Footprint, Tiling, chunk_and_shard


@st.composite
def tilings(draw: st.DrawFn) -> tuple[UNetSpec, Tiling]:
    """Random plans with few tiles; shards and blocks of several tiles, an ROI anywhere."""
    spec = draw(network_specs(cost=float("inf")))
    foot = Footprint.of(spec)
    tile = draw(multiples(foot.stride, 3))
    if spec.ndim == 2:
        tile = (1, *tile[1:])
    volume = tuple(draw(st.integers(1, 4 * n + 1)) for n in tile)
    shard = draw(multiples(tile, 2))
    chunk = tuple(draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])) for n in shard)
    block = draw(multiples(shard, 2))
    roi = draw(st.just(Box.of_shape(volume)) | boxes_within(volume))
    return spec, Tiling(
        volume=volume, roi=roi, footprint=foot, tile=tile, chunk=chunk, shard=shard, block=block
    )


@given(tilings())
def test_tiles_of_all_blocks_partition_the_roi(plan):
    _, tiling = plan
    times = np.zeros(tiling.volume, np.uint8)
    count = 0
    for index in range(len(tiling.blocks)):
        block = np.zeros(tiling.volume, np.uint8)
        for tile in tiling.tiles(index):
            times[tile.keep.slices] += 1
            block[tile.keep.slices] += 1
            count += 1
        box = tiling.block_box(index)
        assert box.size == block.sum() == block[box.slices].sum()
    expected = np.zeros(tiling.volume, np.uint8)
    expected[tiling.roi.slices] = 1
    np.testing.assert_array_equal(times, expected)
    assert tiling.tile_count == count


@given(tilings())
def test_tiles_lie_on_the_grid_and_read_what_the_network_needs(plan):
    spec, tiling = plan
    flat = 3 - spec.ndim
    every_tile = set(Grid(Box.of_shape(tiling.volume), tiling.tile))
    for index in range(len(tiling.blocks)):
        hull = tiling.block_read_box(index)
        reads = []
        for tile in tiling.tiles(index):
            # The grid of the whole volume, whatever ROI and block.
            assert tile.write in every_tile
            assert all(a % s == 0 for a, s in zip(tile.write.lower, tiling.footprint.stride))
            assert tile.keep == tile.write.intersect(tiling.roi)
            assert tile.read.shape == tiling.read_shape
            assert tile.read.shape[flat:] == spec.read_shape(tile.write.shape[flat:])
            # Output 0 of a legal input lies `lower` inside: the write box's first voxel.
            assert tile.write.relative_to(tile.read.lower).lower[flat:] == spec.context[0]
            output = (1,) * flat + spec.output_shape(tile.read.shape[flat:])
            assert all(o >= w for o, w in zip(output, tile.write.shape))
            assert hull.contains(tile.read)
            reads.append(tile.read)
        assert hull.lower == tuple(map(min, zip(*(r.lower for r in reads))))
        assert hull.upper == tuple(map(max, zip(*(r.upper for r in reads))))


@given(tilings())
def test_every_shard_has_one_writer(plan):
    _, tiling = plan
    writer: dict[Shape, int] = {}
    for index in range(len(tiling.blocks)):
        for shard in Grid(tiling.block_box(index), tiling.shard):
            assert writer.setdefault(shard.lower, index) == index, f"two blocks write {shard}"
    assert len(writer) == len(Grid(tiling.roi, tiling.shard))
    # A block is whole tiles: none is computed by two blocks.
    assert tiling.tile_count == sum(1 for i in range(len(tiling.blocks)) for _ in tiling.tiles(i))


@given(tilings())
def test_a_plan_travels_and_so_does_its_refusal(plan):
    """To Dask workers and back."""
    _, tiling = plan
    assert pickle.loads(pickle.dumps(tiling)) == tiling
    with pytest.raises(InputError) as refused:
        replace(tiling, tile=(0, 0, 0))
    back = pickle.loads(pickle.dumps(refused.value))
    assert type(back) is InputError
    assert (str(back), back.as_dict()) == (str(refused.value), refused.value.as_dict())
    assert all(fact in str(back) for fact in (back.problem, back.expected, back.found))


SIDES = st.one_of(st.integers(1, 700), st.sampled_from([2**k for k in range(11)]))


@given(tile=st.tuples(SIDES, SIDES, SIDES), volume=st.tuples(*[st.integers(1, 100_000)] * 3))
def test_shards_are_whole_chunks_and_whole_tiles(tile, volume):
    chunk, shard = chunk_and_shard(tile, volume)
    for c, s, t in zip(chunk, shard, tile):
        assert s % c == 0
        assert s % t == 0
    if tile[0] == 1:
        assert chunk[0] == shard[0] == 1, "planes: one to a shard"
    # Whatever the tile, its plan is accepted.
    Tiling(
        volume=volume,
        roi=Box.of_shape(volume),
        tile=tile,
        chunk=chunk,
        shard=shard,
        block=shard,
        footprint=Footprint(stride=(1, 1, 1), lower=(0, 0, 0), upper=(0, 0, 0)),
    )


@given(tile=multiples((8, 8, 8), 32), volume=st.tuples(*[st.integers(512, 9999)] * 3))
def test_chunks_and_shards_come_near_their_aims(tile, volume):
    chunk, shard = chunk_and_shard(tile, volume)
    for c, s, t in zip(chunk, shard, tile):
        assert 32 <= c <= 128 or t % 32  # 8 times a prime has no divisor near 64
        assert max(s, 256) < 2 * min(s, 256) or s == max(t, c)


def test_chunks_and_shards_of_usual_tiles():
    assert chunk_and_shard((64, 64, 64), (10_000,) * 3) == ((64,) * 3, (256,) * 3)
    assert chunk_and_shard((248, 128, 16), (10_000,) * 3) == ((62, 64, 64), (248, 256, 256))
    assert chunk_and_shard((1, 512, 512), (50, 8192, 8192)) == ((1, 512, 512), (1, 2048, 2048))
    # A volume of few tiles is shared out to at least two shards per axis.
    assert chunk_and_shard((64, 64, 64), (128, 128, 128))[1] == (64, 64, 64)


def test_a_volume_of_1e14_voxels_is_planned_without_listing_anything():
    side = 46_416  # 1e14 voxels, 100 TB
    spec = UNetSpec.build(ndim=3, depth=3)
    tile = (128, 128, 128)
    volume = (side,) * 3
    chunk, shard = chunk_and_shard(tile, volume)
    began = time.process_time()
    tiling = Tiling(
        volume=volume,
        roi=Box.of_shape(volume),
        footprint=Footprint.of(spec),
        tile=tile,
        chunk=chunk,
        shard=shard,
        block=(512, 512, 512),
    )
    assert tiling.roi.size > 1e14
    assert len(tiling.blocks) == 91**3
    assert tiling.tile_count == 363**3
    last = len(tiling.blocks) - 1
    assert tiling.block_box(last) == Box((90 * 512,) * 3, volume)
    assert tiling.block_read_box(last).upper == (363 * 128 + spec.context[1][0],) * 3
    assert sum(1 for _ in tiling.tiles(last)) == 3**3
    assert time.process_time() - began < 0.5


GOOD = {
    "volume": (30, 40, 50),
    "roi": Box.of_shape((30, 40, 50)),
    "tile": (8, 8, 16),
    "chunk": (8, 8, 8),
    "shard": (16, 16, 16),
    "block": (32, 16, 16),
    "footprint": Footprint(stride=(4, 4, 4), lower=(20, 20, 20), upper=(20, 20, 20)),
}


@pytest.mark.parametrize(
    ("change", "problem", "expected", "found"),
    [
        ({"tile": (8, 6, 16)}, "--tile is not a multiple of the network's stride", "8,8,16", "8,6,16"),
        ({"tile": (0, 8, 16)}, "--tile is not a multiple of the network's stride", "4,8,16", "0,8,16"),
        ({"tile": (8, 8)}, "--tile is not a multiple of the network's stride", "4,4,4", "8,8"),
        ({"shard": (16, 16, 8)}, "shard is not a multiple of the tile", "16,16,16", "16,16,8"),
        ({"chunk": (8, 8, 12)}, "shard is not a multiple of the chunk", "16,16,24", "16,16,16"),
        ({"block": (16, 16, 24)}, "--block is not a multiple of the shard", "16,16,32", "16,16,24"),
        ({"block": (-16, 16, 16)}, "--block is not a multiple of the shard", "16,16,16", "-16,16,16"),
        (
            {"roi": Box((0, 0, 0), (31, 40, 50))},
            "the ROI is not inside the volume",
            "a box within 0:30,0:40,0:50",
            "0:31,0:40,0:50",
        ),
        ({"roi": Box((-1, 0, 0), (3, 4, 5))}, "the ROI is not inside the volume", "", "-1:3,0:4,0:5"),
        ({"roi": Box((3, 3, 3), (3, 4, 5))}, "the ROI is not inside the volume", "", "3:3,3:4,3:5"),
        ({"roi": Box((3, 3), (4, 5))}, "the ROI is not inside the volume", "", "3:4,3:5"),
        ({"roi": Box((0,) * 4, (9,) * 4)}, "the ROI is not inside the volume", "", "0:9,0:9,0:9,0:9"),
    ],
)
def test_impossible_plans_are_refused(change, problem, expected, found):
    Tiling(**GOOD)
    with pytest.raises(InputError) as refused:
        Tiling(**{**GOOD, **change})
    assert refused.value.problem.startswith(problem)
    assert expected in refused.value.expected
    assert refused.value.found == found
