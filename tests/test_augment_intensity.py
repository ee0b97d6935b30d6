"""Intensities change as asked, and only they; the same random numbers change them alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2hsv
from strategies import SEEDS

from unet_core.augment import AugmentSettings, recolour

NONE = AugmentSettings.none()
CUBIC = (1.0, 1.0, 1.0)


def noise(channels: int = 1, shape: tuple[int, ...] = (5, 12, 13), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, *shape), np.float32)


def changed(image: np.ndarray, chosen: AugmentSettings, seed: int = 0, voxel_size=CUBIC) -> np.ndarray:
    return recolour(image.copy(), chosen, np.random.default_rng(seed), voxel_size=voxel_size)


@given(seed=SEEDS, channels=st.integers(1, 4), depth=st.sampled_from([1, 5]))
def test_shape_type_and_repetition(seed, channels, depth):
    chosen = AugmentSettings(blur=1.0, saturation=0.5, hue=90.0, missing_slices=0.3, shifted_slices=0.3)
    image = noise(channels, (depth, 12, 13))
    result = changed(image, chosen, seed)
    assert result.shape == image.shape
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(changed(image, chosen, seed), result)
    np.testing.assert_array_equal(changed(image, NONE, seed), image)


def test_brightness_contrast_and_noise_are_small():
    chosen = replace(NONE, brightness=0.1, contrast=0.2, noise=0.05)
    image = noise()
    means = []
    for seed in range(50):
        difference = changed(image, chosen, seed) - image
        # brightness, half the range times the contrast, five standard deviations of the noise
        assert np.abs(difference).max() < 0.1 + 0.1 + 0.25
        means.append(float(difference.mean()))
    assert np.std(means) > 0.02


@given(seed=SEEDS)
def test_gamma_keeps_range_and_order(seed):
    image = noise() * 3 - 1
    result = changed(image, replace(NONE, gamma=0.5), seed)
    np.testing.assert_allclose([result.min(), result.max()], [image.min(), image.max()], atol=1e-5)
    assert (np.diff(result.ravel()[np.argsort(image.ravel(), kind="stable")]) >= 0).all()
    flat = np.full_like(image, 0.3)
    np.testing.assert_array_equal(changed(flat, replace(NONE, gamma=0.5), seed), flat)


def test_gamma_is_an_exponent_of_the_range():
    image = np.linspace(2, 6, 101, dtype=np.float32).reshape(1, 1, 1, -1)
    exponents = []
    for seed in range(60):
        share = (changed(image, replace(NONE, gamma=0.5), seed)[0, 0, 0] - 2) / 4
        exponents.append(np.log(share[50]) / np.log(0.5))
        np.testing.assert_allclose(share, np.linspace(0, 1, 101) ** exponents[-1], atol=1e-5)
    assert 1 / 1.5 - 1e-3 <= min(exponents) < 0.75
    assert 1.35 < max(exponents) <= 1.5 + 1e-3


def test_blur_spreads_alike_in_space_and_keeps_the_sum():
    """A point becomes as wide in z as in x, in units of length: 2 and 4 voxels; one patch in five."""
    point = np.zeros((1, 41, 61, 61), np.float32)
    point[0, 20, 30, 30] = 1
    chosen = replace(NONE, blur=4.0)
    results = [changed(point, chosen, seed, (2.0, 1.0, 1.0)) for seed in range(60)]
    blurred = [result for result in results if (result != point).any()]
    assert 4 <= len(blurred) <= 21  # 3 standard deviations
    for result in blurred:
        assert result.sum() == pytest.approx(1, abs=1e-3)
        along = [
            (result[0].sum(axis=tuple({0, 1, 2} - {axis})) * (np.arange(n) - n // 2) ** 2).sum()
            for axis, n in enumerate((41, 61, 61))
        ]
        if along[0] > 0.5:  # narrower ones are no Gaussians on this grid
            assert np.sqrt(along[1] / along[0]) == pytest.approx(2, rel=0.1)
    plane = changed(point[:, 20:21], chosen, 0, (0.1, 1.0, 1.0))  # a plane's own thickness says nothing
    assert plane.shape == (1, 1, 61, 61)


@given(seed=SEEDS)
def test_colours_turn_and_greys_stay(seed):
    chosen = replace(NONE, saturation=0.5, hue=60.0)
    grey = np.repeat(noise(1), 3, axis=0)
    np.testing.assert_allclose(changed(grey, chosen, seed), grey, atol=1e-5)
    image = noise(3)
    result = changed(image, chosen, seed)
    np.testing.assert_allclose(result.mean(axis=0), image.mean(axis=0), atol=1e-5)
    for channels in (1, 2, 4):  # not red, green and blue
        np.testing.assert_array_equal(changed(noise(channels), chosen, seed), noise(channels))


def test_hue_turns_as_in_hsv():
    """Red keeps its distance from grey, and skimage finds its hue all around the circle."""
    red = np.zeros((3, 1, 1, 1), np.float32)
    red[0] = 1
    turned = []
    for seed in range(100):
        result = changed(red, replace(NONE, hue=180.0), seed)[:, 0, 0, 0]
        assert np.linalg.norm(result - result.mean()) == pytest.approx(np.sqrt(2 / 3), rel=1e-5)
        turned.append(360 * float(rgb2hsv(result[None, None] / 4 + 0.5)[0, 0, 0]))
    assert np.histogram(turned, 6, (0, 360))[0].min() >= 5


def test_missing_slices_are_filled_and_never_in_2d():
    image = noise(2, (400, 6, 7))
    chosen = replace(NONE, missing_slices=0.2)
    result = changed(image, chosen)
    lost = np.flatnonzero((result != image).any(axis=(0, 2, 3)))
    assert len(lost) == pytest.approx(80, abs=24)  # 3 standard deviations
    constant = 0
    for z in lost:
        mean = (image[:, max(z - 1, 0)] + image[:, min(z + 1, 399)]) / 2
        if np.ptp(result[:, z]) == 0:
            constant += 1
            assert 0 <= result[0, z, 0, 0] <= 1
        else:
            np.testing.assert_allclose(result[:, z], mean, atol=1e-6)
    assert 0.3 < constant / len(lost) < 0.7
    plane = noise(1, (1, 6, 7))
    strong = replace(NONE, missing_slices=0.9, shifted_slices=0.9)
    for seed in range(5):
        np.testing.assert_array_equal(changed(plane, strong, seed), plane)


def test_shifted_slices_are_displaced_by_whole_voxels():
    """Position-coded in y and x: a shifted plane holds one offset, and its edge is repeated."""
    image = np.indices((300, 30, 30))[1:].astype(np.float32)
    result = changed(image, replace(NONE, shifted_slices=0.2), voxel_size=(10.0, 1.0, 2.0))
    shifted = np.flatnonzero((result != image).any(axis=(0, 2, 3)))
    assert len(shifted) == pytest.approx(60, abs=21)
    for z in shifted:
        dy, dx = result[:, z, 15, 15] - 15
        assert abs(dy) <= 8
        assert abs(dx) <= 4  # the same distance in space
        places = np.indices((30, 30)) + np.reshape([dy, dx], (2, 1, 1))
        np.testing.assert_array_equal(result[:, z], places.clip(0, 29))
