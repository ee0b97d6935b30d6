"""Every transform keeps labels on their voxels, with the network's own context, and reads what it needs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from math import lcm, prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from strategies import SEEDS, network_specs

from unet_core.architecture import UNetSpec
from unet_core.augment import AugmentSettings, Spatial
from unet_core.augment.spatial import Turn, Warp
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.tiling import Footprint

NONE = AugmentSettings.none()
EXACT = replace(NONE, flips=True, rotations=True)
NARROW = Footprint(stride=(1, 1, 1), lower=(2, 2, 2), upper=(3, 3, 3))
FLAT = Footprint(stride=(1, 1, 1), lower=(0, 3, 3), upper=(0, 2, 2))


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """Outside of Hypothesis, which traces what it calls: compiling took it a minute."""
    view = spatial(replace(NONE, deformed=1.0, elastic=1.0)).draw(np.random.default_rng(0))
    placed = view.place(Box.of_shape((8, 8, 8)))
    placed.image(position_coded(placed.image_box))
    placed.labels(np.zeros(placed.label_box.shape, np.uint8))


def spatial(chosen: AugmentSettings, *, footprint=NARROW, patch=(8, 8, 8), voxel_size=(1.0,) * 3) -> Spatial:
    return Spatial(settings=chosen, footprint=footprint, patch=patch, voxel_size=voxel_size)


def position_coded(box: Box) -> np.ndarray:
    """(3, z, y, x): every voxel holds its own z, y, x, counted from the volume's origin."""
    return (np.indices(box.shape) + np.reshape(box.lower, (3, 1, 1, 1))).astype(np.float32)


@st.composite
def spatials(draw: st.DrawFn) -> Spatial:
    """Networks with one-sided slack ("nearest", poolings of 3) among them; patches and voxels of any kind."""
    spec = draw(network_specs(cost=1e7))
    footprint = Footprint.of(spec)
    multiple = draw(st.tuples(*[st.integers(1, 2)] * 3))
    patch = tuple(s * k for s, k in zip(footprint.stride, multiple))
    if draw(st.booleans()):  # axes that may be exchanged, also those with another context
        patch = (lcm(*footprint.stride),) * 3
    if spec.ndim == 2:
        patch = (1, *patch[1:])
    assume(prod(n + a + b for n, a, b in zip(patch, footprint.lower, footprint.upper)) <= 2**15)
    voxel_size = draw(st.sampled_from([(1.0, 1.0, 1.0), (2.18, 1.0, 1.0), (1.0, 2.0, 3.0), (1.0, 1.0, 4.0)]))
    chosen = AugmentSettings(
        flips=draw(st.booleans()),
        rotations=draw(st.booleans()),
        deformed=draw(st.sampled_from([0.0, 1.0])),
        rotation=draw(st.sampled_from([0.0, 45.0, 180.0])),
        scaling=draw(st.sampled_from([0.0, 0.3])),
        elastic=draw(st.sampled_from([0.0, 2.0, 10.0])),
        elastic_grid=draw(st.integers(2, 5)),
    )
    return spatial(chosen, footprint=footprint, patch=patch, voxel_size=voxel_size)


@settings(max_examples=30)
@given(drawn_from=spatials(), seed=SEEDS, corner=st.tuples(*[st.integers(-50, 50)] * 3))
def test_class_voxel_lies_on_image_voxel_plus_lower_context(drawn_from, seed, corner):
    box = Box(corner, tuple(c + n for c, n in zip(corner, drawn_from.patch)))
    transform = drawn_from.draw(np.random.default_rng(seed))
    view = transform.place(box)
    lower, upper = drawn_from.footprint.lower, drawn_from.footprint.upper
    image = view.image(position_coded(view.image_box))
    assert image.shape == (3, *(n + a + b for n, a, b in zip(drawn_from.patch, lower, upper)))
    assert image.flags.c_contiguous
    assert image.dtype == np.float32
    inside = image[(slice(None), *(slice(a, a + n) for a, n in zip(lower, drawn_from.patch)))]
    for axis, positions in enumerate(position_coded(view.label_box)):
        linear = view.labels(positions, linear=True)
        np.testing.assert_allclose(linear, inside[axis], atol=1e-4)
        nearest = view.labels((positions - view.label_box.lower[axis]).astype(np.uint8))
        away = np.abs(nearest.astype(np.float32) + view.label_box.lower[axis] - inside[axis])
        assert nearest.shape == drawn_from.patch
        assert away.max() <= (0 if isinstance(transform, Turn) else 0.5 + 1e-4)


@settings(max_examples=30)
@given(drawn_from=spatials(), seed=SEEDS)
def test_warped_places_are_those_of_a_brute_force(drawn_from, seed):
    """Matrix, and scipy's mirrored cubic spline through the grid's nodes; what is read has them all."""
    transform = drawn_from.draw(np.random.default_rng(seed))
    if not isinstance(transform, Warp):
        return
    box = Box((-3, 5, 7), tuple(c + n for c, n in zip((-3, 5, 7), drawn_from.patch)))
    view = transform.place(box)
    shape = tuple(
        n + a + b for n, a, b in zip(drawn_from.patch, drawn_from.footprint.lower, drawn_from.footprint.upper)
    )
    vectors = transform.elastic.vectors
    at_nodes = [p * (g - 1) / max(n - 1, 1) for p, g, n in zip(np.indices(shape), vectors.shape[1:], shape)]
    displacement = [map_coordinates(v, at_nodes, order=3, mode="mirror") for v in vectors]
    middle = np.array(drawn_from.footprint.lower) + (np.array(drawn_from.patch) - 1) / 2
    steps = np.indices(shape) - middle.reshape(3, 1, 1, 1)
    centre = (np.array(box.lower) + box.upper - 1) / 2
    places = np.tensordot(transform.matrix, steps, axes=1) + centre.reshape(3, 1, 1, 1) + displacement
    np.testing.assert_allclose(view.image(position_coded(view.image_box)), places, atol=2e-4)

    noise = np.random.default_rng(seed).random((2, *view.image_box.shape), np.float32)
    judged = places - np.reshape(view.image_box.lower, (3, 1, 1, 1))
    expected = [map_coordinates(c, judged, order=1, mode="nearest", prefilter=False) for c in noise]
    np.testing.assert_allclose(view.image(noise), expected, atol=1e-3)


@settings(max_examples=30)
@given(drawn_from=spatials(), seed=SEEDS)
def test_reads_and_displacements_are_bounded_beforehand(drawn_from, seed):
    transform = drawn_from.draw(np.random.default_rng(seed))
    box = Box.of_shape(drawn_from.patch)
    view = transform.place(box, [n // 3 for n in drawn_from.patch])
    assert all(n <= most for n, most in zip(view.image_box.shape, drawn_from.largest_read))
    assert view.image_box.contains(view.label_box)
    if isinstance(transform, Warp):
        finest = min((drawn_from.voxel_size[axis] for axis in drawn_from.moving), default=1.0)
        reach = 3 * drawn_from.settings.elastic * finest / np.array(drawn_from.voxel_size)
        moved = transform.elastic.on([np.arange(len(spline)) for spline in transform.elastic.splines])
        assert (np.abs(moved).max(axis=(1, 2, 3)) <= reach + 1e-9).all()


@settings(max_examples=30)
@given(drawn_from=spatials(), seed=SEEDS, at=st.tuples(*[st.integers(0, 10**6)] * 3))
def test_the_voxel_that_a_patch_is_placed_on_stays_in_it(drawn_from, seed, at):
    box = Box((5, -6, 7), tuple(c + n for c, n in zip((5, -6, 7), drawn_from.patch)))
    voxel = [a + i % n for a, i, n in zip(box.lower, at, box.shape)]
    view = drawn_from.draw(np.random.default_rng(seed)).place(box, voxel)
    labels = np.zeros(view.label_box.shape, np.uint8)
    labels[tuple(v - a for v, a in zip(voxel, view.label_box.lower))] = 1
    assert view.labels(labels).any()


@settings(max_examples=30)
@given(drawn_from=spatials())
def test_every_orientation_leaves_neighbours_neighbours(drawn_from):
    box = Box.of_shape(drawn_from.patch)
    for orientation in drawn_from.orientations:
        view = Turn(orientation, drawn_from.footprint).place(box)
        turned = view.image(position_coded(view.image_box))
        for axis in range(3):
            steps = np.diff(turned, axis=axis + 1)
            assert (np.abs(steps).sum(axis=0) == 1).all()  # one voxel along exactly one axis
            for before in {int(i) for i in np.abs(steps).argmax(axis=0).ravel()}:
                assert drawn_from.voxel_size[axis] == drawn_from.voxel_size[before]


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
    ],
)
def test_number_of_orientations(voxel_size, patch, flips, rotations, expected):
    """All those of a box with such symmetries, none twice, and all of them are drawn."""
    chosen = replace(NONE, flips=flips, rotations=rotations)
    footprint = FLAT if patch[0] == 1 else NARROW
    drawn_from = spatial(chosen, footprint=footprint, patch=patch, voxel_size=voxel_size)
    assert len(drawn_from.orientations) == expected
    rng = np.random.default_rng(0)
    views = [drawn_from.draw(rng).place(Box.of_shape(patch)) for _ in range(12 * expected)]
    assert len({view.image(position_coded(view.image_box)).tobytes() for view in views}) == expected


def test_anisotropic_context_under_rotation():
    """Kernels 1x3x3 at first, but cubic voxels: z has less context than the axes it changes places with."""
    spec = UNetSpec.build(ndim=3, depth=1, base=2, anisotropic_levels=1)
    footprint = Footprint.of(spec)
    assert footprint.lower[0] < footprint.lower[1]
    drawn_from = spatial(EXACT, footprint=footprint, patch=(6, 6, 6))
    for seed in range(40):
        view = drawn_from.draw(np.random.default_rng(seed)).place(Box.of_shape((6, 6, 6)))
        assert view.image(position_coded(view.image_box)).shape[1:] == spec.read_shape((6, 6, 6))


@pytest.mark.parametrize("footprint", [NARROW, FLAT])
def test_rotation_and_scaling_keep_shapes(footprint):
    """No shear: neighbours stay at one distance, at right angles; every angle asked for is drawn."""
    patch = (1, 8, 8) if footprint is FLAT else (8, 8, 8)
    chosen = replace(NONE, deformed=1.0, rotation=30.0, scaling=0.25)
    drawn_from = spatial(chosen, footprint=footprint, patch=patch)
    sizes, angles = [], []
    for seed in range(200):
        transform = drawn_from.draw(np.random.default_rng(seed))
        moving = list(drawn_from.moving)
        steps = transform.matrix[np.ix_(moving, moving)]
        size = np.sqrt((steps**2).sum(axis=0))
        np.testing.assert_allclose(steps.T @ steps, np.eye(len(moving)) * size[0] ** 2, atol=1e-9)
        cosine = (np.trace(steps) / size[0] - (len(moving) - 2)) / 2
        sizes.append(size[0])
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    assert 0.8 <= min(sizes) < 0.85
    assert 1.2 < max(sizes) <= 1.25
    assert 28 < max(angles) <= 30 + 1e-9


def test_thick_sections_stay_planes():
    """Nothing moves across sections 4 times as thick as fine; at 2.18 it does, by fewer voxels along z."""
    chosen = replace(NONE, flips=True, rotations=True, deformed=1.0, rotation=45.0, scaling=0.2, elastic=4.0)
    lengths = []
    for thickness in (4.0, 2.18):
        drawn_from = spatial(chosen, patch=(16, 32, 32), voxel_size=(thickness, 1.0, 1.0))
        view = drawn_from.draw(np.random.default_rng(3)).place(Box.of_shape((16, 32, 32)))
        heights = view.image(position_coded(view.image_box))[0]
        if thickness == 4.0:
            assert (heights == heights[:, :1, :1]).all()
            assert (np.abs(np.diff(heights[:, 0, 0])) == 1).all()
        else:
            assert np.ptp(heights[8]) > 0.5
        vectors = [drawn_from.grid.draw(np.random.default_rng(s)).vectors for s in range(200)]
        lengths.append(np.std(vectors, axis=(0, 2, 3, 4)))
    np.testing.assert_array_equal(lengths[0][0], 0)
    np.testing.assert_allclose(lengths[1][1] / lengths[1][0], 2.18, rtol=0.05)


def test_elastic_grid_is_the_papers():
    """3 x 3 nodes over all that the network reads (572 squared), standard deviation 10."""
    paper = Footprint(stride=(1, 16, 16), lower=(0, 92, 92), upper=(0, 92, 92))
    drawn_from = spatial(replace(NONE, deformed=1.0, elastic=10.0), footprint=paper, patch=(1, 388, 388))
    drawn = [drawn_from.grid.draw(np.random.default_rng(s)) for s in range(300)]
    vectors = np.array([elastic.vectors for elastic in drawn])
    assert vectors.shape[1:] == (3, 1, 3, 3)
    assert vectors[:, 1:].std() == pytest.approx(10, rel=0.05)
    assert np.abs(vectors[:, 1:].mean()) < 0.6
    assert not vectors[:, 0].any()
    first = drawn[0]
    for corner, node in (((0, 0, 0), (0, 0)), ((0, 571, 0), (2, 0)), ((0, 571, 571), (2, 2))):
        np.testing.assert_allclose(first.at(corner), first.vectors[:, 0, *node], atol=1e-9)


def test_near_nodes_move_less_far():
    """An eighth of their distance (3D U-Net: 4 voxels at 32), so that small patches do not fold."""
    # 33 voxels are read: nodes are 16 apart
    drawn_from = spatial(replace(NONE, deformed=1.0, elastic=10.0), patch=(28, 28, 28))
    assert drawn_from.grid.nodes == (3, 3, 3)
    assert drawn_from.grid.deviation == (2.0, 2.0, 2.0)
    thin = spatial(replace(NONE, deformed=1.0, elastic=1.0), patch=(4, 60, 60))  # 9 x 65 x 65 read
    assert thin.grid.nodes == (1, 3, 3)
    assert thin.grid.deviation == (1.0, 1.0, 1.0)


def test_share_of_deformed_patches():
    drawn_from = spatial(AugmentSettings(deformed=0.3))
    warped = [isinstance(drawn_from.draw(np.random.default_rng(s)), Warp) for s in range(1000)]
    assert np.mean(warped) == pytest.approx(0.3, abs=0.045)  # 3 standard deviations
    still = spatial(replace(NONE, deformed=1.0))
    assert isinstance(still.draw(np.random.default_rng(0)), Turn)  # nothing to deform by: the exact path


def test_nothing_is_changed_by_none():
    drawn_from = spatial(NONE)
    view = drawn_from.draw(np.random.default_rng(0)).place(Box.of_shape((8, 8, 8)))
    assert view.image_box == Box((-2, -2, -2), (11, 11, 11))
    data = position_coded(view.image_box)
    np.testing.assert_array_equal(view.image(data), data)


@pytest.mark.parametrize(
    ("name", "value"),
    [("noise", -0.1), ("deformed", 1.5), ("rotation", 181), ("elastic_grid", 1), ("missing_slices", 1.0),
     ("blur", float("nan"))],
)  # fmt: skip
def test_strengths_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=name):
        AugmentSettings(**{name: value})


def test_settings_are_plain_data():
    chosen = AugmentSettings(elastic=3.0, hue=10.0)
    assert AugmentSettings(**json.loads(json.dumps(asdict(chosen)))) == chosen
