"""Whole shards written and read without zarr: its bytes, its voxels; whatever else goes through zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec

from unet_core.errors import DataError
from unet_core.geometry import Box
from unet_core.ledger import quick_digest
from unet_core.volumes import open_for_reading, read_box, write_box
from unet_core.volumes.shards import read_whole, write_whole
from unet_core.volumes.stores import Store


def array_in(store: Any, shape: tuple[int, ...], dtype: str, **options: Any) -> zarr.Array[Any]:
    rest = {"compressors": [ZstdCodec(level=1), Crc32cCodec()], "fill_value": 0, **options}
    rest["config"] = {"write_empty_chunks": False}
    return zarr.create_array(store, shape=shape, dtype=dtype, dimension_names=["z", "y", "x"], **rest)


@settings(max_examples=40)
@given(st.data())
def test_the_same_bytes_and_voxels_as_zarr(data: st.DataObject) -> None:
    """Any shape, chunk and shard; empty chunks and shards; over what was there before."""
    chunk = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    shard = tuple(c * data.draw(st.integers(1, 5)) for c in chunk)
    shape = data.draw(st.tuples(*[st.integers(1, 13)] * 3))
    dtype = data.draw(st.sampled_from(["u1", "u4", "u8", "i2"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    ours, theirs = ({}, {})
    arrays = [array_in(store, shape, dtype, chunks=chunk, shards=shard) for store in (ours, theirs)]
    blocks = [s * data.draw(st.integers(1, 2)) for s in shard]
    lower = [data.draw(st.integers(0, (n - 1) // b)) * b for n, b in zip(shape, blocks)]
    extent = [(a, min(a + b, n)) for a, b, n in zip(lower, blocks, shape)]
    part = tuple(slice(a, b) for a, b in extent)
    for sparse in (0.9, 0.0):  # then everything is taken away again
        voxels = (rng.random([b - a for a, b in extent]) < sparse * rng.random()) * rng.integers(1, 100)
        voxels = voxels.astype(dtype)
        assert write_whole(arrays[0], extent, voxels)
        arrays[1][part] = voxels
        assert {k: v.to_bytes() for k, v in ours.items()} == {k: v.to_bytes() for k, v in theirs.items()}
        found = read_whole(arrays[1], extent)
        assert found is not None
        np.testing.assert_array_equal(found, voxels)
        assert found.dtype == voxels.dtype


@pytest.mark.parametrize(
    ("options", "extent"),
    [
        ({"shards": (4, 4, 4)}, [(0, 4), (0, 4), (0, 3)]),  # cuts a shard
        ({}, [(0, 8), (0, 8), (0, 8)]),  # no shards
        ({"shards": (4, 4, 4), "compressors": [ZstdCodec(level=1)]}, [(0, 8), (0, 8), (0, 8)]),
        ({"shards": (4, 4, 4), "fill_value": 1}, [(0, 8), (0, 8), (0, 8)]),
        ({"shards": (4, 4, 4), "dtype": "f4"}, [(0, 8), (0, 8), (0, 8)]),
        ({"shards": (4, 4, 4), "dtype": ">u2"}, [(0, 8), (0, 8), (0, 8)]),
    ],
)
def test_anything_else_is_left_to_zarr(options: dict[str, Any], extent: list[tuple[int, int]]) -> None:
    array = array_in({}, (8, 8, 8), options.pop("dtype", "u4"), chunks=(2, 2, 2), **options)
    data = np.arange(512).reshape(8, 8, 8).astype(array.dtype)
    array[...] = data
    done = write_whole(array, extent, data[tuple(slice(a, b) for a, b in extent)])
    if done:
        np.testing.assert_array_equal(array[...], data)
    else:
        assert read_whole(array, extent) is None


@pytest.mark.parametrize("at", [0, 40, -30, -2])
def test_a_flipped_byte_is_named_and_a_damaged_shard_can_be_written_over(tmp_path: Path, at: int) -> None:
    array = array_in(str(tmp_path / "a.zarr"), (8, 8, 8), "u4", chunks=(2, 4, 4), shards=(4, 8, 8))
    data = np.arange(1, 513, dtype="u4").reshape(8, 8, 8)
    box = Box.of_shape(array.shape)
    write_box(array, box, data)
    shard = tmp_path / "a.zarr" / "c" / "1" / "0" / "0"
    kept = shard.read_bytes()
    damaged = bytearray(kept)
    damaged[at] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(DataError, match="c/1/0/0"):
        read_box(open_for_reading(Store(tmp_path), "a.zarr"), box)
    write_box(array, box, data)
    assert shard.read_bytes() == kept


def test_quick_digests_are_those_of_xxh64() -> None:
    """Vectors of the reference implementation, seed 0."""
    for text, expected in (
        (b"", "ef46db3751d8e999"),
        (b"a", "d24ec4f1a98c6e5b"),
        (b"abc", "44bc2cf5ad770999"),
        (b"Nobody inspects the spammish repetition", "fbcea83c8a378bf1"),
    ):
        assert quick_digest(np.frombuffer(text, np.uint8)) == expected
