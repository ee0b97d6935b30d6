"""The object table: partial sums that add up to the bit, and columns as skimage measures the whole volume."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import regionprops_table
from strategies import SEEDS

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box, Grid, Shape
from unet_core.table import Sums, TablePlan, exact, quanta_of, write_sums, write_tables
from unet_core.table.columns import finished
from unet_core.volumes import Store

SHAPE = (13, 30, 26)


def plan_of(shape: Shape, *, chunk: Shape = (4, 8, 8), extent: Box | None = None, **given) -> TablePlan:
    values = {"voxel_size": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "unit": None, **given}
    return TablePlan(
        volume=shape,
        extent=extent or Box.of_shape(shape),
        planar=shape[0] == 1,
        chunk=chunk,
        shard=tuple(2 * n for n in chunk),
        **values,
    )


def blobs(shape: Shape, seed: int, *, sigma: float = 1.2, level: float = 0.12) -> np.ndarray:
    """Labels 1 to N of some smooth noise, in raster order of first voxels."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.label(ndimage.gaussian_filter(noise, sigma) > level)[0].astype(np.uint32)


def whole(plan: TablePlan, labels: np.ndarray, **arrays) -> Sums:
    return plan.measure(labels, Box.of_shape(plan.volume), **arrays)


def in_blocks(plan: TablePlan, block: Shape, labels: np.ndarray, **arrays) -> list[Sums]:
    extent = Box.of_shape(plan.volume)
    boxes = [cell.intersect(extent) for cell in Grid(extent, block)]
    return [
        plan.measure(labels[box.slices], box, **{name: a[(..., *box.slices)] for name, a in arrays.items()})
        for box in boxes
    ]


@settings(max_examples=15)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    block=st.tuples(*[st.integers(1, 6)] * 3),
    chunk=st.tuples(*[st.integers(1, 6)] * 3),
    floats=st.booleans(),
    high=st.booleans(),
    seed=SEEDS,
    data=st.data(),
)
def test_blocks_in_any_order_add_up_to_the_whole_to_the_bit(shape, block, chunk, floats, high, seed, data):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, shape).astype(np.uint64)
    labels[labels > 0] += 2**63 * high
    image = (
        rng.normal(1000, 300, (2, *shape)).astype("f4")
        if floats
        else rng.integers(0, 2**16, (2, *shape), "u2")
    )
    classes = rng.integers(0, 3, shape, "u1")
    plan = plan_of(
        shape,
        chunk=chunk,
        channels=(0, 1),
        quanta=quanta_of(image.dtype, (0.0, 0.0), (2000.0, 3000.0)),
        classes=("a", "b", "c"),
    )
    parts = data.draw(st.permutations(in_blocks(plan, block, labels, image=image, classes=classes)))
    expected = whole(plan, labels, image=image, classes=classes)
    middle = data.draw(st.integers(0, len(parts)))
    halves = [Sums.merge(half) for half in (parts[:middle], parts[middle:]) if half]
    assert Sums.merge(parts) == expected
    assert Sums.merge(halves) == expected
    assert Sums.from_bytes(expected.to_bytes()) == expected
    assert int(expected.fragments["voxels"].sum()) == int((labels > 0).sum())


@settings(max_examples=200)
@given(
    st.lists(st.integers(-(2**100), 2**100), min_size=1, max_size=6),
    st.integers(-(2**32), 2**32),
    st.data(),
)
def test_wide_integers_are_pythons(values, factor, data):
    def wide(numbers):
        return np.array([[n >> 64 & 2**64 - 1, n & 2**64 - 1] for n in numbers], np.uint64)

    def back(array):
        return [(int(h) << 64 | int(low)) - (2**128 if int(h) >> 63 else 0) for h, low in array]

    a, b = wide(values), wide(values[::-1])
    assert back(exact.plus(a, b)) == [x + y for x, y in zip(values, values[::-1])]
    assert back(exact.minus(a, b)) == [x - y for x, y in zip(values, values[::-1])]
    assert back(exact.times(wide([n >> 40 for n in values]), np.full(len(values), factor))) == [
        (n >> 40) * factor for n in values
    ]
    np.testing.assert_allclose(exact.as_float(a), [float(n) for n in values], rtol=1e-15)
    starts = sorted({0, *data.draw(st.lists(st.integers(0, len(values) - 1)))})
    ends = [*starts[1:], len(values)]
    assert back(exact.sums_of_groups(a, np.array(starts))) == [sum(values[i:j]) for i, j in zip(starts, ends)]
    signed = np.array([n >> 40 for n in values])
    assert back(exact.wide(signed.astype(np.int64))) == signed.tolist()


@pytest.mark.parametrize(
    ("shape", "voxel_size"),
    [
        (SHAPE, (1.0, 1.0, 1.0)),
        (SHAPE, (4.5, 1.0, 1.25)),
        ((1, 40, 37), (1.0, 1.0, 1.0)),
        ((1, 40, 37), (7.0, 0.5, 0.25)),
    ],
)
def test_the_columns_are_those_of_regionprops(shape, voxel_size):
    labels = blobs(shape, 1)
    image = np.random.default_rng(2).integers(0, 4000, (2, *shape), "u2")
    planar = shape[0] == 1
    plan = plan_of(
        shape, voxel_size=voxel_size, origin=(5.0, -3.0, 100.0), channels=(0, 3), quanta=(1.0, 1.0)
    )
    table = finished(whole(plan, labels, image=image).rows, np.zeros(labels.max(), "u4"), plan)
    at = 0 if planar else slice(None)
    names = (
        "label",
        "area",
        "bbox",
        "centroid",
        "axis_major_length",
        "axis_minor_length",
        "inertia_tensor_eigvals",
    )
    with np.errstate(all="ignore"):
        seen = regionprops_table(
            labels[at],
            np.moveaxis(image, 0, -1)[at],
            spacing=voxel_size[1:] if planar else voxel_size,
            properties=(*names, "intensity_mean", "intensity_std", "intensity_min", "intensity_max"),
        )
    axes = "yx" if planar else "zyx"
    n = len(axes)
    close = {"rtol": 1e-9, "atol": 1e-6}
    np.testing.assert_array_equal(table["id"], seen["label"])
    np.testing.assert_allclose(table["volume"], seen["area"], **close)
    size = voxel_size[-n:]
    np.testing.assert_array_equal(table["voxels"], np.rint(seen["area"] / np.prod(size)))
    for i, axis in enumerate(axes):
        np.testing.assert_array_equal(table[f"{axis}0"], seen[f"bbox-{i}"])
        np.testing.assert_array_equal(table[f"{axis}1"], seen[f"bbox-{i + n}"])
        np.testing.assert_allclose(table[axis] * size[i], seen[f"centroid-{i}"], **close)
        origin = plan.origin[i + 3 - n]
        np.testing.assert_allclose(table[f"{axis}_physical"] - origin, seen[f"centroid-{i}"], **close)
    np.testing.assert_allclose(table["axis_major"], seen["axis_major_length"], **close)
    # skimage's is a difference of large numbers: where the axis is nothing, so are its digits
    minor = np.nan_to_num(seen["axis_minor_length"])
    np.testing.assert_allclose(table["axis_minor"], minor, rtol=1e-6, atol=1e-5)
    trace = sum(table[f"moment_{axis}{axis}"] for axis in axes)
    inertia = sum(seen[f"inertia_tensor_eigvals-{i}"] for i in range(n))
    np.testing.assert_allclose(trace * (n - 1), inertia, **close)
    for place, channel in enumerate(plan.channels):
        for name in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(table[f"{name}_{channel}"], seen[f"intensity_{name}-{place}"], **close)
    border = np.zeros(labels.max() + 1, bool)
    for axis in range(3 - n, 3):
        for face in (0, -1):
            border[np.unique(np.take(labels, face, axis=axis))] = True
    np.testing.assert_array_equal(table["touches_border"], border[1:])


def test_far_from_the_origin_and_far_from_black_nothing_cancels_out():
    near, far = plan_of((40, 40, 40), channels=(0,), quanta=(1.0,)), (2**24 - 44, 2**24 - 48, 2**24 - 40)
    huge = plan_of(tuple(n + 40 for n in far), channels=(0,), quanta=(1.0,))
    labels, image = blobs((40, 40, 40), 3), np.random.default_rng(0).integers(0, 9, (1, 40, 40, 40), "u4")
    here = finished(whole(near, labels, image=image).rows, np.zeros(labels.max(), "u4"), near)
    box = Box(far, huge.volume)
    there = finished(
        huge.measure(labels, box, image=image + np.uint32(2**32 - 9)).rows, np.zeros(labels.max(), "u4"), huge
    )
    for name in ("axis_major", "axis_middle", "axis_minor", "moment_zx", "std_0"):
        np.testing.assert_allclose(there[name], here[name], rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(there["z0"] - far[0], here["z0"])
    np.testing.assert_allclose(there["mean_0"] - (2**32 - 9), here["mean_0"], atol=2e-6)


def test_floating_point_intensities_are_as_exact_as_float32_and_what_is_no_number_says_so():
    shape = (6, 20, 20)
    labels = blobs(shape, 5)
    image = np.random.default_rng(6).normal(0.3, 0.1, (1, *shape)).astype("f4")
    plan = plan_of(shape, channels=(0,), quanta=quanta_of(image.dtype, (0.0,), (0.6,)))
    ids, index = np.arange(1, labels.max() + 1), labels == 1
    table = finished(whole(plan, labels, image=image).rows, np.zeros(ids.size, "u4"), plan)
    np.testing.assert_allclose(table["mean_0"], ndimage.mean(image[0].astype("f8"), labels, ids), atol=1e-8)
    np.testing.assert_allclose(
        table["std_0"], ndimage.standard_deviation(image[0].astype("f8"), labels, ids), atol=1e-8
    )
    np.testing.assert_array_equal(table["max_0"], ndimage.maximum(image[0], labels, ids))
    spoiled = np.argwhere(index)[0]
    for value in (np.nan, np.inf, 1e20):
        image[(0, *spoiled)] = value
        table = finished(whole(plan, labels, image=image).rows, np.zeros(ids.size, "u4"), plan)
        assert np.isnan(table["mean_0"][0])
        assert np.isnan(table["std_0"][0])
        assert not np.isnan(table["mean_0"][1:]).any()
        assert table["min_0"][0] == np.nanmin(np.where(index, image[0], np.nan))


def write(folder: Path, parts: list[Sums], plan: TablePlan, **options) -> Store:
    store = Store(folder)
    for index, sums in enumerate(parts):
        write_sums(store, index, sums)
    write_tables(store, plan, blocks=len(parts), fingerprint="f" * 16, **options)
    return store


def files(store: Store) -> dict[str, bytes | None]:
    keys = [key for key in store.keys("tables") if "/sums/" not in key]
    return {key: store.read(key) for key in keys}


def read(store: Store, name: str) -> dict[str, np.ndarray]:
    parts = json.loads(store.read("tables/summary.json") or b"")["parts"][name]
    tables = [pq.read_table(f"{store.url}/{part['key']}") for part in parts]
    assert [t.num_rows for t in tables] == [part["rows"] for part in parts]
    return {c: np.concatenate([t[c].to_numpy() for t in tables]) for c in tables[0].column_names}


def test_the_files_are_the_same_bytes_whatever_the_blocks_and_the_memory(tmp_path, monkeypatch):
    labels = blobs((24, 50, 40), 7, sigma=0.8, level=0.4)
    image = np.random.default_rng(8).integers(0, 255, (1, *labels.shape), "u1")
    plan = plan_of(labels.shape, channels=(0,), quanta=(1.0,))
    assert TablePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    for name, value in (
        ("OBJECT_GROUP", 16),
        ("_OBJECT_FILE", 64),
        ("LOOKUP_GROUP", 8),
        ("FRAGMENT_GROUP", 16),
        ("_OTHER_FILE", 48),
    ):
        monkeypatch.setattr(f"unet_core.table.writing.{name}", value)
    once = write(tmp_path / "a", [whole(plan, labels, image=image)], plan)
    often = write(tmp_path / "b", in_blocks(plan, (9, 13, 40), labels, image=image), plan, memory=200_000)
    assert files(once) == files(often)
    assert len(files(once)) > 8
    objects, lookup, fragments = (read(once, name) for name in ("objects", "lookup", "fragments"))
    count = labels.max()
    np.testing.assert_array_equal(objects["id"][lookup["row"]], np.arange(1, count + 1))
    # Fragments and the blocks column against the labels themselves.
    shards: list[set] = [set() for _ in range(count + 1)]
    expected = []
    for index, cell in enumerate(Grid(Box.of_shape(labels.shape), plan.chunk)):
        ids, voxels = np.unique(labels[cell.intersect(Box.of_shape(labels.shape)).slices], return_counts=True)
        for i, n in zip(ids, voxels):
            shards[i].add(tuple(a // s for a, s in zip(cell.lower, plan.shard)))
            if i:
                expected.append((i, index, n))
    np.testing.assert_array_equal(np.stack(list(fragments.values()), 1), sorted(expected))
    np.testing.assert_array_equal(objects["blocks"][lookup["row"]], [len(s) for s in shards[1:]])
    # Neighbouring rows are neighbours in space.
    steps = [abs(objects[a][1:] - objects[a][:-1]).mean() for a in "zyx"]
    assert sum(steps) < 0.7 * sum(abs(np.diff(objects[a][lookup["row"]])).mean() for a in "zyx")
    assert all(a <= b for a, b in pairwise(fragments["id"]))


def test_a_table_without_objects(tmp_path):
    plan = plan_of(SHAPE, classes=("a",))
    store = write(tmp_path, [whole(plan, np.zeros(SHAPE, "u4"), classes=np.zeros(SHAPE, "u1"))], plan)
    assert {
        name: len(next(iter(read(store, name).values()))) for name in ("objects", "lookup", "fragments")
    } == {
        "objects": 0,
        "lookup": 0,
        "fragments": 0,
    }


def test_the_class_of_an_object_is_that_of_most_of_its_voxels():
    labels = np.ones((1, 1, 5), "u4")
    plan = plan_of(labels.shape, classes=("background", "a", "b"))
    classes = np.array([1, 2, 2, 2, 1], "u1").reshape(labels.shape)
    assert finished(whole(plan, labels, classes=classes).rows, np.ones(1, "u4"), plan)["class"][0] == 2


def test_what_does_not_belong_together_is_refused(tmp_path):
    plan = plan_of(SHAPE)
    labels = blobs(SHAPE, 9)
    with pytest.raises(InputError, match="another shape"):
        plan.measure(labels[1:], Box.of_shape(SHAPE))
    with pytest.raises(InputError, match="cannot be measured"):
        plan.measure(labels, Box.of_shape(SHAPE).shift((1, 0, 0)))
    store = Store(tmp_path)
    sums = whole(plan, labels)
    with pytest.raises(DataError, match="missing"):
        write_tables(store, plan, blocks=1, fingerprint="")
    write_sums(store, 0, sums)
    key = next(store.keys("tables/sums"))
    data = bytearray(store.read(key) or b"")
    data[50] ^= 1
    store.write(key, bytes(data))
    with pytest.raises(DataError, match="damaged"):
        write_tables(store, plan, blocks=1, fingerprint="")
    write_sums(store, 0, whole(plan, labels * (labels != 2)))
    with pytest.raises(DataError, match="id 3 after 1"):
        write_tables(store, plan, blocks=1, fingerprint="")
