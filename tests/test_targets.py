"""Classes from labels: equal to skimage on the whole volume, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation
from skimage.segmentation import find_boundaries

from unet_core.errors import InputError
from unet_core.geometry import Box, Grid
from unet_core.targets import DERIVED, IGNORE, MARGIN, class_names, classes_of, objects_of

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
SEEDS = st.integers(0, 2**32 - 1)
DRAWN_AROUND = st.sampled_from(["boundary", "separated", "interior-boundary"])


def random_ids(shape: tuple[int, ...], seed: int, ids: int = 3) -> np.ndarray:
    """Blobs rather than noise: neighbours often agree, so that both classes occur."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, ids, tuple(-(-n // 3) for n in shape))
    for axis, n in enumerate(shape):
        coarse = np.repeat(coarse, 3, axis=axis).take(range(n), axis=axis)
    return np.where(rng.random(shape) < 0.05, rng.integers(0, ids, shape), coarse).astype(np.uint16)


def with_margin(labels: np.ndarray) -> np.ndarray:
    """As `Volume.read` mirrors: numpy's reflect, an axis of one voxel repeats it."""
    for axis, n in enumerate(labels.shape):
        pad = [(0, 0)] * 3
        pad[axis] = (MARGIN, MARGIN)
        labels = np.pad(labels, pad, mode="reflect" if n > 1 else "edge")
    return labels


def expected_of(target: str, labels: np.ndarray) -> np.ndarray:
    """What skimage and scipy find on the whole volume."""
    boundary = find_boundaries(labels, mode="thick", connectivity=1)
    if target == "boundary":
        return boundary
    if target == "interior-boundary":
        return np.where(labels == 0, 0, np.where(boundary, 2, 1))
    touching = np.zeros(labels.shape, bool)
    for k in np.unique(labels[labels > 0]):
        others = (labels > 0) & (labels != k)
        touching |= (labels == k) & binary_dilation(others)
    return (labels > 0) & ~touching


@settings(max_examples=90, deadline=None)
@given(shape=SHAPES, seed=SEEDS, cell=SHAPES, target=DRAWN_AROUND)
def test_classes_of_blocks_equal_skimage_on_the_whole(shape, seed, cell, target):
    labels = random_ids(shape, seed)
    padded = with_margin(labels)
    found = np.full(shape, 9, np.uint8)
    objects = np.full(shape, 9, np.uint16)
    for box in Grid(Box.of_shape(shape), cell):
        box = box.intersect(Box.of_shape(shape))
        around = box.grow((0,) * 3, (2 * MARGIN,) * 3)
        found[box.slices] = classes_of(padded[around.slices], target)
        objects[box.slices] = objects_of(padded[around.slices], target)
    expected = expected_of(target, labels)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(objects, labels * expected if target == "separated" else labels)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=SEEDS, target=DRAWN_AROUND)
def test_planar_classes_are_those_of_each_plane(shape, seed, target):
    labels = random_ids(shape, seed)
    expected = np.stack([expected_of(target, plane) for plane in labels])
    np.testing.assert_array_equal(classes_of(with_margin(labels), target, planar=True), expected)


def test_thin_zero_lines_are_boundary_and_wide_background_is_not():
    labels = np.zeros((1, 1, 12), np.uint8)
    labels[0, 0] = [1, 1, 0, 2, 2, 2, 0, 0, 0, 0, 3, 3]
    found = classes_of(with_margin(labels), "boundary")
    assert found[0, 0].tolist() == [0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0]


def test_separated_objects_keep_their_outline_against_background():
    labels = np.zeros((1, 1, 12), np.uint8)
    labels[0, 0] = [1, 1, 1, 2, 2, 2, 0, 3, 4, 4, 0, 0]
    found = classes_of(with_margin(labels), "separated")
    assert found[0, 0].tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("foreground", [0, 0, 1, 1, 1]),
        ("separated", [0, 0, 0, 0, 1]),
        ("interior-boundary", [0, 0, 2, 2, 1]),
    ],
)
def test_objects_are_the_positive_ids_also_of_signed_labels(target, expected):
    labels = np.array([0, 0, 1, 120, 120], np.int8).reshape(1, 1, 5)
    assert classes_of(with_margin(labels), target)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("semantic", [1, 1, IGNORE, 2, 2]),
        ("foreground", [1, 1, IGNORE, 1, 1]),
        ("boundary", [0, 0, IGNORE, 0, 0]),
        ("separated", [1, 1, IGNORE, 1, 1]),
        ("interior-boundary", [1, 1, IGNORE, 1, 1]),
    ],
)
def test_unlabelled_voxels_are_ignored_and_make_no_boundary(target, expected):
    labels = np.array([1, 1, 999, 2, 2], np.int32).reshape(1, 1, 5)
    assert classes_of(with_margin(labels), target, ignore=999)[0, 0].tolist() == expected


@pytest.mark.parametrize("target", sorted(DERIVED))
def test_unlabelled_voxels_are_no_objects(target):
    labels = np.array([1, 1, 999, 2, 2], np.int32).reshape(1, 1, 5)
    assert objects_of(with_margin(labels), target, ignore=999)[0, 0].tolist() == [1, 1, 0, 2, 2]


def test_classes_are_not_objects():
    with pytest.raises(InputError, match='"semantic" knows no objects'):
        objects_of(np.zeros((3, 3, 3), np.uint8), "semantic")


def test_semantic_labels_are_the_classes():
    labels = random_ids((4, 5, 6), 1, ids=5)
    np.testing.assert_array_equal(classes_of(with_margin(labels), "semantic"), labels)


@pytest.mark.parametrize(
    ("labels", "target", "says"),
    [
        (np.full((3, 3, 3), 255, np.uint8), "semantic", "0 to 254"),
        (np.full((3, 3, 3), -1, np.int16), "semantic", "below 0"),
        (np.zeros((3, 3, 3), np.float32), "boundary", "integers"),
        (np.zeros((3, 3, 3), np.uint8), "interior", "not known"),
    ],
)
def test_bad_labels_are_refused(labels, target, says):
    with pytest.raises(InputError, match=says):
        classes_of(labels, target)


def test_class_names():
    assert class_names("boundary", 2) == ("interior", "boundary")
    assert class_names("semantic", 3) == ("background", "class 1", "class 2")
    assert class_names("interior-boundary", 3) == ("background", "interior", "boundary")
    with pytest.raises(InputError, match="two classes"):
        class_names("separated", 3)
    with pytest.raises(InputError, match="three classes"):
        class_names("interior-boundary", 2)


@pytest.mark.parametrize("target", ["semantic", *DERIVED])
def test_numbers_below_zero_are_marks_to_ignore_or_refused(target):
    """As background they would teach the network, silently, what nobody labelled."""
    labels = np.full((5, 5, 5), 1, np.int16)
    labels[2, 2, 2] = -1
    with pytest.raises(InputError, match="below 0") as refused:
        classes_of(labels, target)
    assert "ignore = -1" in str(refused.value)
    classes = classes_of(labels, target, ignore=-1)
    assert classes[1, 1, 1] == IGNORE
    labels[3, 3, 3] = -2
    with pytest.raises(InputError, match="-2"):
        classes_of(labels, target, ignore=-1)
