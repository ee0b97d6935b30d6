"""Watershed: blocks change nothing, and what comes out is what the plain algorithm gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from strategies import SEEDS

from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, Shape
from unet_core.instances import kinds
from unet_core.instances.evidence import InMemory
from unet_core.instances.watershed import Criterion, HeightMap
from unet_core.instances.watershed.basins import neighbours
from unet_core.instances.watershed.distance import bounded_distance
from unet_core.instances.watershed.heights import UNIT, reach, squared_edges
from unet_core.instances.watershed.in_memory import label_basins

NONE = Criterion()


def pieces(heights: np.ndarray, criterion: Criterion, **options: Any) -> tuple[np.ndarray, int]:
    """Ids, and how many labels the blocks left to be merged."""
    evidence = InMemory()
    ids = label_basins(heights, criterion, evidence=evidence, **options)
    return ids, sum(len(a["peak"]) for (kind, _), a in evidence.kept.items() if kind == kinds.OBJECTS)


@st.composite
def maps(draw: st.DrawFn) -> np.ndarray:
    """Heights: noise, plateaus, smooth hills; with and without background; planes and volumes."""
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3) | st.tuples(st.just(1), *[st.integers(1, 20)] * 2))
    rng = np.random.default_rng(draw(SEEDS))
    heights = rng.integers(0, draw(st.sampled_from([2, 4, 30, 65536])), shape).astype(np.uint16)
    if draw(st.booleans()):
        heights = ndimage.uniform_filter(heights, 3)
    if draw(st.booleans()):
        heights[rng.random(shape) < 0.3] = 0
    return heights


CRITERIA = st.builds(
    Criterion,
    persistence=st.sampled_from([0, 0.1, 0.4]),
    prominence=st.sampled_from([0, 0.2]),
    depth=st.sampled_from([0, 0, 2]),
)


def blocks_of(shape: Shape) -> st.SearchStrategy[Shape]:
    """Any block, but no more than 40 of them in all."""
    some = st.tuples(*[st.integers(1, n) for n in shape])
    return some.filter(lambda block: len(Grid(Box.of_shape(shape), block)) <= 40)


@given(heights=maps(), criterion=CRITERIA, data=st.data())
@settings(max_examples=60)
def test_blocks_change_nothing(heights: np.ndarray, criterion: Criterion, data: st.DataObject) -> None:
    """Any blocks, one voxel thick ones too; simplified or not; edges sorted in memory or in many runs."""
    options = {
        "connectivity": data.draw(st.sampled_from(["face", "full"])),
        "planar": data.draw(st.booleans()),
        "min_size": data.draw(st.sampled_from([1, 4])),
    }
    block = data.draw(blocks_of(heights.shape))
    fine = criterion.finer(data.draw(st.sampled_from([1, 2])))
    whole, most = pieces(heights, criterion, simplification=NONE, **options)
    simplified, fewer = pieces(heights, criterion, simplification=fine, **options)
    memory = data.draw(st.sampled_from([400, 2**24]))
    found, _ = pieces(heights, criterion, simplification=fine, block=block, memory=memory, **options)
    np.testing.assert_array_equal(simplified, whole)
    np.testing.assert_array_equal(found, whole)
    assert fewer <= most


@given(heights=maps(), criterion=CRITERIA, full=st.booleans())
@settings(max_examples=25)
def test_it_is_the_plain_algorithm(heights: np.ndarray, criterion: Criterion, full: bool) -> None:
    """Against a dozen lines that follow the definition voxel pair by voxel pair."""
    found = label_basins(heights, criterion, connectivity="full" if full else "face")
    np.testing.assert_array_equal(found, plain(heights, criterion, full=full))


def plain(heights: np.ndarray, criterion: Criterion, *, full: bool) -> np.ndarray:
    flat = heights.ravel()
    steps = [
        (k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1) for k in np.flatnonzero(neighbours(full=full, planar=False))
    ]

    def around(at: int) -> list[tuple[int, int]]:
        place = np.unravel_index(at, heights.shape)
        there = [tuple(p + s for p, s in zip(place, step)) for step in steps]
        return [
            (int(np.ravel_multi_index(t, heights.shape)), 9 * s[0] + 3 * s[1] + s[2] + 13)
            for t, s in zip(there, steps)
            if all(0 <= i < n for i, n in zip(t, heights.shape)) and heights[t]
        ]

    def order(at: int) -> tuple[int, int]:
        return int(flat[at]), at

    inside = [int(i) for i in np.flatnonzero(flat)]
    basin: dict[int, int] = {}
    for at in sorted(inside, key=order, reverse=True):
        best = max([at, *(other for other, _ in around(at))], key=order)
        basin[at] = at if best == at else basin[best]
    pairs = [(*order(u), d, u, v) for u in inside for v, d in around(u) if order(u) < order(v)]
    for height, _, _, u, v in sorted(pairs, reverse=True):
        high, low = sorted((basin[u], basin[v]), key=order, reverse=True)
        share = max(criterion.persistence * int(flat[low]), criterion.prominence * int(flat[high]))
        if int(flat[low]) - height <= max(criterion.depth, share):
            basin = {at: high if peak == low else peak for at, peak in basin.items()}
    numbers = {peak: n for n, peak in enumerate(dict.fromkeys(basin[at] for at in inside), 1)}
    found = np.zeros(heights.size, np.uint64)
    found[inside] = [numbers[basin[at]] for at in inside]
    return found.reshape(heights.shape)


def test_noise_is_simplified_away_inside_blocks() -> None:
    """What is left of a noisy map for the merging to see lies along the blocks' faces."""
    rng = np.random.default_rng(0)
    heights = (1000 + rng.integers(0, 100, (48, 48, 48))).astype(np.uint16)
    criterion = Criterion(persistence=0.2)
    expected, all_of_them = pieces(heights, criterion, simplification=NONE, block=(24, 24, 24))
    found, left = pieces(heights, criterion, block=(24, 24, 24))
    np.testing.assert_array_equal(found, expected)
    assert found.max() == 1
    assert 3 * left < 2 * all_of_them
    assert pieces(heights, criterion)[1] == 1


def test_small_objects_join_the_neighbour_behind_the_best_saddle() -> None:
    heights = np.array([9, 1, 5, 4, 9, 9, 0, 7, 0], np.uint16).reshape(1, 1, -1)
    criterion = Criterion(persistence=0.1)
    assert label_basins(heights, criterion).ravel().tolist() == [1, 1, 2, 3, 3, 3, 0, 4, 0]
    small = label_basins(heights, criterion, block=(1, 1, 2), min_size=2)
    assert small.ravel().tolist() == [1, 1, 2, 2, 2, 2, 0, 0, 0]  # and 7 has no neighbour


def test_a_bump_of_a_large_object_is_none_but_a_small_object_is() -> None:
    """The saddle is 3 below the lower peak, both times; the higher peak is 40, or as low."""
    heights = np.array([[1, 40, 7, 10, 2], [1, 10, 7, 10, 2]], np.uint16).reshape(2, 1, -1)
    criterion = Criterion(persistence=0.1, prominence=0.1)
    found = label_basins(heights, criterion, planar=True)
    assert found[:, 0].tolist() == [[1] * 5, [2, 2, 3, 3, 3]]


@given(
    seed=SEEDS,
    shape=st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)),
    voxel_size=st.sampled_from([(1, 1, 1), (2.18, 1, 1), (1, 0.3, 0.45)]),
    radius=st.integers(1, 6),
    data=st.data(),
)
@settings(max_examples=40)
def test_distance_is_scipys_and_the_same_in_every_crop(
    seed: int, shape: Shape, voxel_size: tuple[float, ...], radius: int, data: st.DataObject
) -> None:
    inside = np.random.default_rng(seed).random(shape) < 0.9
    squares = squared_edges(voxel_size)
    found = bounded_distance(inside, squares, radius)
    exact = np.full(shape, np.inf)
    if not inside.all():
        exact = ndimage.distance_transform_edt(inside, sampling=np.sqrt(np.array(squares) / UNIT))
    np.testing.assert_array_equal(found, np.minimum(np.rint(exact**2 * UNIT), UNIT * radius**2))

    low = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    box = Box(low, tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(low, shape)))
    halo = reach(radius, voxel_size)
    around = box.grow(halo, halo).intersect(Box.of_shape(shape))
    crop = bounded_distance(inside[around.slices], squares, radius, within=box.relative_to(around.lower))
    np.testing.assert_array_equal(crop, found[box.slices])


@given(seed=SEEDS, planar=st.booleans(), radius=st.integers(1, 5), data=st.data())
@settings(max_examples=15)
def test_heights_are_the_same_in_every_crop(
    seed: int, planar: bool, radius: int, data: st.DataObject
) -> None:
    shape = (6, 14, 13)
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    inside = np.rint(255 / (1 + np.exp(-8 * smooth / smooth.std()))).astype(np.uint8)
    heights = HeightMap(levels=(77, 128, 179), radius=radius, voxel_size=(2.18, 1, 1), planar=planar)
    mask = inside >= 128
    whole = heights.of(inside, mask)
    low = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    box = Box(low, tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(low, shape)))
    around = box.grow(heights.reach, heights.reach).intersect(Box.of_shape(shape))
    crop = heights.of(inside[around.slices], mask[around.slices], box.relative_to(around.lower))
    np.testing.assert_array_equal(crop, whole[box.slices])
    np.testing.assert_array_equal(whole > 0, mask)


BAD: list[tuple[Any, dict[str, Any]]] = [
    (Criterion, {"persistence": 1.2}),
    (Criterion, {"prominence": float("nan")}),
    (Criterion, {"depth": -1}),
    (HeightMap, {"levels": (), "radius": 3, "voxel_size": (1, 1, 1)}),
    (HeightMap, {"levels": (0,), "radius": 3, "voxel_size": (1, 1, 1)}),
    (HeightMap, {"levels": (1,), "radius": 5000, "voxel_size": (1, 1, 1)}),
]


@pytest.mark.parametrize(("kind", "values"), BAD)
def test_numbers_that_make_no_sense_are_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        kind(**values)
