"""Every orientation keeps labels on their voxels, with the network's own context on each side."""

from __future__ import annotations

from math import lcm

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, network_specs

from unet_core.architecture import UNetSpec
from unet_core.augment import Augmentation, AugmentSettings, common_voxel_size
from unet_core.errors import InputError
from unet_core.tiling import Footprint

STILL = AugmentSettings(flips=False, rotations=False, brightness=0, contrast=0, noise=0)
GEOMETRY = AugmentSettings(brightness=0, contrast=0, noise=0)


def position_coded(augmentation: Augmentation) -> tuple[np.ndarray, np.ndarray]:
    """Image channels hold their voxel's z, y, x in the patch; so do three label volumes."""
    shape = tuple(n + 2 * m for n, m in zip(augmentation.patch, augmentation.margin))
    image = np.indices(shape).astype(np.float32)
    image -= np.reshape(augmentation.margin, (3, 1, 1, 1))
    return image, np.indices(augmentation.patch).astype(np.uint8)


@st.composite
def augmentations(draw: st.DrawFn) -> Augmentation:
    """Networks with one-sided slack ("nearest", poolings of 3) among them; patches and voxels of any kind."""
    spec = draw(network_specs())
    footprint = Footprint.of(spec)
    multiple = draw(st.tuples(*[st.integers(1, 2)] * 3))
    patch = tuple(s * k for s, k in zip(footprint.stride, multiple))
    if draw(st.booleans()):  # axes that may be exchanged, also those with another context
        patch = (lcm(*footprint.stride),) * 3
    if spec.ndim == 2:
        patch = (1, *patch[1:])
    voxel_size = draw(st.sampled_from([(1.0, 1.0, 1.0), (2.18, 1.0, 1.0), (1.0, 2.0, 3.0), (1.0, 1.0, 4.0)]))
    chosen = AugmentSettings(
        flips=draw(st.booleans()), rotations=draw(st.booleans()), brightness=0, contrast=0, noise=0
    )
    return Augmentation(settings=chosen, footprint=footprint, patch=patch, voxel_size=voxel_size)


@settings(max_examples=60)
@given(augmentation=augmentations(), seed=SEEDS)
def test_class_voxel_lies_on_image_voxel_plus_lower_context(augmentation, seed):
    image, positions = position_coded(augmentation)
    lower, upper = augmentation.footprint.lower, augmentation.footprint.upper
    inside = tuple(slice(a, a + n) for a, n in zip(lower, augmentation.patch))
    for axis in range(3):
        # The same seed draws the same orientation for each of the three label volumes.
        turned, classes = augmentation.apply(image, positions[axis], np.random.default_rng(seed))
        expected_shape = tuple(n + a + b for n, a, b in zip(augmentation.patch, lower, upper))
        assert turned.shape == (3, *expected_shape)
        np.testing.assert_array_equal(turned[(axis, *inside)], classes)


@settings(max_examples=30)
@given(augmentation=augmentations())
def test_every_orientation_leaves_neighbours_neighbours(augmentation):
    image, _ = position_coded(augmentation)
    for turn in augmentation.orientations:
        turned = augmentation.crop(turn.turn(image))
        for axis in range(3):
            steps = np.diff(turned, axis=axis + 1)
            moved = np.abs(steps).sum(axis=0)
            assert (moved == 1).all()  # one voxel along exactly one axis
            source = {int(i) for i in np.abs(steps).argmax(axis=0).ravel()}
            for axis_before in source:
                assert augmentation.voxel_size[axis] == augmentation.voxel_size[axis_before]


@pytest.mark.parametrize(
    ("voxel_size", "patch", "flips", "rotations", "expected"),
    [
        ((1.0, 1.0, 1.0), (8, 8, 8), True, True, 48),
        ((1.0, 1.0, 1.0), (8, 8, 8), False, True, 24),
        ((1.0, 1.0, 1.0), (8, 8, 8), True, False, 8),
        ((4.0, 1.0, 1.0), (8, 8, 8), True, True, 16),
        ((4.0, 1.0, 1.0), (8, 8, 8), False, True, 4),
        ((1.0, 1.0, 1.0), (8, 8, 16), True, True, 16),
        ((1.0, 1.0, 1.0), (1, 8, 8), True, True, 8),
        ((1.0, 1.0, 1.0), (1, 8, 8), False, True, 4),
        ((3.0, 2.0, 1.0), (8, 8, 8), False, True, 1),
        ((1.0, 1.0, 1.0), (8, 8, 8), False, False, 1),
    ],
)
def test_number_of_orientations(voxel_size, patch, flips, rotations, expected):
    augmentation = Augmentation(
        settings=AugmentSettings(flips=flips, rotations=rotations),
        footprint=Footprint(stride=(1, 1, 1), lower=(0, 2, 2), upper=(0, 2, 2)),
        patch=patch,
        voxel_size=voxel_size,
    )
    image, _ = position_coded(augmentation)
    if patch[1] == patch[2] or not rotations:
        distinct = {turn.turn(image).tobytes() for turn in augmentation.orientations}
        assert len(distinct) == expected
    assert len(augmentation.orientations) == expected


def test_the_margin_covers_the_wider_context_of_exchangeable_axes():
    spec = UNetSpec.build(ndim=3, depth=2, base=2, upsampling="nearest")
    lower, upper = spec.context
    assert lower != upper
    augmentation = Augmentation(
        settings=GEOMETRY, footprint=Footprint.of(spec), patch=(8, 8, 8), voxel_size=(1.0,) * 3
    )
    assert augmentation.margin == (max(*lower, *upper),) * 3


def test_anisotropic_context_under_rotation():
    """Kernels 1x3x3 at first, but cubic voxels: z has less context than the axes it changes places with."""
    spec = UNetSpec.build(ndim=3, depth=1, base=2, anisotropic_levels=1)
    augmentation = Augmentation(
        settings=GEOMETRY, footprint=Footprint.of(spec), patch=(6, 6, 6), voxel_size=(1.0,) * 3
    )
    assert augmentation.footprint.lower[0] < augmentation.footprint.lower[1]
    image, positions = position_coded(augmentation)
    inside = tuple(slice(a, a + 6) for a in augmentation.footprint.lower)
    for seed in range(40):
        turned, classes = augmentation.apply(image, positions[0], np.random.default_rng(seed))
        assert turned.shape[1:] == spec.read_shape((6, 6, 6))
        np.testing.assert_array_equal(turned[(0, *inside)], classes)


def test_all_orientations_are_drawn():
    augmentation = Augmentation(
        settings=GEOMETRY,
        footprint=Footprint(stride=(1, 1, 1), lower=(1, 1, 1), upper=(2, 2, 2)),
        patch=(3, 3, 3),
        voxel_size=(1.0,) * 3,
    )
    image, positions = position_coded(augmentation)
    rng = np.random.default_rng(0)
    seen = {augmentation.apply(image, positions[0], rng)[0].tobytes() for _ in range(500)}
    assert len(seen) == 48


def test_intensity_changes_are_small_and_leave_geometry_alone():
    still = Augmentation(
        settings=STILL,
        footprint=Footprint(stride=(1, 1, 1), lower=(2, 2, 2), upper=(3, 3, 3)),
        patch=(6, 6, 6),
        voxel_size=(1.0,) * 3,
    )
    image = np.random.default_rng(1).random((1, 12, 12, 12), np.float32)
    kept, _ = still.apply(image, np.zeros((6, 6, 6), np.uint8), np.random.default_rng(0))
    np.testing.assert_allclose(kept, still.crop(image), atol=1e-6)
    jitter = Augmentation(
        settings=AugmentSettings(flips=False, rotations=False, brightness=0.1, contrast=0.2, noise=0.05),
        footprint=still.footprint,
        patch=still.patch,
        voxel_size=still.voxel_size,
    )
    changes = []
    for seed in range(50):
        changed, _ = jitter.apply(image, np.zeros((6, 6, 6), np.uint8), np.random.default_rng(seed))
        difference = changed - kept
        # brightness + half the range times the contrast + five standard deviations of the noise
        assert np.abs(difference).max() < 0.1 + 0.1 + 0.25
        changes.append(float(difference.mean()))
    assert np.std(changes) > 0.02


def test_voxel_sizes_agree_in_proportion_or_nothing_turns():
    assert common_voxel_size([(4.0, 4.0, 4.0), (8.0, 8.0, 8.0)]) == (1.0, 1.0, 1.0)
    assert common_voxel_size([(50.0, 4.0, 4.0)]) == (12.5, 1.0, 1.0)
    mixed = common_voxel_size([(50.0, 4.0, 4.0), (4.0, 4.0, 4.0)])
    assert len(set(mixed)) == 3


def test_strengths_out_of_range_are_refused():
    with pytest.raises(InputError, match="noise"):
        AugmentSettings(noise=-0.1)
