"""C-order bytes behind a stream: .npy files, members of .npz archives, uncompressed TIFF.

A stream that can only go forward (deflate) is never rewound: when a box needs several distant runs, such
as one per channel, each run keeps a stream of its own, and the next box goes on where it stopped:

    c z y x in one deflate stream      |---c0---|---c1---|---c2---|
    slab 1 reads                        ##       ##       ##          three streams are open now
    slab 2 goes on with each              ##       ##       ##
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape

_PIECE = 1 << 20  # bytes per read call: ZipExtFile copies each once
_SCRATCH = 8 << 20  # largest sub-array read whole to pick small runs from it
_SHORT_RUN = 64 << 10  # below this, reading what lies between is faster than skipping it
_MAX_STREAMS = 64


def open_plain(path: str) -> IO[bytes]:
    """A file without a buffer of its own: reads go straight into the array."""
    return Path(path).open("rb", buffering=0)


class LinearReader:
    """Boxes of a C-order array of `raw_dtype` that starts at byte `offset` of what `open_stream` opens."""

    def __init__(
        self,
        open_stream: Callable[[], IO[bytes]],
        *,
        offset: int,
        shape: Shape,
        raw_dtype: np.dtype[Any],
        forward_only: bool,
    ) -> None:
        self._open = open_stream
        self._offset = offset
        self._shape = shape
        self._dtype = raw_dtype
        self._forward_only = forward_only
        # Bytes of one index of each axis.
        self._strides = [prod(shape[i + 1 :]) * raw_dtype.itemsize for i in range(len(shape))]
        self._streams: dict[Shape, IO[bytes]] = {}

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box over all axes, native byte order, bool as uint8. Memory: the box and 10 MiB."""
        out = np.empty(box.shape, self._dtype)
        # The innermost axes that the box covers whole make one run with the axis before them.
        inner = len(self._shape) - 1
        while inner > 0 and box.shape[inner] == self._shape[inner]:
            inner -= 1
        self._fill(out, box, (), self._offset, inner)
        if not self._dtype.isnative:
            out = out.byteswap(inplace=True).view(self._dtype.newbyteorder("="))
        return out.view(np.uint8) if self._dtype.kind == "b" else out

    def _fill(self, out: NDArray[Any], box: Box, prefix: Shape, start: int, inner: int) -> None:
        """Fill `out`, the part of the box at outer indices `prefix`; their sub-array starts at `start`."""
        axis = len(prefix)
        low, high, stride = box.lower[axis], box.upper[axis], self._strides[axis]
        if axis == inner:
            self._read_into(out, prefix, start + low * stride)
            return
        run = box.shape[inner] * self._strides[inner]
        if run < _SHORT_RUN and stride <= _SCRATCH:
            scratch = np.empty(self._shape[axis + 1 :], self._dtype)
            chosen = box.slices[axis + 1 :]
            for i in range(low, high):
                self._read_into(scratch, prefix, start + i * stride)
                out[i - low] = scratch[chosen]
            return
        for i in range(low, high):
            self._fill(out[i - low], box, (*prefix, i), start + i * stride, inner)

    def _read_into(self, out: NDArray[Any], key: Shape, position: int) -> None:
        stream = self._stream_at(key, position)
        view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while view:
            count = stream.readinto(view[:_PIECE])  # type: ignore[attr-defined]
            if not count:
                raise EOFError(f"the data ends {len(view)} bytes too early")
            view = view[count:]

    def _stream_at(self, key: Shape, position: int) -> IO[bytes]:
        if not self._forward_only:
            key = ()
        stream = self._streams.pop(key, None)
        if stream is None or (self._forward_only and stream.tell() > position):
            if stream is not None:
                stream.close()
            # A run that another one ends at goes on with its stream; others keep theirs.
            ended = next((k for k, s in self._streams.items() if s.tell() == position), None)
            stream = self._open() if ended is None else self._streams.pop(ended)
        self._streams[key] = stream
        if len(self._streams) > _MAX_STREAMS:
            self._streams.pop(next(iter(self._streams))).close()
        if self._forward_only:
            _skip(stream, position - stream.tell())
        else:
            stream.seek(position)
        return stream

    def close(self) -> None:
        while self._streams:
            self._streams.popitem()[1].close()


def _skip(stream: IO[bytes], count: int) -> None:
    # Not ZipExtFile.seek: it skips in steps of 16 MiB, each of them held three times.
    while count > 0:
        skipped = len(stream.read(min(count, _PIECE)))
        if not skipped:
            raise EOFError(f"the data ends {count} bytes before the part that is read")
        count -= skipped
