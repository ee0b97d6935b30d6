"""Volumes: whatever a microscope wrote comes in as (channel, z, y, x); what goes out, others can judge."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import ome_zarr_models
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, boxes, boxes_within, mirror, random_voxels, write_array

from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, Shape
from unet_core.metadata import pyramid_levels
from unet_core.recent import Recent
from unet_core.volumes import (
    Store,
    Volume,
    axis_names,
    create_multiscale,
    create_records_node,
    open_for_writing,
    read_box,
    write_box,
)

# --- reading arrays ---------------------------------------------------------------------------------------

AXES = st.lists(st.sampled_from("tcz"), unique=True).flatmap(
    lambda extra: st.permutations([*extra, "y", "x"]).map("".join)
)


def canonical(data: np.ndarray, axes: str, timepoint: int) -> np.ndarray:
    """(c, z, y, x) of one time point, by numpy's own means."""
    for missing in set("tcz") - set(axes):
        data, axes = data[np.newaxis], missing + axes
    return np.einsum(f"{axes}->tczyx", data)[timepoint]


@settings(max_examples=60)
@given(axes=AXES, data=st.data(), seed=SEEDS)
def test_any_subset_and_order_of_axes(axes, data, seed, tmp_path_factory):
    sizes = {"t": 2, "c": 3, "z": 4, "y": 5, "x": 6}
    dtype = data.draw(st.sampled_from(["uint16", "float32"]))
    stored = random_voxels(tuple(sizes[a] for a in axes), dtype, seed)
    chunks = tuple(data.draw(st.integers(2, 6)) for _ in axes)
    folder = write_array(tmp_path_factory.mktemp("axes") / "v.zarr", stored, axes=axes, chunks=chunks)
    timepoint = data.draw(st.integers(0, 1)) if "t" in axes else 0
    count = 3 if "c" in axes else 1
    channels = data.draw(st.none() | st.lists(st.integers(0, count - 1), min_size=1, max_size=4).map(tuple))
    volume = Volume.open(str(folder), channels=channels, timepoint=timepoint)
    expected = canonical(stored, axes, timepoint)[list(range(count) if channels is None else channels)]
    assert (volume.axes, volume.dtype) == (axes, stored.dtype)
    if data.draw(st.booleans()):  # nothing changes, whatever is still there of the chunks
        volume = volume.keeping(Recent(data.draw(st.sampled_from([0, 200, 2**20]))))
    assert volume.shape == expected.shape[1:]
    assert volume.spatial_axes == ("zyx" if "z" in axes else "yx")
    box = data.draw(boxes(low=-9, high=9))
    for _ in range(2):
        found = volume.read(box)
        assert found.dtype == stored.dtype
        np.testing.assert_array_equal(found, mirror(expected, box))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("axes", ["yx", "zyx", "czyx", "tczyx"])
def test_arrays_that_name_no_axes_have_the_usual_ones(axes, zarr_format, make_volume):
    stored = random_voxels((2, 3, 4, 5, 6)[-len(axes) :], "uint16", 0)
    volume = Volume.open(str(make_volume(stored, zarr_format=zarr_format)))
    assert volume.axes == axes
    np.testing.assert_array_equal(volume.read(volume.box), canonical(stored, axes, 0))
    assert volume.voxel_size == (1.0, 1.0, 1.0)
    assert volume.unit is None


def test_axes_with_other_names_fall_back_to_the_usual_ones(make_volume):
    stored = random_voxels((4, 5, 6), "uint8", 0)
    assert Volume.open(str(make_volume(stored, axes="abc"))).axes == "zyx"


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64", "float16", "float64", ">u2"])
def test_every_numeric_type_comes_back_as_it_is(dtype, make_volume):
    stored = (np.arange(60).reshape(3, 4, 5) % 7).astype(dtype)
    volume = Volume.open(str(make_volume(stored, zarr_format=2)))
    assert volume.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.read(volume.box)[0], stored)


def test_identity_changes_with_what_is_read_and_not_otherwise(make_volume):
    folder = str(make_volume(random_voxels((2, 3, 4, 5), "uint8", 0), axes="czyx"))
    identity = Volume.open(folder).identity()
    assert json.loads(json.dumps(identity)) == identity == Volume.open(folder).identity()
    assert Volume.open(folder, channels=(1,)).identity() != identity
    zarr.open_array(folder).attrs["unit"] = "another"
    assert Volume.open(folder).identity() != identity


# --- reading OME-Zarr -------------------------------------------------------------------------------------


def write_ome(folder: Path, arrays: dict[str, np.ndarray], version: str, axes: str, **multiscale) -> Path:
    """A multiscale written by hand, as the spec's own examples are."""
    zarr_format = 2 if version == "0.4" else 3
    types = {"t": {"type": "time"}, "c": {"type": "channel"}}
    space = {"type": "space", "unit": "micrometer"}
    finest = next(iter(arrays.values())).shape[-1]
    datasets = []
    for path, data in arrays.items():
        size = {"z": 2.0, "y": 0.5 * finest / data.shape[-1], "x": 0.5 * finest / data.shape[-1]}
        scale = {"type": "scale", "scale": [size.get(a, 1.0) for a in axes]}
        datasets.append({"path": path, "coordinateTransformations": [scale]})
    described = {
        "axes": [{"name": a, **types.get(a, space)} for a in axes],
        "datasets": datasets,
        **multiscale,
    }
    if version == "0.4":
        attributes = {"multiscales": [{"version": version, **described}]}
    else:
        attributes = {"ome": {"version": version, "multiscales": [described]}}
    zarr.create_group(store=str(folder), zarr_format=zarr_format, attributes=attributes)
    for path, data in arrays.items():
        write_array(folder / path, data, axes=axes, zarr_format=zarr_format)
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "zyx", "cyx", "tzyx", "tczyx"])
def test_multiscales_of_both_versions(version, axes, tmp_path):
    sizes = {"t": 2, "c": 3, "z": 4, "y": 16, "x": 12}
    fine = random_voxels(tuple(sizes[a] for a in axes), "uint16", 0)
    coarse = fine[..., ::2, ::2]
    folder = write_ome(tmp_path / "image.zarr", {"s0": fine, "deep/s1": coarse}, version, axes)
    for level, data in enumerate((fine, coarse)):
        volume = Volume.open(str(folder), level=level)
        np.testing.assert_array_equal(volume.read(volume.box), canonical(data, axes, 0))
        assert volume.voxel_size == (2.0 if "z" in axes else 1.0, 0.5 * 2**level, 0.5 * 2**level)
        assert volume.unit == "micrometer"
        assert volume.axes == axes


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_outer_transformation_is_applied_after_the_datasets_own(version, tmp_path):
    outer = [
        {"type": "scale", "scale": [10.0, 2.0, 2.0]},
        {"type": "translation", "translation": [1.0, 0.0, 3.0]},
    ]
    data = random_voxels((2, 3, 4), "uint8", 0)
    folder = write_ome(tmp_path / "v.zarr", {"0": data}, version, "zyx", coordinateTransformations=outer)
    volume = Volume.open(str(folder))
    assert volume.voxel_size == (20.0, 1.0, 1.0)
    assert volume.origin == (1.0, 0.0, 3.0)


def test_sharded_sample_of_version_0_5(shared_data):
    """IDR idr0062A: two channels, sharded, labels beside the image; its metadata lists one dataset, "2"."""
    folder = shared_data / "omezarr" / "6001240_labels_v0.5.zarr"
    stored = zarr.open_array(folder / "2", mode="r")
    image = Volume.open(str(folder), channels=(1,))
    assert (image.path, image.shape, image.dtype) == ("2", (236, 68, 67), np.uint16)
    assert image.unit == "micrometer"
    assert image.voxel_size == pytest.approx((0.5002025531914894, 1.4415926138560835, 1.4415926138560835))
    box = Box((100, -7, 40), (104, 75, 90))
    np.testing.assert_array_equal(image.read(box), mirror(stored[1:2, 100:104], box.shift((-100, 0, 0))))
    labels = Volume.open(str(folder / "labels" / "0"), level=2)
    assert (labels.shape, labels.dtype) == (image.shape, np.int8)
    assert len(np.unique(labels.read(labels.box))) == 1 + 61
    np.testing.assert_allclose(labels.voxel_size, image.voxel_size, rtol=1e-3)


def test_time_series_sample_of_version_0_4(shared_data):
    folder = shared_data / "omezarr" / "tubhiswt4D_sub_v0.4.zarr"
    for level, timepoint in ((0, 0), (1, 2), (2, 1)):
        stored = zarr.open_array(folder / str(level), mode="r")[timepoint]
        volume = Volume.open(str(folder), level=level, timepoint=timepoint)
        assert (volume.axes, volume.shape) == ("tczyx", (2, 512 >> level, 512 >> level))
        np.testing.assert_array_equal(volume.read(volume.box), stored)
    assert Volume.open(str(folder / "labels" / "embryo")).shape == (2, 512, 512)


# --- writing ----------------------------------------------------------------------------------------------


def create_labels(store: Store, shape: Shape) -> None:
    create_multiscale(
        store,
        kind="labels",
        axes="zyx",
        leading=(),
        levels=pyramid_levels(shape, (40.0, 8.0, 8.0), smallest=40),
        dtype=np.dtype(np.uint8),
        chunk=(8, 16, 16),
        shard=(16, 32, 64),
        voxel_size=(40.0, 8.0, 8.0),
        origin=(5.0, 0.0, 0.0),
        unit="nanometer",
        name="cells",
        method="mode",
        source="../raw.zarr",
    )


def write_labels(folder: Path, shape: Shape = (20, 70, 130)) -> tuple[Store, np.ndarray]:
    """A label multiscale with records, as a run leaves it; only level 0 holds data."""
    store = Store(folder)
    create_labels(store, shape)
    create_records_node(store, ".unet-flows")
    store.write(".unet-flows/run.json", b"{}")
    store.write(".unet-flows/ledger/predict/0-00", b"")
    labels = np.random.default_rng(0).integers(0, 5, shape).astype(np.uint8)
    labels[:, :32, :64] = 0  # a whole shard of background is not stored
    array = open_for_writing(store, "0")
    for box in Grid(Box.of_shape(shape), (16, 32, 64)):
        inside = box.intersect(Box.of_shape(shape))
        write_box(array, inside, labels[inside.slices])
    return store, labels


def test_written_labels_are_accepted_by_ome_zarr_models(tmp_path):
    store, _ = write_labels(tmp_path / "labels.zarr")
    group = zarr.open_group(store.url, mode="r")
    judged = ome_zarr_models.open_ome_zarr(group)
    assert type(judged) is ome_zarr_models.v05.ImageLabel
    metadata = judged.ome_attributes
    assert metadata.image_label.source.image == "../raw.zarr"
    (multiscale,) = metadata.multiscales
    assert [(axis.name, axis.type, axis.unit) for axis in multiscale.axes] == [
        (name, "space", "nanometer") for name in "zyx"
    ]
    for level, dataset in enumerate(multiscale.datasets):
        scale, shift = dataset.coordinateTransformations
        array = group[dataset.path]
        # Voxels become isotropic first; every level covers the same physical box, corner to corner.
        assert scale.scale == [40.0, 8.0 * 2**level, 8.0 * 2**level]
        corners = [t - s / 2 for t, s in zip(shift.translation, scale.scale)]
        assert corners == [5.0 - 20.0, -4.0, -4.0]
        assert array.shape == (20, -(-70 // 2**level), -(-130 // 2**level))
        assert array.metadata.dimension_names == ("z", "y", "x")
    assert level == 2


def test_listing_the_output_warns_of_nothing(tmp_path):
    """Warnings are errors here: the folder of records must look like a Zarr node to zarr-python."""
    store, labels = write_labels(tmp_path / "labels.zarr")
    members = dict(zarr.open_group(store.url, mode="r").members(max_depth=None))
    assert sorted(members) == [".unet-flows", "0", "1", "2"]
    np.testing.assert_array_equal(members["0"][...], labels)
    assert members["0"].shards == (16, 32, 64)
    assert members["0"].chunks == (8, 16, 16)


def test_tensorstore_reads_the_same_voxels(tmp_path):
    store, labels = write_labels(tmp_path / "labels.zarr")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store.url}/0/"}}
    array = tensorstore.open(spec, open=True).result()
    assert array.domain.labels == ("z", "y", "x")
    np.testing.assert_array_equal(array.read().result(), labels)


def test_background_is_not_stored_and_reads_as_zero(tmp_path):
    store, labels = write_labels(tmp_path / "labels.zarr")
    keys = set(store.keys("0/c"))
    assert "0/c/1/1/1" in keys
    assert "0/c/0/0/0" not in keys
    volume = Volume.open(store.url)
    assert not volume.read(Box((0, 0, 0), (16, 32, 64))).any()
    np.testing.assert_array_equal(volume.read(volume.box)[0], labels)


@settings(max_examples=40)
@given(index=st.booleans(), flip=st.integers(1, 255), data=st.data())
def test_one_flipped_byte_is_noticed(index, flip, data, tmp_path_factory):
    """crc32c guards every chunk and every shard index: no byte of a shard may change unseen."""
    store, _ = write_labels(tmp_path_factory.mktemp("flip") / "labels.zarr", (16, 32, 128))
    shard = store.path / "0" / "c" / "0" / "0" / "1"
    stored = bytearray(shard.read_bytes())
    # The index, at the end, is small and worth as many tries as the chunks.
    begins = len(stored) - 16 * (16 // 8) * (32 // 16) * (64 // 16) - 4
    place = data.draw(st.integers(begins, len(stored) - 1) if index else st.integers(0, begins - 1))
    stored[place] ^= flip
    shard.write_bytes(stored)
    with pytest.raises(Exception, match=r"(?i)checksum|crc32c"):
        Volume.open(store.url).read(Box((0, 0, 64), (16, 32, 128)))


@settings(max_examples=30)
@given(data=st.data(), seed=SEEDS, axes=st.sampled_from(["yx", "zyx", "cyx", "czyx", "tzyx", "tczyx"]))
def test_what_is_written_is_read(data, seed, axes, tmp_path_factory):
    sizes = {"t": 2, "c": 3, "z": 9, "y": 10, "x": 11}
    store = Store(tmp_path_factory.mktemp("written") / "v.zarr")
    shape = (9 if "z" in axes else 1, 10, 11)
    thick = 4 if "z" in axes else 1
    create_multiscale(
        store,
        kind="image",
        axes=axes,
        leading=tuple(sizes[a] for a in axes if a in "tc"),
        levels=pyramid_levels(shape, (1.0, 1.0, 1.0)),
        dtype=np.dtype(np.uint16),
        chunk=(thick, 4, 4),
        shard=(thick, 8, 8),
        voxel_size=(1.0, 1.0, 1.0),
        origin=(0.0, 0.0, 0.0),
        unit=None,
        name="v",
    )
    array = open_for_writing(store, "0")
    assert axis_names(array) == tuple(axes)
    channels = 3 if "c" in axes else 1
    times = 2 if "t" in axes else 1
    expected = np.zeros((times, channels, *shape), np.uint16)
    for _ in range(3):
        box, timepoint = data.draw(boxes_within(shape)), data.draw(st.integers(0, times - 1))
        voxels = random_voxels((channels, *box.shape), "uint16", seed)
        write_box(array, box, voxels if "c" in axes else voxels[0], timepoint=timepoint)
        expected[(timepoint, slice(None), *box.slices)] = voxels
    for timepoint in range(times):
        volume = Volume.open(store.url, timepoint=timepoint)
        np.testing.assert_array_equal(volume.read(volume.box), expected[timepoint])
        np.testing.assert_array_equal(read_box(array, volume.box, timepoint=timepoint), expected[timepoint])


def test_creating_again_keeps_the_data(tmp_path):
    """A run that was killed between its record and its last array creates them once more."""
    store, labels = write_labels(tmp_path / "labels.zarr")
    shutil.rmtree(store.path / "2")
    create_labels(store, labels.shape)
    create_records_node(store, ".unet-flows")
    assert store.read(".unet-flows/ledger/predict/0-00") == b""
    np.testing.assert_array_equal(zarr.open_array(store.url, path="0", mode="r")[...], labels)
    created = pyramid_levels(labels.shape, (40.0, 8.0, 8.0), smallest=40)
    assert Volume.open(store.url, level=2).shape == created[2].shape


# --- bad input --------------------------------------------------------------------------------------------


def refusal(folder: Path | str, **options) -> InputError:
    with pytest.raises(InputError) as refused:
        Volume.open(str(folder), **options)
    assert refused.value.exit_code == 2
    assert refused.value.where
    return refused.value


def test_no_such_volume(tmp_path):
    error = refusal(tmp_path / "absent.zarr")
    assert (error.problem, error.where) == ("no such volume", str(tmp_path / "absent.zarr"))
    assert not (tmp_path / "absent.zarr").exists(), "looking must not create"


def test_a_file_is_not_a_zarr(tmp_path):
    path = tmp_path / "stack.tif"
    path.write_bytes(b"II*\0")
    error = refusal(path)
    assert error.problem == "this is a file, not a Zarr"
    assert error.fix == "convert it first: unet-flows ingest stack.tif --to VOLUME.zarr"


def test_a_folder_is_not_a_zarr(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("hello")
    error = refusal(tmp_path / "notes")
    assert error.problem == "this is not a Zarr"
    assert "zarr.json, .zarray or .zgroup" in error.expected


def test_damaged_metadata_is_not_a_zarr(make_volume):
    folder = make_volume(np.zeros((3, 4, 5), np.uint8))
    (folder / "zarr.json").write_text('{"zarr_format": 3, ')
    assert refusal(folder).problem == "this is not a Zarr"
    (folder / "zarr.json").write_text('{"zarr_format": 3, "node_type": "array", "shape": [3]}')
    assert refusal(folder).problem == "this is not a Zarr"


@pytest.mark.parametrize("attributes", [{}, {"comment": "a plate"}, {"ome": {"version": "0.5"}}])
def test_a_group_without_multiscales(attributes, tmp_path):
    zarr.create_group(store=str(tmp_path / "g.zarr"), attributes=attributes)
    error = refusal(tmp_path / "g.zarr")
    assert error.problem == "this group has no multiscales"
    assert error.where == str(tmp_path / "g.zarr")
    assert error.found == (f"attributes {sorted(attributes)}" if attributes else "no attributes")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_missing_dataset_of_a_level(version, tmp_path):
    data = np.zeros((3, 8, 8), np.uint8)
    folder = write_ome(tmp_path / "v.zarr", {"0": data, "1": data[:, ::2, ::2]}, version, "zyx")
    shutil.rmtree(folder / "0")
    error = refusal(folder)
    assert error.problem == "level 0 is listed in the metadata but its array is missing"
    assert (error.where, error.found, error.fix) == (f"{folder}/0", "levels 1", "use --level 1")
    assert Volume.open(str(folder), level=1).shape == (3, 4, 4)
    shutil.rmtree(folder / "1")
    error = refusal(folder)
    assert (error.found, error.fix) == ("none of them", None)


def test_a_dataset_that_is_a_group(tmp_path):
    data = np.zeros((3, 8, 8), np.uint8)
    folder = write_ome(tmp_path / "v.zarr", {"0": data, "1": data}, "0.5", "zyx")
    shutil.rmtree(folder / "0")
    zarr.create_group(store=str(folder / "0"))
    assert refusal(folder).where == f"{folder}/0"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_metadata_that_the_spec_does_not_allow(version, tmp_path):
    folder = write_ome(tmp_path / "v.zarr", {"0": np.zeros((3, 8, 8), np.uint8)}, version, "zyx", datasets=[])
    error = refusal(folder)
    assert error.problem == f"the OME-Zarr {version} metadata is not valid"
    assert "datasets" in error.found


def test_array_and_metadata_disagree_on_dimensions(tmp_path):
    folder = write_ome(tmp_path / "v.zarr", {"0": np.zeros((3, 8, 8), np.uint8)}, "0.5", "zyx")
    shutil.rmtree(folder / "0")
    write_array(folder / "0", np.zeros((8, 8), np.uint8))
    error = refusal(folder)
    assert error.problem == "wrong number of dimensions"
    assert (error.where, error.expected, error.found) == (f"{folder}/0", "3 (z, y, x)", "2, shape (8, 8)")


@pytest.mark.parametrize("shape", [(5,), (1, 2, 3, 4, 5, 6)])
def test_plain_arrays_with_wrong_dimensions(shape, make_volume):
    error = refusal(make_volume(np.zeros(shape, np.uint8)))
    assert error.problem == "wrong number of dimensions"
    assert error.expected == "2 (y, x) to 5 (t, c, z, y, x) dimensions"
    assert error.found == f"{len(shape)}, shape {shape}"


@pytest.mark.parametrize(
    ("options", "problem", "expected", "found"),
    [
        ({"channels": (2,)}, "no such channel", "0 to 1", "2"),
        ({"channels": (0, -1)}, "no such channel", "0 to 1", "0, -1"),
        ({"channels": ()}, "no such channel", "0 to 1", "none"),
        ({"timepoint": 3}, "no such time point", "0 to 2", "3"),
        ({"timepoint": -1}, "no such time point", "0 to 2", "-1"),
        ({"level": 1}, "no such pyramid level", "0 to 0", "1"),
        ({"level": -1}, "no such pyramid level", "0 to 0", "-1"),
    ],
)
def test_no_such_channel_time_point_or_level(options, problem, expected, found, tmp_path):
    folder = write_ome(tmp_path / "v.zarr", {"0": np.zeros((3, 2, 4, 4, 4), np.uint8)}, "0.5", "tczyx")
    error = refusal(folder, **options)
    assert (error.problem, error.expected, error.found) == (problem, expected, found)


def test_a_plain_array_has_no_pyramid(make_volume):
    error = refusal(make_volume(np.zeros((3, 4, 5), np.uint8)), level=1)
    assert (error.problem, error.found) == ("a plain array has no pyramid", "1")


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "<U4"])
def test_arrays_that_hold_no_numbers(dtype, make_volume):
    error = refusal(make_volume(np.zeros((3, 4, 5), dtype), zarr_format=2))
    assert error.problem == "this array does not hold numbers"
    assert error.found == str(np.dtype(dtype))


def test_an_empty_array(tmp_path):
    zarr.create_array(store=str(tmp_path / "v.zarr"), shape=(0, 4, 5), dtype="uint8", chunks=(1, 4, 5))
    assert refusal(tmp_path / "v.zarr").found == "shape (0, 4, 5)"


# --- stores -----------------------------------------------------------------------------------------------


def test_objects_of_a_store(tmp_path):
    store = Store(tmp_path / "s")
    assert not store.exists()
    assert store.read("a") is None
    assert list(store.keys()) == []
    assert not (tmp_path / "s").exists(), "asking must not create"
    store.write("a/b", b"1")
    store.write("a/b", b"2")
    assert not store.create("a/b", b"3")
    assert store.create("a/c", b"4")
    assert {key: store.read(key) for key in store.keys("a")} == {"a/b": b"2", "a/c": b"4"}
    assert store.read("a") is None
    assert list(store.child("a").keys()) in [list(p) for p in permutations(["b", "c"])]
    assert Store(f"file://{tmp_path}/s").url == store.url == Store(f"{tmp_path}/s/").url


def test_a_url_must_not_hold_credentials():
    with pytest.raises(InputError, match="credentials") as refused:
        Store("s3://me:secret@bucket/key")
    assert "secret" not in str(refused.value)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    store = Store(tmp_path / "deep" / "out.zarr")
    store.check_writable(1)
    assert not (tmp_path / "deep").exists()
    with pytest.raises(InputError, match="disk is too small") as refused:
        store.check_writable(10**18)
    assert "1,000,000,000,000,000,000" in refused.value.expected
    assert "bytes free" in refused.value.found

    def no_permission(**options):
        raise PermissionError(13, "Permission denied")

    # Root may write anywhere, so that a folder without permission would prove nothing in CI.
    monkeypatch.setattr("tempfile.TemporaryFile", no_permission)
    with pytest.raises(InputError, match="cannot be written") as refused:
        store.check_writable(1)
    assert (refused.value.where, refused.value.found) == (str(tmp_path), "Permission denied")

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        Store(tmp_path / "file" / "out.zarr").check_writable(1)


def test_another_volume_under_the_same_name_is_another_input(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (40, 40, 40), dtype="u1")
    array = zarr.create_array(tmp_path / "v.zarr", data=data, chunks=(16, 16, 16))
    before = Volume.open(str(tmp_path / "v.zarr")).identity()
    assert Volume.open(str(tmp_path / "v.zarr")).identity() == before
    array[:] = 255 - data
    assert Volume.open(str(tmp_path / "v.zarr")).identity() != before
