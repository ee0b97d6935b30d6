"""One volume in a file that is not Zarr, as (channel, z, y, x) boxes; files are read in their own order."""

from __future__ import annotations

import hashlib
import struct
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import DataError, InputError, UnetFlowsError
from unet_core.geometry import Box, Shape
from unet_core.metadata import AXES, SPATIAL

# What numpy, h5py, tifffile, imagecodecs, Pillow, zlib and zipfile raise on bytes that they cannot decode;
# nearly all that Python has: tifffile divides by sizes that a damaged directory makes 0, and asserts.
DECODING_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


class Stored(Protocol):
    """An array as its file holds it. Opening reads headers only; `read` reads what its box needs.

    `axes` is what the file says of them (None: nothing clear); `voxel_size` is z, y, x.
    `splits_rows` says that a box of some rows costs no more memory than these rows;
    `forward_only` that boxes are cheap in ascending order only (compressed streams).
    """

    @property
    def where(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def axes(self) -> str | None: ...
    @property
    def voxel_size(self) -> tuple[float, ...] | None: ...
    @property
    def unit(self) -> str | None: ...
    @property
    def splits_rows(self) -> bool: ...
    @property
    def forward_only(self) -> bool: ...

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box over the stored axes, in native byte order and `dtype`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SourceSpec:
    """How a source was named: plain data, enough to open it again in another process. Paths are absolute."""

    paths: tuple[str, ...]
    dataset: str | None = None
    axes: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"paths": list(self.paths), "dataset": self.dataset, "axes": self.axes}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SourceSpec:
        return cls(tuple(data["paths"]), data["dataset"], data["axes"])


@dataclass(frozen=True)
class Source:
    """A volume to ingest. Threads may share one; another process opens its own from `spec`.

    `files` are what `spec.paths` came to: a folder's images, sorted naturally. `stored_axes` is the
    file's order; everything else here is canonical: t, c, z, y, x.
    """

    spec: SourceSpec
    name: str
    files: tuple[str, ...]
    stored: Stored
    stored_axes: str
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def where(self) -> str:
        return self.stored.where

    @property
    def axes(self) -> str:
        """The axes that there are, in OME-Zarr's order, such as "czyx"."""
        return "".join(a for a in AXES if a in self.stored_axes)

    @property
    def shape(self) -> Shape:
        """z, y, x; a plane has z = 1."""
        return tuple(self._size(a) for a in SPATIAL)

    @property
    def timepoints(self) -> int:
        return self._size("t")

    @property
    def channels(self) -> int:
        return self._size("c")

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.stored.dtype

    @property
    def voxel_size(self) -> tuple[float, ...] | None:
        """z, y, x in `unit`s; None where the file does not say."""
        return self.stored.voxel_size

    @property
    def unit(self) -> str | None:
        return self.stored.unit

    @property
    def splits_rows(self) -> bool:
        return self.stored.splits_rows

    @property
    def forward_only(self) -> bool:
        return self.stored.forward_only

    def _size(self, axis: str) -> int:
        return self.stored.shape[self.stored_axes.index(axis)] if axis in self.stored_axes else 1

    def digest(self) -> str:
        """Changes when a file does: a hash of names, sizes and modification times, not of the content."""
        facts = hashlib.sha256(repr((self.spec.dataset, self.spec.axes)).encode())
        for name in self.files:
            status = Path(name).stat()
            facts.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return facts.hexdigest()[:16]

    def read(self, box: Box, *, timepoint: int = 0) -> NDArray[Any]:
        """The voxels of a (z, y, x) box as (channel, z, y, x), all channels, data type kept.

        Raises
        ------
        InputError
            The box or the time point lies outside the volume.
        DataError
            The file's bytes cannot be decoded here.
        """
        if not Box.of_shape(self.shape).contains(box) or not 0 <= timepoint < self.timepoints:
            raise InputError(
                "this box lies outside the source",
                where=self.where,
                expected=f"inside {self.timepoints} x {self.shape} (t; z, y, x)",
                found=f"{timepoint}; {box}",
            )
        ranges = {"t": (timepoint, timepoint + 1), "c": (0, self.channels)}
        ranges |= dict(zip(SPATIAL, zip(box.lower, box.upper)))
        chosen = [ranges[a] for a in self.stored_axes]
        try:
            with self._lock:
                data = self.stored.read(Box(*zip(*chosen)))
        except UnetFlowsError:
            raise
        except DECODING_ERRORS as error:
            raise DataError(
                "the source cannot be read here",
                where=f"{self.where}, time point {timepoint}, box {box}",
                found=f"{type(error).__name__}: {error}",
                fix="copy or export the file again",
            ) from error
        data = data.transpose([self.stored_axes.index(a) for a in self.axes])
        return data.reshape(self.channels, *box.shape)

    def close(self) -> None:
        self.stored.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def usable_dtype(dtype: np.dtype[Any], *, where: str) -> np.dtype[Any]:
    """The data type that a source has here: the file's in native byte order; bool becomes uint8.

    Raises
    ------
    InputError
        Not an integer or floating-point type that Zarr holds (object, complex, text, longdouble, ...).
    """
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "uif" or dtype.itemsize > 8 or dtype.shape:
        raise InputError(
            "this array does not hold numbers that a volume can have",
            where=where,
            expected="integers or floating point of at most 64 bits, or bool",
            found=f"data type {dtype}",
        )
    return dtype.newbyteorder("=")


def choose_dataset(
    arrays: Sequence[tuple[str, Shape]], asked: str | None, *, where: str, what: str = "array"
) -> str:
    """The array of a file that is meant: the one asked for, or the only one with at least 2 dimensions.

    Raises
    ------
    InputError
        There is no such array, or none was named and there are several; lists what is there.
    """
    volumes = [name for name, shape in arrays if len(shape) >= 2]
    listed = [f"{name} {shape}" for name, shape in arrays]
    found = ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
    if asked is not None:
        if asked in [name for name, _ in arrays]:
            return asked
        raise InputError(
            f"no such {what} in the file",
            where=where,
            expected=repr(asked),
            found=found or f"no {what}",
            fix="use --dataset with one of these names",
        )
    if len(volumes) == 1:
        return volumes[0]
    raise InputError(
        f"the file holds several {what}s" if volumes else f"the file holds no {what} that is a volume",
        where=where,
        expected=f"one {what} of at least 2 dimensions",
        found=found or f"no {what}",
        fix=f"choose one, such as --dataset {volumes[0]}" if volumes else None,
    )
