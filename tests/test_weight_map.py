"""The border weight map is the paper's formula, whatever the shape, the voxel size and the crop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from strategies import SEEDS, boxes_within

from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.targets import MARGIN, objects_of
from unet_core.weight_map import BorderWeight

CUBES, THICK_SLICES = (1.0, 1.0, 1.0), (50.0, 4.6, 4.6)
EDGES = st.floats(0.2, 3.0)


def by_hand(ids: np.ndarray, voxel_size, weight: BorderWeight, *, planar: bool = False) -> np.ndarray:
    """One distance transform per object of each image, by scipy."""
    if planar:
        flat = (np.inf, *voxel_size[1:])
        return np.concatenate([by_hand(plane[None], flat, weight) for plane in ids])
    edges = np.array(voxel_size) / min(voxel_size)
    objects = [k for k in np.unique(ids) if k]
    if len(objects) < 2:
        return np.zeros(ids.shape)
    if np.isinf(edges[0]):  # one plane: any finite edge will do
        edges[0] = 1.0
    distances = [distance_transform_edt(ids != k, sampling=edges) for k in objects]
    both = np.sort(distances, axis=0)[:2].sum(axis=0)
    term = weight.w0 * np.exp(-(both**2) / (2 * weight.sigma**2))
    return np.where((ids == 0) & (both <= 6 * weight.sigma), term, 0)


def scattered(shape: tuple[int, ...], seed: int, share: float, most: int) -> np.ndarray:
    """Objects of single voxels and crumbs: as many ties and swaps of the nearest two as there can be."""
    rng = np.random.default_rng(seed)
    ids = np.where(rng.random(shape) < share, rng.integers(1, most + 1, shape), 0)
    lower = [int(rng.integers(0, n)) for n in shape]
    ids[tuple(slice(a, a + 4) for a in lower)] = most + 1
    return ids


@st.composite
def images(draw: st.DrawFn):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 18), st.integers(1, 18)))
    share, most = draw(st.sampled_from([0.002, 0.02, 0.3])), draw(st.sampled_from([2, 20]))
    ids = scattered(shape, draw(SEEDS), share, most)
    voxel_size = draw(st.just(CUBES) | st.just(THICK_SLICES) | st.tuples(EDGES, EDGES, EDGES))
    weight = BorderWeight(w0=draw(st.floats(0, 20)), sigma=draw(st.sampled_from([0.4, 1.3, 5.0])))
    return ids, voxel_size, weight, draw(st.booleans())


@given(image=images(), dtype=st.sampled_from([np.uint8, np.int16, np.uint64]))
def test_the_map_is_the_papers_formula(image, dtype):
    ids, voxel_size, weight, planar = image
    found = weight.of(ids.astype(dtype), voxel_size, planar=planar)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(ids, voxel_size, weight, planar=planar), rtol=1e-6, atol=1e-6)


@given(image=images(), data=st.data())
def test_a_crop_with_its_reach_has_the_values_of_the_whole(image, data):
    """To the bit, though the crop holds other objects, gives them other numbers and counts from elsewhere."""
    ids, voxel_size, weight, planar = image
    box = data.draw(boxes_within(ids.shape), label="box")
    reach = weight.reach(voxel_size, planar=planar)
    around = box.grow(reach, reach).intersect(Box.of_shape(ids.shape))
    within = box.relative_to(around.lower)
    whole = weight.of(ids, voxel_size, planar=planar)[box.slices]
    crop = ids[around.slices]
    np.testing.assert_array_equal(weight.of(crop, voxel_size, planar=planar)[within.slices], whole)
    np.testing.assert_array_equal(weight.of(crop, voxel_size, planar=planar, within=within), whole)


def test_the_reach_is_in_voxels_of_each_axis():
    assert BorderWeight().reach(CUBES) == (30, 30, 30)
    assert BorderWeight().reach((0.05, 0.01, 0.01)) == (6, 30, 30)
    assert BorderWeight(sigma=2.0).reach((0.05, 0.02, 0.01), planar=True) == (0, 6, 12)


def test_values_of_a_gap_between_two_objects():
    """Three voxels between: distances 1 + 3, 2 + 2 and 3 + 1. Beside a lone object: nothing."""
    ids = np.array([0, 7, 7, 0, 0, 0, 2**40, 2**40], np.int64).reshape(1, 1, 8)
    at_four = 10 * np.exp(-16 / 50)
    expected = [10 * np.exp(-49 / 50), 0, 0, at_four, at_four, at_four, 0, 0]
    np.testing.assert_allclose(BorderWeight().of(ids, CUBES)[0, 0], expected, rtol=1e-6)
    assert not BorderWeight().of(np.minimum(ids, 1), CUBES).any()


def test_the_nearest_object_may_be_nearer_in_another_line():
    """In its own line the pair is too far apart for a border; the line beside holds the first one nearer."""
    ids = np.zeros((1, 2, 41), np.uint8)
    ids[0, 0, 8], ids[0, 0, 40] = 1, 2
    ids[0, 1, 20] = 1
    found = BorderWeight().of(ids, CUBES)
    assert found[0, 0, 20] == pytest.approx(10 * np.exp(-((1 + 20) ** 2) / 50))


@pytest.mark.parametrize(
    ("options", "says"), [({"w0": -1.0}, "w0"), ({"sigma": 0.0}, "sigma"), ({"sigma": np.inf}, "sigma")]
)
def test_weights_that_are_none_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        BorderWeight(**options)


def test_the_map_of_real_cells(shared_data):
    """DIC-HeLa, the images of the paper's figure 3: high in the gaps that "separated" makes between cells."""
    path = shared_data / "ctc_dic_c2dh_hela" / "seq01.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    with np.load(path) as data:
        labels = data["gt"][11][None]
    padded = np.pad(labels, MARGIN, mode="edge")
    ids = objects_of(padded, "separated", planar=True)
    weight = BorderWeight()
    found = weight.of(ids, CUBES, planar=True)
    np.testing.assert_allclose(found, by_hand(ids, CUBES, weight, planar=True), rtol=1e-6, atol=1e-6)
    gaps = (labels > 0) & (ids == 0)
    assert gaps.sum() > 1000
    assert np.median(found[gaps]) == pytest.approx(10 * np.exp(-9 / 50))  # distances 1 and 2
    assert np.median(found[labels == 0]) < 0.1
