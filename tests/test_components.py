"""Components block by block are those of the whole volume, ids included: skimage and scipy are the judges."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box
from unet_core.instances import union_find
from unet_core.instances.blocking import Blocking, Connectivity
from unet_core.instances.evidence import pack, unpack
from unet_core.instances.foreground import by_class, by_threshold
from unet_core.instances.in_memory import label_components


def whole(values: NDArray[Any], connectivity: Connectivity, planar: bool = False) -> NDArray[Any]:
    """skimage on the whole array, squeezed: it numbers (z, y, 1) alone in another order."""
    if planar:
        planes = [whole(plane[None], connectivity) for plane in values]
        before = np.cumsum([0, *(plane.max(initial=0) for plane in planes)])
        return np.concatenate([np.where(p > 0, p + b, 0) for p, b in zip(planes, before)])
    squeezed = np.atleast_1d(np.squeeze(values))
    ndim = squeezed.ndim
    return label(squeezed, connectivity=1 if connectivity == "face" else ndim).reshape(values.shape)


def filled(values: NDArray[np.uint8], connectivity: Connectivity, planar: bool = False) -> NDArray[np.uint8]:
    """Holes by scipy: background that reaches no face and has one value around it."""
    if planar or values.shape[0] == 1:
        return np.stack([_filled(plane, connectivity) for plane in values])
    return _filled(values, connectivity)


def _filled(values: NDArray[np.uint8], connectivity: Connectivity) -> NDArray[np.uint8]:
    ndim = values.ndim
    structure = ndimage.generate_binary_structure(ndim, ndim if connectivity == "face" else 1)
    regions, count = ndimage.label(np.pad(values == 0, 1, constant_values=True), structure)
    padded, result = np.pad(values, 1), values.copy()
    for region in range(1, count + 1):
        inside = regions == region
        around = np.unique(padded[ndimage.binary_dilation(inside) & ~inside])
        if not inside.flat[0] and len(around) == 1:
            result[inside[(slice(1, -1),) * ndim]] = around[0]
    return result


@st.composite
def masks(draw: st.DrawFn) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Values of up to three classes, dense or sparse, some of them planes; and a block, down to one voxel."""
    shape = (draw(st.sampled_from([1, 2, 5, 7])), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(1, draw(st.integers(1, 3)) + 1, shape)
    kept = rng.random(shape) < draw(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]))
    return (values * kept).astype(np.uint8), tuple(draw(st.integers(1, n + 1)) for n in shape)


CONNECTIVITY = st.sampled_from(["face", "full"])


@settings(max_examples=60)
@given(masks(), CONNECTIVITY, st.booleans())
def test_equals_skimage_on_the_whole(
    drawn: tuple[NDArray[np.uint8], tuple[int, ...]], connectivity: Connectivity, planar: bool
) -> None:
    values, block = drawn
    found = label_components(values, block=block, connectivity=connectivity, planar=planar)
    np.testing.assert_array_equal(found, whole(values, connectivity, planar))


@settings(max_examples=60)
@given(masks(), CONNECTIVITY, st.booleans(), st.integers(1, 6))
def test_holes_then_components_then_the_smallest_size(
    drawn: tuple[NDArray[np.uint8], tuple[int, ...]], connectivity: Connectivity, planar: bool, least: int
) -> None:
    values, block = drawn
    planar = planar or values.shape[0] == 1
    found = label_components(
        values, block=block, connectivity=connectivity, planar=planar, fill_holes=True, min_size=least
    )
    expected = whole(filled(values, connectivity, planar), connectivity, planar)
    kept = np.bincount(expected.ravel()) >= least
    kept[0] = False
    np.testing.assert_array_equal(found, np.where(kept, np.cumsum(kept), 0)[expected])


def spiral(side: int) -> NDArray[np.uint8]:
    """One voxel wide, from the edge to the middle, one voxel apart from itself."""
    mask = np.zeros((side, side), np.uint8)
    y, x, dy, dx = 0, 0, 0, 1
    mask[y, x] = 1
    for length in [side - 1, *(n for n in range(side - 1, 0, -2) for _ in (0, 1))]:
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = 1
        dy, dx = dx, -dy
    return mask


@pytest.mark.parametrize("block", [(1, 1, 1), (1, 4, 3), (3, 1, 64), (2, 5, 5)])
def test_a_spiral_through_many_blocks_is_one_object(block: tuple[int, ...]) -> None:
    flat = spiral(17)
    assert whole(flat[None], "face").max() == 1, "the arms do not touch"
    volume = np.zeros((5, 17, 17), np.uint8)
    volume[::2] = flat
    volume[1, 8, 8] = volume[3, 0, 0] = flat[8, 8]  # down the middle, then back at the rim
    volume[1, 0, 16] = 1  # a second way down changes nothing
    found = label_components(volume, block=block)
    np.testing.assert_array_equal(found, whole(volume, "face"))


def test_objects_that_meet_in_a_corner_or_an_edge_of_blocks() -> None:
    for step in ((1, 1, 1), (1, 1, -1), (1, -1, 1), (1, -1, -1), (0, 1, -1), (1, -1, 0), (1, 0, -1)):
        values = np.zeros((8, 8, 8), np.uint8)
        here = np.array([3 if s >= 0 else 4 for s in step])
        values[tuple(here)] = values[tuple(here + step)] = 1
        assert label_components(values, block=(4, 4, 4), connectivity="full").max() == 1, step
        assert label_components(values, block=(4, 4, 4), connectivity="face").max() == 2, step


def test_whole_foreground_and_none() -> None:
    full = np.ones((6, 7, 8), np.uint8)
    assert (label_components(full, block=(2, 3, 3)) == 1).all()
    assert not label_components(full * np.uint8(0), block=(2, 3, 3), fill_holes=True).any()


def test_blocks_that_start_inside_the_roi() -> None:
    """The grid is anchored at the origin; an ROI cuts its first cells."""
    blocking = Blocking(volume=(9, 9, 9), roi=Box((1, 5, 2), (9, 9, 8)), block=(4, 4, 4))
    boxes = [blocking.box(i) for i in range(len(blocking))]
    assert sum(box.size for box in boxes) == blocking.roi.size
    for index, box in enumerate(boxes):
        for _, there in blocking.lower_neighbours(index, "full"):
            assert there < index
            assert box.grow((1,) * 3, (1,) * 3).intersect(boxes[there])


def test_foreground_by_class_and_by_threshold() -> None:
    classes = np.array([[[0, 1, 2, 3]]], np.uint8)
    np.testing.assert_array_equal(by_class(classes, (0, 2)), [[[1, 0, 3, 0]]])
    probabilities = np.array([[0, 100, 127], [128, 128, 64], [127, 128, 64]], np.uint8)[:, None, None]
    np.testing.assert_array_equal(by_threshold(probabilities, (1, 2), 0.5), [[[2, 2, 0]]])
    np.testing.assert_array_equal(by_threshold(probabilities, (2,), 0.5), [[[0, 3, 0]]])
    np.testing.assert_array_equal(by_threshold(probabilities, (2, 1), 0.5), [[[2, 3, 0]]])


def test_evidence_comes_back_and_damage_is_found() -> None:
    arrays = {"a b": np.arange(5, dtype=np.uint64), "empty": np.zeros((0, 2), np.uint8)}
    data = pack(arrays)
    found = unpack(data)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    with pytest.raises(DataError, match="damaged"):
        unpack(data[:-1] + bytes([data[-1] ^ 1]), where="evidence/a/000000/0")


def test_a_block_whose_labels_would_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="smaller --block"):
        Blocking(volume=(2048,) * 3, roi=Box.of_shape((2048,) * 3), block=(2048,) * 3)


def test_sets_are_found_with_more_nodes_than_32_bits_count() -> None:
    found = []
    for kind in (union_find._kind(2**32 - 1), union_find._kind(2**32)):
        parents = np.arange(7, dtype=kind)
        union_find.unite(parents, np.array([5, 1, 3]), np.array([2, 5, 6]))
        found.append((parents.dtype.itemsize, union_find.number(parents), parents.tolist()))
    assert found == [(4, 4, [0, 1, 1, 2, 3, 1, 2]), (8, 4, [0, 1, 1, 2, 3, 1, 2])]


def test_many_classes_are_decided_in_a_few_bytes_a_voxel() -> None:
    """Beside the probabilities themselves; argmax alone takes eight."""
    probabilities = np.random.default_rng(0).integers(0, 256, (10, 32, 64, 64)).astype(np.uint8)
    tracemalloc.start()
    by_threshold(probabilities, range(1, 10), 0.3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 7 * probabilities[0].size
