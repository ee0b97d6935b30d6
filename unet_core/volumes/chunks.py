"""The chunks of an array as objects in a store: reading them checked, naming the one that is damaged.

What a damaged chunk raises depends on its codec (RuntimeError, ValueError, EOFError, OSError without a
number, zlib.error, ...). Faults of the store never get here as anything but StoreError, so whatever else a
read raises is the data's, if one of its chunks raises again when it is read alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core import sync as zarr_sync

from unet_core.errors import DataError, UnetFlowsError
from unet_core.geometry import Box, Shape, ceil_div
from unet_core.metadata import SPATIAL
from unet_core.recent import Recent
from unet_core.volumes.faults import scrub
from unet_core.volumes.shards import Extent, read_whole, write_whole
from unet_core.volumes.zarr_store import CheckedStore

Selection = tuple[int | slice, ...]


def read_checked(array: zarr.Array[Any], selection: Selection, axes: Sequence[str]) -> NDArray[Any]:
    """`array[selection]`, where a chunk that cannot be decoded has a name.

    Parameters
    ----------
    selection
        One index or slice per axis.
    axes
        The array's axes, of t, c, z, y, x.

    Raises
    ------
    DataError
        A damaged chunk. One that was never written is no error: it holds the fill value.
    StoreError
        The store does not give what it has.
    """
    found = read_whole(array, _extent(array, selection))
    if found is not None:
        return found.reshape([n for n, s in zip(found.shape, selection) if isinstance(s, slice)])
    try:
        return np.asarray(array[selection])
    except (UnetFlowsError, MemoryError):
        raise
    except Exception:
        for chunk, reason in _damaged(array, selection):
            raise _data_error(array, selection, axes, chunk, reason) from None
        raise  # no chunk of it: the caller's mistake


def read_kept(
    array: zarr.Array[Any], selection: Selection, axes: Sequence[str], recent: Recent
) -> NDArray[Any]:
    """`read_checked`, from chunks that `recent` keeps decoded: for who comes back to the same ones.

    What is not kept is read in as few parts as there are boxes of it, and counted in `recent.made`.
    """
    extent = _extent(array, selection)
    found = {index: recent.find(array, index) for index in _indices(array, extent)}
    missing = {index for index, data in found.items() if data is None}
    item, chunk = array.dtype.itemsize, prod(array.chunks)
    if item * chunk * len(missing) > max(recent.capacity, item * prod(b - a for a, b in extent)):
        # They would push each other out before anybody came back, and whole chunks take more than the part.
        recent.made += item * chunk * len(found)
        return read_checked(array, selection, axes)
    result = np.empty([b - a for a, b in extent], array.dtype)
    for index, data in found.items():
        if data is not None:
            _paste(result, extent, data, _chunk(array, index))
    for first, last in _boxes(missing):
        part = [(a, b) for (a, _), (_, b) in zip(_chunk(array, first), _chunk(array, last))]
        data = read_checked(array, tuple(slice(a, b) for a, b in part), axes)
        _paste(result, extent, data, part)
        for index in product(*(range(a, b + 1) for a, b in zip(first, last))):
            inside = tuple(
                slice(a - start, b - start) for (a, b), (start, _) in zip(_chunk(array, index), part)
            )
            recent.keep(array, index, data[inside])
    return result[tuple(slice(None) if isinstance(s, slice) else 0 for s in selection)]


def _paste(result: NDArray[Any], extent: Extent, data: NDArray[Any], place: Extent) -> None:
    """Copy what two extents share; each array lies where its extent says."""
    met = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(extent, place)]
    into = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(met, extent))
    result[into] = data[tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(met, place))]


def _boxes(missing: set[Shape]) -> Iterator[tuple[Shape, Shape]]:
    """Boxes, as first and last index, that hold these and nothing else: halved along the longest axis."""
    if not missing:
        return
    columns = list(zip(*missing))
    first, last = tuple(map(min, columns)), tuple(map(max, columns))
    if prod(b - a + 1 for a, b in zip(first, last)) == len(missing):
        yield first, last
        return
    axis = max(range(len(first)), key=lambda axis: last[axis] - first[axis])
    middle = (first[axis] + last[axis]) // 2
    lower = {index for index in missing if index[axis] <= middle}
    yield from _boxes(lower)
    yield from _boxes(missing - lower)


def write_checked(
    array: zarr.Array[Any], selection: Selection, data: NDArray[Any], axes: Sequence[str]
) -> None:
    """`array[selection] = data`, also over damaged objects: they are taken away first.

    zarr reads the old shard even when it writes the whole of it: without this, what a crash has damaged
    could never be written again. The caller is the one writer of each object that he meets: whatever of it
    lies outside `selection` nobody else has written.

    Raises
    ------
    StoreError
        The store does not take it.
    """
    extent = _extent(array, selection)
    if write_whole(array, extent, data.reshape([b - a for a, b in extent])):
        return
    try:
        array[selection] = data
        return
    except (UnetFlowsError, MemoryError):
        raise
    except Exception:
        replaced = False
        for chunk, _ in _damaged(array, selection):
            _delete(array, chunk)
            replaced = True
        if not replaced:
            raise
    array[selection] = data


def _data_error(
    array: zarr.Array[Any], selection: Selection, axes: Sequence[str], chunk: Extent, reason: str
) -> DataError:
    return DataError(
        "a chunk of this volume is damaged",
        where=f"{_place(array)}/{_key(array, chunk)}",
        expected=f"voxels {_text(axes, chunk)}",
        found=f"{reason}; met in {_text(axes, _extent(array, selection))}",
        fix="put this object back from a copy, write it anew, or leave it out with --roi",
    )


def _damaged(array: zarr.Array[Any], selection: Selection) -> Iterator[tuple[Extent, str]]:
    """The damaged chunks that a part of an array meets, and what their codecs say."""
    for chunk in _chunks_of(array, _extent(array, selection)):
        try:
            np.asarray(array[tuple(slice(a, b) for a, b in chunk)])
        except UnetFlowsError:
            raise
        except Exception as error:
            yield chunk, f"{type(error).__name__}: {scrub(str(error))}"


def _extent(array: zarr.Array[Any], selection: Selection) -> Extent:
    pairs = zip(selection, array.shape)
    return [s.indices(n)[:2] if isinstance(s, slice) else (s, s + 1) for s, n in pairs]


def _chunks_of(array: zarr.Array[Any], extent: Extent) -> Iterator[Extent]:
    """The decodable units (inner chunks of shards) that a part of an array meets."""
    return (_chunk(array, index) for index in _indices(array, extent))


def _indices(array: zarr.Array[Any], extent: Extent) -> Iterator[Shape]:
    return product(*(range(a // c, -(-b // c)) for (a, b), c in zip(extent, array.chunks)))


def _chunk(array: zarr.Array[Any], index: Shape) -> Extent:
    return [(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, array.chunks, array.shape)]


def _delete(array: zarr.Array[Any], chunk: Extent) -> None:
    key = f"{array.path}/{_key(array, chunk)}".lstrip("/")
    zarr_sync.sync(array.store.delete(key))


def _place(array: zarr.Array[Any]) -> str:
    url = array.store.url if isinstance(array.store, CheckedStore) else str(array.store)
    return f"{url}/{array.path}".rstrip("/")


def _key(array: zarr.Array[Any], chunk: Extent) -> str:
    """The key, below the array's own, of the object that holds a chunk."""
    return array.metadata.encode_chunk_key(tuple(a // n for (a, _), n in zip(chunk, _object_shape(array))))


def _object_shape(array: zarr.Array[Any]) -> Shape:
    return tuple(array.shards or array.chunks)


def outer_keys(array: zarr.Array[Any], axes: str) -> Iterator[str]:
    """Keys, below the array's own, of the objects that hold the last plane along z, then the first one's.

    Of all channels and time points, backwards; of an array without z those of all objects.
    """
    counts = _object_counts(array)
    z = axes.find("z")
    for plane in dict.fromkeys((counts[z] - 1, 0)) if z >= 0 else (0,):
        spans = [range(count - 1, -1, -1) for count in counts]
        if z >= 0:
            spans[z] = range(plane, plane + 1)
        for index in product(*spans):
            yield array.metadata.encode_chunk_key(index)


def some_keys(array: zarr.Array[Any], most: int) -> Iterator[str]:
    """Keys, below the array's own, of at most so many objects from all over it: always the same ones."""
    counts = _object_counts(array)
    total = prod(counts)
    for number in random.Random(0).sample(range(total), min(most, total)):
        index = []
        for count in reversed(counts):
            number, at = divmod(number, count)
            index.append(at)
        yield array.metadata.encode_chunk_key(tuple(reversed(index)))


def _object_counts(array: zarr.Array[Any]) -> Shape:
    return tuple(ceil_div(n, c) for n, c in zip(array.shape, _object_shape(array)))


def _text(axes: Sequence[str], extent: Extent) -> str:
    """Such as `t 0, z 0:32, y 0:32, x 64:96`."""
    pairs = zip(axes or "?" * len(extent), extent)
    return ", ".join(f"{x} {a}" if x in "tc" and b == a + 1 else f"{x} {a}:{b}" for x, (a, b) in pairs)


def box_of_key(array: zarr.Array[Any], axes: str, key: str) -> Box | None:
    """The z, y, x voxels of the object at `key`, clipped to the array; None for a key that is not a chunk's.

    Objects of other time points and channels have the same box.
    """
    index = tuple(map(int, re.findall(r"\d+", key)[-array.ndim :]))
    if len(index) != array.ndim or not f"/{key}".endswith(f"/{array.metadata.encode_chunk_key(index)}"):
        return None
    at = dict(zip(axes, zip(index, _object_shape(array), array.shape)))
    spans = [at.get(axis, (0, 1, 1)) for axis in SPATIAL]
    return Box(tuple(i * c for i, c, _ in spans), tuple(min((i + 1) * c, n) for i, c, n in spans))
