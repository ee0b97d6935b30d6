"""Ingest: any source and any memory give the same volume; a shard has one writer; plans keep their word."""

from __future__ import annotations

import json
import random
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05 import Image as JudgeImage
from ome_zarr_models.v05 import ImageLabel as JudgeLabels

from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.ingestion import GIB, IngestPlan, create_output, plan_ingest, write_slab
from unet_core.sources import Source, open_source
from unet_core.volumes import Store, Volume, open_for_writing

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
MIB = 1 << 20


def ingest(source: Source, folder: Path, *, shuffled: bool = False, **options: Any) -> IngestPlan:
    """What the flow does, in one process."""
    plan = IngestPlan.from_dict(json.loads(json.dumps(plan_ingest(source, **options).to_dict())))
    store = Store(folder)
    create_output(plan, store)
    array = open_for_writing(store, "0")
    indices = list(range(len(plan)))
    if shuffled:
        random.Random(0).shuffle(indices)
    for index in indices:
        write_slab(plan, source, array, index)
    return plan


def npy_source(folder: Path, array: np.ndarray, axes: str) -> Source:
    np.save(folder / "a.npy", array)
    return open_source([str(folder / "a.npy")], axes=axes)


def claimed(shape: tuple[int, ...], dtype: str, axes: str, folder: Path, *, rows: bool = True) -> Source:
    """A source of any size at no cost: an empty HDF5 dataset, or a sparse .npz-like one read by planes."""
    with h5py.File(folder / "claimed.h5", "w") as file:
        file.create_dataset("raw", shape, dtype, chunks=True)
    source = open_source([str(folder / "claimed.h5")], axes=axes)
    if not rows:
        source.stored.splits_rows = False  # type: ignore[misc]
    return source


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.sampled_from(["yx", "zyx", "czyx", "tzyx", "tczyx", "zyxc", "xyz", "yxc"]),
    z=st.integers(1, 70),
    y=st.integers(1, 300),
    x=st.integers(1, 40),
    extra=st.integers(0, 8),
)
def test_the_volume_equals_the_source(
    tmp_path_factory: pytest.TempPathFactory, axes: str, z: int, y: int, x: int, extra: int
) -> None:
    """Position-coded; memory from too little for two planes to plenty; slabs in any order."""
    sizes = {"t": 2, "c": 3, "z": z, "y": y, "x": x}
    shape = tuple(sizes[a] for a in axes)
    array = np.arange(np.prod(shape), dtype="u4").reshape(shape)
    folder = tmp_path_factory.mktemp("any")
    with npy_source(folder, array, axes) as source:
        least = plan_ingest(source, memory=1 << 60).peak_bytes
        for memory in {least, least - extra * (least - 32 * MIB) // 10}:
            out = folder / f"{memory}.zarr"
            try:
                plan = ingest(source, out, shuffled=True, memory=memory)
            except InputError:
                assert memory < least
                continue
            assert plan.peak_bytes <= memory
            canonical = "".join(a for a in "tczyx" if a in axes)
            expected = array.transpose([axes.index(a) for a in canonical])
            written = zarr.open_array(f"{out}/0", mode="r")
            assert written.dtype == array.dtype
            np.testing.assert_array_equal(written[...], expected)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 5000), st.integers(1, 60000), st.integers(1, 60000)),
    channels=st.integers(1, 4),
    dtype=st.sampled_from(["u1", "u2", "f4"]),
    rows=st.booleans(),
    memory=st.integers(64 * MIB, 4 * GIB),
)
def test_plans_of_any_size_keep_their_bounds(
    tmp_path: Path, shape: tuple[int, ...], channels: int, dtype: str, rows: bool, memory: int
) -> None:
    with claimed((channels, *shape), dtype, "czyx", tmp_path, rows=rows) as source:
        try:
            plan = plan_ingest(source, memory=memory)
        except InputError as error:
            refusal = str(error)
        else:
            refusal = ""
    if refusal:
        assert f"at most {memory:,} bytes" in refusal
        return
    assert plan.peak_bytes <= memory
    assert all(s % c == 0 for s, c in zip(plan.shard, plan.chunk))
    # One writer per shard: a slab is whole shards, and slabs lie on a grid from the origin.
    assert all(n % s == 0 for n, s in zip(plan.slab, plan.shard))
    assert plan.slab[0] == plan.shard[0]
    assert plan.slab[2] >= shape[2]
    assert rows or plan.slab[1] >= shape[1]
    first, last = plan.slab_at(0), plan.slab_at(len(plan) - 1)
    assert first[1].lower == (0, 0, 0)
    assert last[1].upper == plan.shape == shape
    assert np.prod(plan.chunk) <= 2**18


@pytest.mark.parametrize(
    ("shape", "dtype", "memory", "rows", "slab", "chunk"),
    [
        ((170, 250, 250), "u1", GIB, True, (192, 256, 256), (64, 64, 64)),
        ((1000, 1000, 1000), "u1", GIB, True, (256, 1024, 1024), (64, 64, 64)),
        ((5000, 4000, 4000), "u2", GIB, True, (64, 1536, 4096), (64, 64, 64)),
        ((5000, 30000, 30000), "u2", GIB, False, None, None),
        ((24, 512, 512), "u1", GIB, True, (32, 512, 512), (32, 64, 64)),
        ((1, 512, 512), "u2", GIB, True, (1, 2048, 2048), (1, 512, 512)),
    ],
)
def test_what_common_volumes_get(
    tmp_path: Path, shape: Any, dtype: str, memory: int, rows: bool, slab: Any, chunk: Any
) -> None:
    with claimed(shape, dtype, "zyx", tmp_path, rows=rows) as source:
        if slab is None:
            with pytest.raises(InputError, match="does not fit into memory"):
                plan_ingest(source, memory=memory)
            return
        plan = plan_ingest(source, memory=memory)
    assert (plan.slab, plan.chunk) == (slab, chunk)


def test_memory_stays_below_the_prediction(tmp_path: Path) -> None:
    """Noise, which no codec shrinks, is the worst case."""
    array = np.random.default_rng(0).integers(0, 2**16, (64, 700, 512), dtype="u2")  # 46 MB
    with npy_source(tmp_path, array, "zyx") as source:
        plan = plan_ingest(source, memory=90 * MIB)
        assert len(plan) > 1
        store = Store(tmp_path / "out.zarr")
        create_output(plan, store)
        written = open_for_writing(store, "0")
        tracemalloc.start()
        for index in range(len(plan)):
            write_slab(plan, source, written, index)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= plan.peak_bytes <= 90 * MIB


def test_a_slab_written_twice_leaves_the_same_bytes(tmp_path: Path) -> None:
    array = np.arange(30 * 40 * 50, dtype="u2").reshape(30, 40, 50)
    with npy_source(tmp_path, array, "zyx") as source:
        plan = ingest(source, tmp_path / "a.zarr")
        shards = {p: p.read_bytes() for p in (tmp_path / "a.zarr" / "0").rglob("*") if p.is_file()}
        write_slab(plan, source, open_for_writing(Store(tmp_path / "a.zarr"), "0"), 0)
    assert {p: p.read_bytes() for p in shards} == shards


# ---------------------------------------------------------------- what others read


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_judges_accept_the_output(tmp_path: Path, kind: Any) -> None:
    axes = "tczyx" if kind == "image" else "tzyx"
    shape = (2, 3, 5, 200, 300) if kind == "image" else (2, 5, 200, 300)
    array = np.random.default_rng(1).integers(0, 9, shape, dtype="u2")
    with npy_source(tmp_path, array, axes) as source:
        plan = ingest(
            source, tmp_path / "v.zarr", kind=kind, voxel_size=(40, 4, 4), unit="nm", name="test volume"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(str(tmp_path / "v.zarr"), mode="r")
        judged = (JudgeImage if kind == "image" else JudgeLabels).from_zarr(group)
        members = dict(group.arrays())
    multiscale = judged.ome_attributes.multiscales[0]
    assert [a.name for a in multiscale.axes] == list(axes)
    assert {a.unit for a in multiscale.axes if a.type == "space"} == {"nanometer"}
    assert multiscale.name == "test volume"
    assert multiscale.type == ("mean" if kind == "image" else "mode")
    assert sorted(members) == [str(level.index) for level in plan.levels]
    assert {a.dtype for a in members.values()} == {array.dtype}
    np.testing.assert_array_equal(members["0"][...], array)
    volume = Volume.open(str(tmp_path / "v.zarr"), timepoint=1)
    assert (volume.voxel_size, volume.unit) == ((40.0, 4.0, 4.0), "nanometer")
    expected = array[1] if kind == "image" else array[1][np.newaxis]
    np.testing.assert_array_equal(volume.read(Box.of_shape(volume.shape)), expected)


@needs_data
@pytest.mark.parametrize(
    ("path", "dataset", "kind", "memory", "size", "unit"),
    [
        ("fib25/fib25.h5", "raw", "image", GIB, (0.01,) * 3, "micrometer"),
        ("fib25/fib25.h5", "label", "labels", 200 * MIB, (0.01,) * 3, "micrometer"),
        ("plantseg_ovules/1135_mini.h5", "raw", "image", GIB, (0.283718, 0.126786, 0.126786), "micrometer"),
        ("fibsem_gala_mini/train.npz", "label", "labels", 60 * MIB, (1.0,) * 3, None),
        ("isbi2012/volume.tif", None, "image", 40 * MIB, (1.0,) * 3, None),
        ("stardist_demo/mask2d.tif", None, "labels", GIB, (1.0,) * 3, None),
    ],
)
def test_real_files_arrive(
    tmp_path: Path, path: str, dataset: str | None, kind: Any, memory: int, size: Any, unit: str | None
) -> None:
    file = DATA / path
    if file.suffix == ".h5":
        with h5py.File(file) as opened:
            expected = opened[str(dataset)][()]
    else:
        expected = np.load(file)[dataset] if file.suffix == ".npz" else tifffile.imread(file)
    with open_source([str(file)], dataset=dataset) as source:
        plan = ingest(source, tmp_path / "v.zarr", kind=kind, memory=memory)
    assert plan.voxel_size == pytest.approx(size, rel=1e-5)
    assert plan.unit == unit
    written = zarr.open_array(str(tmp_path / "v.zarr" / "0"), mode="r")
    assert written.dtype == expected.dtype
    np.testing.assert_array_equal(written[...], expected)
    stored = sum(p.stat().st_size for p in (tmp_path / "v.zarr").rglob("*") if p.is_file())
    assert stored <= plan.raw_bytes


# ---------------------------------------------------------------- choices and refusals


def test_voxel_sizes_of_the_user_override_the_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = np.zeros((4, 5, 6), "u1")
        file["raw"].attrs["element_size_um"] = [0.5, 0.25, 0.25]
    with open_source([str(tmp_path / "a.h5")]) as source:
        plain = plan_ingest(source)
        assert (plain.voxel_size, plain.unit, plain.name) == ((0.5, 0.25, 0.25), "micrometer", "a")
        asked = plan_ingest(source, voxel_size=(30, 8, 8), unit="nm")
        assert (asked.voxel_size, asked.unit) == ((30.0, 8.0, 8.0), "nanometer")
        unknown = plan_ingest(source, voxel_size=(3, 1, 1))
        assert (unknown.voxel_size, unknown.unit) == ((3.0, 1.0, 1.0), None)
    with npy_source(tmp_path, np.zeros((5, 6)), "yx") as plane:
        assert plan_ingest(plane, voxel_size=(4, 2), unit="nm").voxel_size == (1.0, 4.0, 2.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"voxel_size": (1, 2, 3), "unit": "lightyears"}, "unit of length"),
        ({"unit": "nanometer"}, "without voxel sizes"),
        ({"voxel_size": (1, 0, 3)}, "not a voxel size"),
        ({"voxel_size": (1, float("nan"), 3)}, "not a voxel size"),
        ({"voxel_size": (1, 2)}, "not a voxel size"),
        ({"kind": "labels"}, "must be integers"),
        ({"memory": MIB}, "does not fit into memory"),
    ],
)
def test_refusals(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with npy_source(tmp_path, np.zeros((4, 5, 6), "f4"), "zyx") as source:  # noqa: SIM117
        with pytest.raises(InputError, match=match):
            plan_ingest(source, **options)


def test_labels_have_one_channel(tmp_path: Path) -> None:
    with npy_source(tmp_path, np.zeros((5, 6, 3), "u1"), "yxc") as source:  # noqa: SIM117
        with pytest.raises(InputError, match="channel"):
            plan_ingest(source, kind="labels")
