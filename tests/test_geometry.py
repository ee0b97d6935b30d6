"""Boxes, grids and mirrored axes against the plain way of saying the same with numpy and lists."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import boxes

from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, ceil_div, mirrored, mirrored_span, round_up
from unet_core.volumes.volume import mirrored_indices

CELLS = st.tuples(*[st.integers(1, 9)] * 3)


def voxels(box: Box) -> set[tuple[int, ...]]:
    axes = np.meshgrid(*(range(a, b) for a, b in zip(box.lower, box.upper)), indexing="ij")
    return set(zip(*(axis.ravel().tolist() for axis in axes)))


@given(st.integers(-1000, 1000), st.integers(1, 50))
def test_rounding(a, b):
    assert b * ceil_div(a, b) >= a > b * (ceil_div(a, b) - 1)
    assert round_up(a, b) % b == 0
    assert 0 <= round_up(a, b) - a < b


@given(boxes(), boxes())
def test_intersection_is_that_of_the_voxels(a, b):
    assert voxels(a.intersect(b)) == voxels(a) & voxels(b)
    assert bool(a.intersect(b)) == bool(voxels(a) & voxels(b))
    assert a.contains(b) == (voxels(a) >= voxels(b))


@given(boxes(), st.tuples(*[st.integers(-9, 9)] * 3), st.tuples(*[st.integers(0, 5)] * 3))
def test_moving_and_growing(box, offset, margin):
    assert box.size == len(voxels(box))
    assert box.shift(offset).relative_to(offset) == box
    grown = box.grow(margin, tuple(m + 1 for m in margin))
    assert grown.shape == tuple(n + 2 * m + 1 for n, m in zip(box.shape, margin))
    assert grown.contains(box)
    assert box.relative_to(grown.lower).lower == margin


@given(boxes(), CELLS)
def test_coarsening_covers_and_is_the_smallest_that_does(box, factors):
    coarse = box.coarsen(factors)
    assert voxels(coarse) == {tuple(v // f for v, f in zip(voxel, factors)) for voxel in voxels(box)}
    assert coarse.refine(factors).contains(box)
    assert coarse.refine(factors).coarsen(factors) == coarse


@given(boxes())
def test_boxes_are_read_as_they_are_written(box):
    assert Box.parse(str(box)) == box
    if min(box.lower) >= 0:
        assert np.zeros(box.upper)[box.slices].shape == box.shape


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0:4,0:4", None),
        ("1:2,3:4,5:6", None),
        ("", "not a box"),
        ("0:4,4", "not a box"),
        ("0:4,a:b", "not a box"),
        ("0:4:2,0:4", "not a box"),
        ("0:4,5:5", "empty"),
        ("4:0,0:5", "empty"),
    ],
)
def test_parsing(text, says):
    if says is None:
        assert str(Box.parse(text)) == text
        return
    with pytest.raises(InputError, match=says) as refused:
        Box.parse(text)
    assert refused.value.found == repr(text)


@pytest.mark.parametrize(("lower", "upper"), [((0, 0), (1,)), ((0, 3), (1, 2))])
def test_impossible_boxes_are_refused(lower, upper):
    with pytest.raises(InputError, match="lower <= upper"):
        Box(lower, upper)


@given(boxes(longest=10), CELLS)
def test_a_grid_covers_its_extent_exactly_once(extent, cell):
    grid = Grid(extent, cell)
    cells = list(grid)
    inside = [voxel for box in cells for voxel in voxels(box.intersect(extent))]
    assert len(inside) == len(set(inside))
    assert set(inside) == voxels(extent)
    assert all(box.intersect(extent) for box in cells), "a cell that does not meet the extent"


@given(boxes(longest=10), CELLS)
def test_a_grid_is_anchored_at_the_origin_and_indexed_in_raster_order(extent, cell):
    grid = Grid(extent, cell)
    cells = list(grid)
    assert len(grid) == len(cells) == np.prod(grid.counts)
    # Box by box: pytest's comparison of two long lists that differ takes all of the memory there is.
    assert all(grid[index] == box for index, box in enumerate(cells))
    assert all(a < b for a, b in pairwise(cells))
    for box in cells:
        assert box.shape == cell
        assert all(a % c == 0 for a, c in zip(box.lower, cell))
    for wrong in (-1, len(grid)):
        with pytest.raises(IndexError):
            grid[wrong]


def test_a_grid_of_an_empty_extent_has_no_cells():
    grid = Grid(Box((5, 5), (5, 9)), (2, 2))
    assert len(grid) == 0
    assert list(grid) == []


def test_a_huge_grid_costs_nothing():
    grid = Grid(Box.of_shape((10**5, 10**5, 10**5)), (100, 200, 300))
    assert len(grid) == 1000 * 500 * 334
    assert grid[len(grid) - 1] == Box((99900, 99800, 99900), (100000, 100000, 100200))


@given(boxes(longest=10), CELLS, st.integers(1, 30))
def test_spread_cells_are_some_of_the_grid_in_its_order(extent, cell, count):
    grid = Grid(extent, cell)
    found = list(grid.spread(count))
    assert len(found) == min(count, len(grid))
    assert all(a < b for a, b in pairwise(found))
    assert set(found) <= set(grid)


@pytest.mark.parametrize("shape", [(1024, 1024, 1024), (512, 1024, 2048), (1000, 1000, 1000)])
@pytest.mark.parametrize("count", [100, 128, 256])
def test_spread_cells_lie_on_no_face_of_the_grid(shape, count):
    """Every 16th cell of a grid 16 cells wide would be one column of it."""
    found = list(Grid(Box.of_shape(shape), (64, 64, 64)).spread(count))
    for axis, length in enumerate(shape):
        middles = [(box.lower[axis] + 32) / length for box in found]
        assert np.histogram(middles, 4, (0, 1))[0].min() > count // 8


@pytest.mark.parametrize("cell", [(2,), (2, 0), (2, -1), (1, 1, 1)])
def test_impossible_grids_are_refused(cell):
    with pytest.raises(InputError, match="positive cell size"):
        Grid(Box.of_shape((4, 4)), cell)


@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 60))
def test_mirroring_is_that_of_numpy_pad(length, before, after):
    expected = np.pad(np.arange(length), (before, after), mode="reflect")
    assert [mirrored(p, length) for p in range(-before, length + after)] == expected.tolist()
    assert mirrored_indices(-before, length + after, length).tolist() == expected.tolist()


@given(st.integers(1, 12), st.integers(-40, 40), st.integers(0, 60))
def test_a_mirrored_span_holds_what_is_needed_and_no_more(length, start, count):
    needed = {mirrored(p, length) for p in range(start, start + count)}
    low, high = mirrored_span(start, start + count, length)
    assert 0 <= low <= high <= length
    assert needed == set(range(low, high))
