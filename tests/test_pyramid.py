"""Coarser levels against the plain way: every window looked at by itself."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, boxes_within, multiples

from unet_core.geometry import Box, Shape, ceil_div
from unet_core.metadata import PyramidLevel, pyramid_levels, steps_between
from unet_core.pyramid import PyramidPlan, reduce_by, write_block
from unet_core.volumes import Store, Volume, create_multiscale, open_for_writing, write_box

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
STEPS = st.tuples(*[st.integers(1, 2)] * 3)


def windows(data: np.ndarray, steps: Shape) -> dict[Shape, list]:
    """The voxels under every coarse voxel; fewer at an odd end."""
    coarse = tuple(ceil_div(n, s) for n, s in zip(data.shape, steps))
    return {
        place: data[tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, steps))].ravel().tolist()
        for place in product(*map(range, coarse))
    }


def plain_mode(values: list[int]) -> int:
    counts = Counter(values)
    return min(value for value, count in counts.items() if count == max(counts.values()))


@settings(max_examples=100)
@given(
    shape=SHAPES,
    steps=STEPS,
    seed=SEEDS,
    labels=st.integers(1, 6),
    dtype=st.sampled_from(["uint8", "int16", "uint32", "uint64"]),
    high=st.booleans(),
)
def test_mode_is_the_most_frequent_label_and_the_smallest_on_a_tie(shape, steps, seed, labels, dtype, high):
    data = np.random.default_rng(seed).integers(0, labels, shape).astype(dtype)
    if high:  # ids beyond what a float could hold
        data += np.iinfo(dtype).max - labels
    coarse = reduce_by(data, steps, "mode")
    assert coarse.dtype == data.dtype
    expected = {place: plain_mode(values) for place, values in windows(data, steps).items()}
    assert {place: int(coarse[place]) for place in expected} == expected
    assert coarse.size == len(expected)


@settings(max_examples=60)
@given(shape=SHAPES, steps=STEPS, seed=SEEDS, dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]))
def test_mean_is_the_mean_of_the_window_rounded_once(shape, steps, seed, dtype):
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        data = rng.normal(size=shape).astype(dtype)
    else:
        info = np.iinfo(dtype)
        data = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    coarse = reduce_by(data, steps, "mean")
    assert coarse.dtype == data.dtype
    for place, values in windows(data, steps).items():
        mean = sum(map(Fraction, values)) / len(values)
        if dtype == "float32":
            assert coarse[place] == pytest.approx(float(mean), rel=1e-6, abs=1e-6)
        else:
            assert coarse[place] == (mean + Fraction(1, 2)).__floor__()


def make(folder: Path, levels: tuple[PyramidLevel, ...], shard: Shape, **options) -> Store:
    store = Store(folder)
    arrays = {"kind": "labels", "axes": "zyx", "leading": (), "dtype": np.dtype(np.uint8), **options}
    create_multiscale(
        store,
        **arrays,
        levels=levels,
        chunk=shard,
        shard=shard,
        name="p",
        voxel_size=(1.0, 1.0, 1.0),
        origin=(0.0, 0.0, 0.0),
        unit=None,
    )
    return store


@settings(max_examples=15)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 40), st.integers(1, 40)),
    shard=multiples((4, 4, 4), 3),
    data=st.data(),
    seed=SEEDS,
    method=st.sampled_from(["mode", "mean"]),
)
def test_levels_made_by_blocks_equal_levels_made_at_once(shape, shard, data, seed, method, tmp_path_factory):
    levels = tuple(pyramid_levels(shape, (1.0, 1.0, 1.0), smallest=6))
    extent = data.draw(st.just(Box.of_shape(shape)) | boxes_within(shape))
    plan = PyramidPlan(levels=levels, shard=shard, method=method, extent=extent)
    assert PyramidPlan.from_dict(plan.to_dict()) == plan
    store = make(tmp_path_factory.mktemp("p") / "p.zarr", levels, shard)
    whole = np.zeros(shape, np.uint8)
    whole[extent.slices] = np.random.default_rng(seed).integers(1, 5, extent.shape)
    write_box(open_for_writing(store, "0"), Box.of_shape(shape), whole)
    for level in range(1, len(levels)):
        count = plan.count(level)
        boxes = [write_block(store, plan, level, i) for i in data.draw(st.permutations(range(count)))]
        assert len(set(boxes)) == count
        whole = reduce_by(whole, steps_between(levels[level - 1], levels[level]), method)
        volume = Volume.open(store.url, level=level)
        # Outside the extent there is only background, so blocks that miss it may be left out.
        np.testing.assert_array_equal(volume.read(volume.box)[0], whole)


def test_time_points_and_channels_have_pyramids_of_their_own(tmp_path):
    levels = tuple(pyramid_levels((4, 20, 20), (1.0, 1.0, 1.0), smallest=10))
    plan = PyramidPlan(
        levels=levels, shard=(4, 8, 8), method="mean", extent=Box.of_shape((4, 20, 20)), timepoints=2
    )
    store = make(
        tmp_path / "p.zarr",
        levels,
        (4, 8, 8),
        kind="image",
        axes="tczyx",
        leading=(2, 3),
        dtype=np.dtype(np.uint16),
    )
    images = np.random.default_rng(0).integers(0, 1000, (2, 3, 4, 20, 20)).astype(np.uint16)
    for timepoint, image in enumerate(images):
        write_box(open_for_writing(store, "0"), Box.of_shape((4, 20, 20)), image, timepoint=timepoint)
    for index in range(plan.count(1)):
        write_block(store, plan, 1, index)
    for timepoint, image in enumerate(images):
        volume = Volume.open(store.url, level=1, timepoint=timepoint)
        expected = np.stack([reduce_by(c, steps_between(*levels[:2]), "mean") for c in image])
        np.testing.assert_array_equal(volume.read(volume.box), expected)


@given(shape=st.tuples(*[st.integers(1, 5000)] * 3), z=st.sampled_from([1.0, 2.5, 4.0, 10.0, 45.0]))
def test_levels_halve_until_small_and_become_isotropic_first(shape, z):
    levels = pyramid_levels(shape, (z, 1.0, 1.0))
    assert levels[0] == PyramidLevel(0, shape, (1, 1, 1))
    assert max(levels[-1].shape) <= 128
    for finer, coarser in pairwise(levels):
        steps = steps_between(finer, coarser)
        assert max(steps) == 2
        assert min(steps) >= 1
        assert coarser.shape == tuple(ceil_div(n, s) for n, s in zip(finer.shape, steps))
        assert coarser.factors == tuple(f * s for f, s in zip(finer.factors, steps))
        assert max(finer.shape) > 128, "one level too many"
        sizes = [size * f for size, f, n in zip((z, 1.0, 1.0), finer.factors, finer.shape) if n > 1]
        halved = [size * f for size, f, s in zip((z, 1.0, 1.0), finer.factors, steps) if s == 2]
        assert max(halved) < 2 * min(sizes), "a coarse axis was halved before a fine one"
