"""Chunks that are damaged have names; chunks that are absent are told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from s3_server import environment, faulty_proxy, in_order
from zarr.codecs import Crc32cCodec, GzipCodec, ZstdCodec

from unet_core.errors import DataError, StoreError
from unet_core.geometry import Box
from unet_core.volumes import Store, Volume, open_for_reading, open_for_writing, read_box, write_box

SHAPE, CHUNK = (30, 32, 32), (16, 16, 16)
WHOLE = Box.of_shape(SHAPE)
VOXELS = np.random.default_rng(0).integers(0, 9, SHAPE).astype("u2")
FORMATS = {
    "v2 blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc("zstd")},
    "v2 gzip": {"zarr_format": 2, "compressors": numcodecs.GZip()},
    "v2 bz2": {"zarr_format": 2, "compressors": numcodecs.BZ2()},
    "v2 raw": {"zarr_format": 2, "compressors": None},
    "v3 gzip": {"compressors": [GzipCodec()]},
    "v3 blosc": {"compressors": [zarr.codecs.BloscCodec()]},
    "v3 crc32c": {"compressors": [ZstdCodec(level=1), Crc32cCodec()]},
    "v3 sharded": {"compressors": [ZstdCodec(level=1), Crc32cCodec()], "shards": (16, 32, 32)},
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "noise": lambda data: np.random.default_rng(1).integers(0, 256, len(data) - 1, dtype="u1").tobytes(),
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",  # what a file system leaves after a crash
    "short": lambda data: b"xy",
}


def written(store: Store, **options) -> Volume:
    array = zarr.create_array(
        store.zarr(read_only=False),
        data=VOXELS,
        chunks=CHUNK,
        dimension_names=None if "zarr_format" in options else ("z", "y", "x"),
        **options,
    )
    assert array.nchunks_initialized > 0
    return Volume.open(store.url)


def key_of(form: str, index: tuple[int, int, int]) -> str:
    return ".".join(map(str, index)) if form.startswith("v2") else "/".join(map(str, ("c", *index)))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_chunk_is_named_and_the_rest_can_be_read(tmp_path: Path, form: str, damage: str) -> None:
    volume = written(Store(tmp_path), **FORMATS[form])
    sharded = form == "v3 sharded"
    key = key_of(form, (1, 0, 0) if sharded else (1, 0, 1))
    path = tmp_path / key
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DataError, match="a chunk of this volume is damaged") as bad:
        volume.read(WHOLE)
    assert bad.value.where == f"{tmp_path}/{key}"
    assert bad.value.expected == f"voxels z 16:30, y 0:16, x {'0:16' if sharded else '16:32'}"
    assert (bad.value.found or "").endswith("; met in z 0:30, y 0:32, x 0:32")
    sound = Box((0, 0, 0), (16, 32, 32))
    np.testing.assert_array_equal(volume.read(sound)[0], VOXELS[sound.slices])


def test_one_damaged_inner_chunk_of_a_shard(tmp_path: Path) -> None:
    volume = written(Store(tmp_path), **FORMATS["v3 sharded"])
    path = tmp_path / "c/0/0/0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="checksum") as bad:
        volume.read(Box((0, 0, 0), (10, 32, 32)))
    assert bad.value.where == f"{tmp_path}/c/0/0/0"
    named = []
    for y, x in ((0, 0), (0, 16), (16, 0), (16, 16)):
        box = Box((0, y, x), (16, y + 16, x + 16))
        try:
            np.testing.assert_array_equal(volume.read(box)[0], VOXELS[box.slices])
        except DataError:
            named.append(f"voxels z 0:16, y {y}:{y + 16}, x {x}:{x + 16}")
    assert named == [bad.value.expected]


def test_a_damaged_chunk_with_channels_and_time(tmp_path: Path) -> None:
    data = np.arange(2 * 3 * 4 * 8 * 8, dtype="u2").reshape(2, 3, 4, 8, 8)
    array = zarr.create_array(
        str(tmp_path), data=data, chunks=(1, 1, 4, 4, 8), dimension_names=tuple("tczyx")
    )
    (tmp_path / "c/1/2/0/1/0").write_bytes(b"")
    volume = Volume.open(str(tmp_path), timepoint=1)
    with pytest.raises(DataError, match="t 1, c 2, z 0:4, y 4:8, x 0:8"):
        volume.read(volume.box)
    with pytest.raises(DataError, match="t 1, c 2, z 0:4, y 4:8, x 0:8"):
        read_box(array, volume.box, timepoint=1)
    np.testing.assert_array_equal(Volume.open(str(tmp_path), timepoint=0).read(volume.box), data[0])


@pytest.mark.parametrize("cut", [0, 2])
def test_a_damaged_shard_is_replaced_by_its_one_writer(cut: int, tmp_path: Path) -> None:
    """Also where an ROI cuts the block: nobody has written the rest of the shard."""
    store = Store(tmp_path)
    written(store, **FORMATS["v3 sharded"])
    array = open_for_writing(store, "")
    expected = VOXELS.copy()
    for key, box in (("c/0/0/0", Box((0, 0, 0), (16, 32, 32))), ("c/1/0/0", Box((16, 0, 0), (30, 32, 32)))):
        (tmp_path / key).write_bytes(b"not a shard")
        expected[box.slices] = 0
        part = Box(tuple(a + cut for a in box.lower), box.upper)
        expected[part.slices] = VOXELS[part.slices]
        write_box(array, part, VOXELS[part.slices])
    np.testing.assert_array_equal(read_box(array, WHOLE)[0], expected)


def test_a_caller_s_mistake_is_not_called_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    written(store, **FORMATS["v3 sharded"])
    with pytest.raises(ValueError, match=r"shape|broadcast") as mistake:
        write_box(open_for_writing(store, ""), WHOLE, np.zeros((3, 3, 3), "u2"))
    assert not isinstance(mistake.value, DataError)


def test_an_array_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    for content in (None, b"", b"{}", b"\xff\xfe"):
        if content is not None:
            (tmp_path / "0/zarr.json").write_bytes(content)
        for opened in (open_for_writing, open_for_reading):
            with pytest.raises(DataError, match="this array cannot be opened"):
                opened(Store(tmp_path), "0")


def test_an_empty_object_does_not_end_the_process(tmp_path: Path) -> None:
    """zarr hands it to blosc, which reads beyond it: the reason why CheckedStore refuses it."""
    written(Store(tmp_path), **FORMATS["v3 blosc"])
    (tmp_path / "c/0/0/0").write_bytes(b"")
    code = (
        "import sys; from unet_core.volumes import Volume; volume = Volume.open(sys.argv[1])\n"
        "try: volume.read(volume.box)\nexcept Exception as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert "the object has no bytes" in result.stdout


# Absent chunks


@pytest.mark.parametrize("form", FORMATS)
def test_absent_chunks_are_told_once(tmp_path: Path, form: str) -> None:
    volume = written(Store(tmp_path), **FORMATS[form])
    assert volume.take_absent() == frozenset()
    sharded = form == "v3 sharded"
    for index in [(1, 0, 0)] if sharded else [(1, 0, 1), (0, 1, 1)]:
        (tmp_path / key_of(form, index)).unlink()
    expected = {
        True: {Box((16, 0, 0), (30, 32, 32))},
        False: {Box((16, 0, 16), (30, 16, 32)), Box((0, 16, 16), (16, 32, 32))},
    }[sharded]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(volume.read, [WHOLE] * 8))
    assert volume.take_absent() == expected
    assert volume.take_absent() == frozenset()
    volume.read(Box((0, 0, 0), (8, 8, 8)))
    assert volume.take_absent() == frozenset()
    volume.read(Box((20, 0, 20), (21, 1, 21)))
    assert len(volume.take_absent()) == 1


def test_absent_objects_of_other_channels_have_the_same_box_and_inner_chunks_have_none(
    tmp_path: Path,
) -> None:
    data = np.ones((3, 16, 16, 16), "u2")
    data[:, :8] = 0  # inner chunks that are not written
    options = {"chunks": (1, 8, 8, 8), "shards": (1, 16, 16, 16), "config": {"write_empty_chunks": False}}
    folder = str(tmp_path / "a")
    zarr.create_array(folder, data=data, dimension_names=tuple("czyx"), fill_value=0, **options)
    volume = Volume.open(folder)
    volume.read(volume.box)
    assert volume.take_absent() == frozenset()
    for channel in (0, 2):
        (tmp_path / f"a/c/{channel}/0/0/0").unlink()
    volume.read(volume.box)
    assert volume.take_absent() == {volume.box}


def test_a_level_of_a_pyramid_tells_its_absent_chunks(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path), zarr_format=2)
    image = {"version": "0.4", "axes": [{"name": a, "type": "space"} for a in "zyx"]}
    scale = {"type": "scale", "scale": [1.0, 1.0, 1.0]}
    image["datasets"] = [{"path": "7/3", "coordinateTransformations": [scale]}]
    group.attrs["multiscales"] = [image]
    group.create_array("7/3", data=VOXELS, chunks=CHUNK, chunk_key_encoding={"name": "v2", "separator": "/"})
    (tmp_path / "7/3/1/1/0").unlink()
    volume = Volume.open(str(tmp_path))
    volume.read(WHOLE)
    assert volume.take_absent() == {Box((16, 16, 0), (30, 32, 16))}


def test_a_volume_that_vanished_is_not_a_volume_of_absent_chunks(tmp_path: Path) -> None:
    volume = written(Store(tmp_path / "mounted/volume.zarr"), **FORMATS["v3 sharded"])
    (tmp_path / "mounted").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="the folder is gone"):
        volume.read(WHOLE)


def test_a_bucket_that_vanished_is_not_a_volume_of_absent_chunks(
    bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_proxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", environment(proxy.endpoint)["AWS_ENDPOINT_URL"])
        store = Store(f"{bucket}/volume.zarr")
        volume = written(store, **FORMATS["v3 crc32c"])
        proxy.decide = in_order("404 NoSuchKey")
        assert (volume.read(WHOLE)[0] == 0).any()
        assert len(volume.take_absent()) == 1
        proxy.decide = in_order("404 NoSuchBucket")
        with pytest.raises(StoreError, match="this bucket does not exist"):
            volume.read(WHOLE)
        store.write("c/0/0/0", b"damaged")
        with pytest.raises(DataError, match="a chunk of this volume is damaged") as bad:
            volume.read(WHOLE)
        assert bad.value.where == f"{store.url}/c/0/0/0"
