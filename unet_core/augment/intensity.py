"""Changes of intensity: what another dye, lamp, focus, camera or microtome would have made of the same scene.

Intensities are normalised: about 0 to 1. Labels never change here. The order is that of their causes: colour,
focus, brightness, sections, camera noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, exp, log1p, radians, sin, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from unet_core.augment.settings import AugmentSettings

_BLURRED = 0.2  # share of patches: blur costs most, and most images are in focus. nnU-Net's share.
_SLIP = 8.0  # a displaced section's largest distance, in units of the finest voxel edge


def recolour(
    image: NDArray[np.float32],
    settings: AugmentSettings,
    rng: np.random.Generator,
    *,
    voxel_size: Sequence[float],
) -> NDArray[np.float32]:
    """Change intensities of (channel, z, y, x), in place or not; returns them, contiguous.

    `voxel_size`: z, y, x, in any unit: only their proportions count. What leaves float32's range becomes
    infinite, without a warning: the loss then stops the training, and names the patch.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _recolour(image, settings, rng, voxel_size)


def _recolour(
    image: NDArray[np.float32],
    settings: AugmentSettings,
    rng: np.random.Generator,
    voxel_size: Sequence[float],
) -> NDArray[np.float32]:
    finest = [size / min(voxel_size[-2:] if image.shape[1] == 1 else voxel_size) for size in voxel_size]
    if len(image) == 3 and (settings.saturation or settings.hue):
        image = _colour(image, settings, rng)
    if settings.blur and rng.random() < _BLURRED:
        deviation = rng.uniform(0, settings.blur)
        _blur(image, [0.0 if n == 1 else deviation / size for n, size in zip(image.shape[1:], finest)])
    if settings.gamma:
        _gamma(image, exp(rng.uniform(-log1p(settings.gamma), log1p(settings.gamma))))
    if settings.brightness or settings.contrast:
        shift = np.float32(rng.uniform(-settings.brightness, settings.brightness))
        factor = np.float32(1 + rng.uniform(-settings.contrast, settings.contrast))
        image *= factor
        image += np.float32(0.5) * (1 - factor) + shift
    if image.shape[1] > 1:
        _shift_slices(image, settings.shifted_slices, rng, finest)
        _lose_slices(image, settings.missing_slices, rng)
    if settings.noise:
        _noise(image, np.float32(rng.uniform(0, settings.noise)), rng)
    return np.ascontiguousarray(image)


def _colour(
    image: NDArray[np.float32], settings: AugmentSettings, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Turn colours about the grey axis (Rodrigues' rotation about 1, 1, 1) and draw them to or from it; greys
    stay. It is linear, so also right beyond 0 and 1."""
    angle = radians(rng.uniform(-settings.hue, settings.hue))
    factor = 1 + rng.uniform(-settings.saturation, settings.saturation)
    grey = np.full((3, 3), 1 / 3)
    turn = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / sqrt(3)
    matrix = grey + factor * (cos(angle) * (np.eye(3) - grey) + sin(angle) * turn)
    flat = image.reshape(3, -1)
    result: NDArray[np.float32] = (matrix.astype(np.float32) @ flat).reshape(image.shape)
    return result


def _blur(image: NDArray[np.float32], deviation: Sequence[float]) -> None:
    for channel in image:
        gaussian_filter(channel, deviation, output=channel, mode="nearest", truncate=3.0)


def _gamma(image: NDArray[np.float32], exponent: float) -> None:
    """x ** exponent, on the range that the patch has: no intensity leaves it."""
    low, high = image.min(), image.max()
    if high > low:
        image -= low
        image /= high - low
        np.clip(image, 0, 1, out=image)
        np.power(image, np.float32(exponent), out=image)
        image *= high - low
        image += low


def _shift_slices(
    image: NDArray[np.float32], share: float, rng: np.random.Generator, finest: Sequence[float]
) -> None:
    """Displace planes by whole voxels; at the edges the outermost voxels are repeated."""
    for z in np.flatnonzero(rng.random(image.shape[1]) < share).tolist():
        plane = image[:, z]
        for axis in (1, 2):
            most = round(_SLIP / finest[axis])
            places = np.arange(plane.shape[axis]) + int(rng.integers(-most, most + 1))
            plane = np.take(plane, places, axis=axis, mode="clip")
        image[:, z] = plane


def _lose_slices(image: NDArray[np.float32], share: float, rng: np.random.Generator) -> None:
    """Replace planes by their neighbours' mean, as aligned stacks fill a gap, or by one grey value."""
    lost = np.flatnonzero(rng.random(image.shape[1]) < share).tolist()
    fillings: list[NDArray[np.float32]] = []
    for z in lost:  # from planes as they were, also where neighbours are lost, too
        if rng.random() < 0.5:
            fillings.append(image[:, [max(z - 1, 0), min(z + 1, image.shape[1] - 1)]].mean(axis=1))
        else:
            fillings.append(np.full_like(image[:, z], rng.random()))
    for z, filling in zip(lost, fillings):
        image[:, z] = filling


def _noise(image: NDArray[np.float32], deviation: np.float32, rng: np.random.Generator) -> None:
    # Philox, which gives every patch a stream of its own, is slow at millions of numbers: it seeds another.
    bulk = np.random.Generator(np.random.SFC64(int(rng.integers(2**63))))
    noise = bulk.standard_normal(image.shape, np.float32)
    noise *= deviation
    image += noise
