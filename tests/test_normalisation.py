"""One rule, one pair of numbers per volume and channel: against numpy, on all of the voxels."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import SEEDS, write_array

from unet_core import normalisation
from unet_core.errors import DataError, InputError
from unet_core.geometry import Box, ceil_div
from unet_core.normalisation import NormalisationRule, Scale, measure, require_finite
from unet_core.volumes import Volume

SHAPES = st.tuples(st.integers(1, 3), *[st.integers(1, 14)] * 3)


def volume_of(folder: Path, image: np.ndarray, **options) -> Volume:
    write_array(folder / "v.zarr", image, axes="czyx", chunks=(1, 4, 8, 8))
    return Volume.open(str(folder / "v.zarr"), **options)


def plainly(image: np.ndarray, rule: NormalisationRule) -> Scale:
    """The same numbers from all voxels at once. A percentile is the smallest value that has at least that
    share of the voxels at or below it."""
    channels = np.sort(image.reshape(len(image), -1).astype(np.float64), axis=1)
    if rule.rule == "mean_std":
        return Scale(tuple(channels.mean(axis=1)), tuple(std or 1.0 for std in channels.std(axis=1)))
    count = channels.shape[1]
    # Integers: 0.07 * 100 is more than 7, and numpy's own percentile falls for it.
    low, high = (channels[:, max(1, ceil_div(count * p, 100)) - 1].tolist() for p in (rule.low, rule.high))
    return Scale(tuple(low), tuple((b - a) or 1.0 for a, b in zip(low, high)))


@settings(max_examples=40)
@given(
    shape=SHAPES,
    seed=SEEDS,
    dtype=st.sampled_from(["bool", "uint8", "uint16", "int16", "int8"]),
    percents=st.sets(st.integers(0, 100), min_size=2, max_size=2).map(sorted),
    narrow=st.booleans(),
)
def test_percentiles_of_small_integers_are_exact(shape, seed, dtype, percents, narrow, tmp_path_factory):
    rng = np.random.default_rng(seed)
    low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    high = min(high, low + 5) if narrow else high
    image = rng.integers(low, high, shape, endpoint=True).astype(dtype)
    rule = NormalisationRule(low=percents[0], high=percents[1])
    assert measure(volume_of(tmp_path_factory.mktemp("n"), image), rule) == plainly(image, rule)


@settings(max_examples=40)
@given(
    shape=SHAPES,
    seed=SEEDS,
    dtype=st.sampled_from(["float32", "float64", "uint32", "int64"]),
    log=st.booleans(),
)
def test_percentiles_of_other_types_are_right_to_a_bin(shape, seed, dtype, log, tmp_path_factory):
    rng = np.random.default_rng(seed)
    image = rng.lognormal(3, 1, shape) if log else rng.normal(1000, 300, shape).clip(0)
    image = image.astype(dtype)
    rule = NormalisationRule(low=2, high=97)
    found = measure(volume_of(tmp_path_factory.mktemp("n"), image), rule)
    for channel, offset, spread in zip(image, found.offset, found.spread):
        one_bin = (float(channel.max()) - float(channel.min())) / 65535
        exact = plainly(channel[np.newaxis], rule)
        assert offset == pytest.approx(exact.offset[0], abs=one_bin)
        assert spread == pytest.approx(exact.spread[0], abs=2 * one_bin)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint32", "int64"])
def test_one_hot_voxel_does_not_blur_the_percentiles(dtype, tmp_path):
    """A cosmic ray a million times as bright would leave all other voxels in one bin."""
    image = np.random.default_rng(0).normal(1000, 200, (1, 16, 16, 16)).astype(dtype)
    image[0, 3, 4, 5] = 10**9
    rule = NormalisationRule(low=1, high=99)
    found, exact = measure(volume_of(tmp_path, image), rule), plainly(image, rule)
    assert found.offset == pytest.approx(exact.offset, abs=0.01 * exact.spread[0] + 1)
    assert found.spread == pytest.approx(exact.spread, rel=0.02)


@settings(max_examples=40)
@given(shape=SHAPES, seed=SEEDS, dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]))
def test_mean_and_deviation(shape, seed, dtype, tmp_path_factory):
    image = np.random.default_rng(seed).normal(100, 20, shape).clip(0, 255).astype(dtype)
    rule = NormalisationRule(rule="mean_std")
    found, expected = measure(volume_of(tmp_path_factory.mktemp("n"), image), rule), plainly(image, rule)
    one_bin = float(np.ptp(image)) / 65535 if dtype == "float32" else 0.0
    assert found.offset == pytest.approx(expected.offset, rel=1e-9, abs=one_bin)
    assert found.spread == pytest.approx(expected.spread, rel=1e-9, abs=one_bin)


@given(
    shape=SHAPES,
    rule=st.sampled_from(["percentiles", "mean_std"]),
    value=st.floats(0, 255),
    dtype=st.sampled_from(["uint8", "int16", "float32", "float64"]),
)
@example(shape=(1, 12, 15, 9), rule="mean_std", value=164.64917894729209, dtype="float64")
@settings(max_examples=40)
def test_a_flat_volume_stays_flat_and_near_zero(shape, rule, value, dtype, tmp_path_factory):
    image = np.full(shape, value).astype(dtype)
    scale = measure(volume_of(tmp_path_factory.mktemp("n"), image), NormalisationRule(rule=rule))
    assert scale.spread == (1.0,) * len(image)
    np.testing.assert_allclose(scale.offset, image[:, 0, 0, 0], rtol=1e-12)
    np.testing.assert_allclose(scale.apply(image), 0, atol=1e-4)


def test_only_the_volume_decides_the_sample(tmp_path):
    """A volume larger than the sample: the same voxels each time, from all over it, near the true numbers."""
    ramp = np.linspace(0, 60000, 64 * 64 * 64).astype(np.uint16).reshape(1, 64, 64, 64)
    volume = volume_of(tmp_path, ramp)
    rule = NormalisationRule()
    sampled = measure(volume, rule, sample=64**3 // 8)
    assert sampled == measure(volume, rule, sample=64**3 // 8)
    exact = plainly(ramp, NormalisationRule(low=1, high=99))
    assert sampled.offset[0] == pytest.approx(exact.offset[0], abs=3000)
    assert sampled.spread[0] == pytest.approx(exact.spread[0], rel=0.1)
    # Of one chunk only, and never of no chunk at all.
    assert measure(volume, rule, sample=1).spread[0] > 0


@pytest.mark.parametrize("rule", ["percentiles", "mean_std"])
def test_a_huge_chunk_is_counted_in_parts(rule, tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 60000, (1, 1, 1000, 1024)).astype(np.uint16)
    write_array(tmp_path / "v.zarr", image, axes="czyx", chunks=image.shape)
    volume = Volume.open(str(tmp_path / "v.zarr"))
    whole = measure(volume, NormalisationRule(rule=rule))
    monkeypatch.setattr(normalisation, "_PIECE", 2**14)
    tracemalloc.start()
    in_parts = measure(volume, NormalisationRule(rule=rule))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    numbers = [[*scale.offset, *scale.spread] for scale in (in_parts, whole)]
    np.testing.assert_allclose(*numbers, rtol=1e-12)
    assert peak < 4 * image.nbytes  # of which half is for reading the chunk; 16 bytes a voxel were 8 times


def test_channels_are_measured_apart_and_in_the_order_asked_for(tmp_path):
    image = np.stack([np.full((4, 4, 4), v, np.uint8) for v in (10, 20, 30)])
    volume = volume_of(tmp_path, image, channels=(2, 0))
    assert measure(volume, NormalisationRule()).offset == (30.0, 10.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_place(value, tmp_path):
    image = np.zeros((2, 9, 10, 11), np.float32)
    image[1, 3, 5, 7] = value
    volume = volume_of(tmp_path, image)
    with pytest.raises(InputError, match="NaN or infinite") as refused:
        measure(volume, NormalisationRule())
    assert "z, y, x = (3, 5, 7), channel 1" in refused.value.where
    assert refused.value.found == str(np.float32(value))
    box = Box((2, 4, 6), (5, 6, 9))
    with pytest.raises(DataError) as failed:
        require_finite(volume.read(box), box, volume, error=DataError)
    assert failed.value.where == refused.value.where
    assert failed.value.exit_code == 1
    require_finite(volume.read(Box((0, 0, 0), (3, 10, 11))), volume.box, volume, error=DataError)


def test_a_mirrored_nan_is_named_where_it_lies_in_the_box(tmp_path):
    image = np.zeros((1, 4, 4, 4), np.float32)
    image[0, 1, 0, 0] = np.nan
    volume = volume_of(tmp_path, image)
    box = Box((-2, 0, 0), (1, 4, 4))
    with pytest.raises(DataError) as failed:
        require_finite(volume.read(box), box, volume, error=DataError)
    # What the person must mend is the voxel itself, not its mirror image at z = -1.
    assert "z, y, x = (1, 0, 0)" in failed.value.where


@given(seed=SEEDS, dtype=st.sampled_from(["bool", "uint8", "uint16", "int16", "uint32", "float32", "f8"]))
def test_every_voxel_is_scaled_by_the_same_arithmetic(seed, dtype):
    rng = np.random.default_rng(seed)
    data = (rng.random((2, 4, 5, 6)) * 100).astype(dtype)
    scale = Scale((10.0, -5.0), (50.0, 0.25))
    scaled = scale.apply(data)
    assert scaled.dtype == np.float32
    offset, spread = (np.reshape(v, (2, 1, 1, 1)) for v in (scale.offset, scale.spread))
    expected = (data.astype(np.float64) - offset) / spread
    np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-5)
    box = (slice(None), slice(1, 3), slice(0, 4), slice(2, 3))
    assert scale.apply(data[box]).tobytes() == np.ascontiguousarray(scaled[box]).tobytes()
    before = data.copy()
    scale.apply(data)
    np.testing.assert_array_equal(data, before)


def test_scales_survive_json():
    scale = Scale((1.5, 2.0), (3.0, 4.25))
    assert Scale.from_dict(scale.to_dict()) == scale


@pytest.mark.parametrize(
    "values",
    [{"rule": "tile"}, {"low": 50, "high": 50}, {"low": -1}, {"high": 101}, {"low": 99, "high": 1}],
)
def test_unknown_rules_are_refused(values):
    with pytest.raises(InputError, match="not known"):
        NormalisationRule(**values)


@pytest.mark.parametrize(("dtype", "hot"), [("i4", 2**31 - 1), ("f4", 3e38), ("f8", 1e300)])
def test_a_hot_voxel_does_not_flatten_the_scale(tmp_path: Path, dtype: str, hot: float) -> None:
    data = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(dtype)
    expected = np.percentile(data, [1, 99])
    data[3, 3, 3] = hot
    zarr.create_array(tmp_path / "hot.zarr", data=data, chunks=(10, 10, 10))
    scale = measure(Volume.open(str(tmp_path / "hot.zarr")), NormalisationRule())
    assert scale.offset[0] == pytest.approx(expected[0], abs=1)
    assert scale.spread[0] == pytest.approx(expected[1] - expected[0], abs=2)
