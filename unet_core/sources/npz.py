"""NumPy's .npz and .npy files, streamed: an archive's members are deflate streams, readable only forward.

The header's format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import zipfile
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.sources.linear import LinearReader, open_plain
from unet_core.sources.source import DECODING_ERRORS, choose_dataset, usable_dtype


class _Header(NamedTuple):
    shape: Shape
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int  # of the data, in bytes


class NpyArray:
    """One array of an .npz archive, or the array of an .npy file.

    Fortran order is C order of the reversed axes: it too is streamed, though in an archive each slab
    then costs a pass over the whole member.
    """

    axes: str | None = None
    voxel_size: tuple[float, ...] | None = None
    unit: str | None = None

    def __init__(self, path: str, dataset: str | None) -> None:
        self.where = path
        self._archive: zipfile.ZipFile | None = None
        if Path(path).suffix.lower() == ".npy":
            if dataset is not None:
                raise InputError(
                    "an .npy file holds one array without a name", where=path, found=f"--dataset {dataset}"
                )
            self._open = partial(open_plain, path)
            header, size = _read_header(self._open(), path), Path(path).stat().st_size
        else:
            self._archive = _open_archive(path)
            try:
                member = _choose_member(self._archive, dataset, path)
                self.where = f"{path}:{member.filename.removesuffix('.npy')}"
                self._open = partial(self._archive.open, member)
                header, size = _read_header(self._open(), self.where), member.file_size
                usable_dtype(header.dtype, where=self.where)
            except InputError:
                self._archive.close()
                raise
        self.shape = header.shape
        self.dtype = usable_dtype(header.dtype, where=self.where)
        needed = header.offset + prod(header.shape) * header.dtype.itemsize
        if size < needed:
            raise InputError(
                "this file is cut short",
                where=self.where,
                expected=f"{needed:,} bytes for shape {self.shape}, {header.dtype}",
                found=f"{size:,} bytes",
                fix="copy or export it again",
            )
        self.forward_only = self._archive is not None
        self.splits_rows = not self.forward_only and not header.fortran_order
        self._fortran = header.fortran_order
        self._reader = LinearReader(
            self._open,
            offset=header.offset,
            shape=self.shape[::-1] if self._fortran else self.shape,
            raw_dtype=header.dtype,
            forward_only=self.forward_only,
        )

    def read(self, box: Box) -> NDArray[Any]:
        if self._fortran:
            return self._reader.read(Box(box.lower[::-1], box.upper[::-1])).transpose()
        return self._reader.read(box)

    def close(self) -> None:
        self._reader.close()
        if self._archive is not None:
            self._archive.close()


def _open_archive(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except DECODING_ERRORS as error:
        raise InputError(
            "this is not an .npz archive, or it is cut short",
            where=path,
            expected="a zip archive of .npy arrays, as numpy.savez writes it",
            found=str(error),
            fix="copy or export it again",
        ) from None


def _choose_member(archive: zipfile.ZipFile, dataset: str | None, path: str) -> zipfile.ZipInfo:
    members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
    shapes = [
        (name, _read_header(archive.open(member), f"{path}:{name}").shape) for name, member in members.items()
    ]
    return members[choose_dataset(shapes, dataset, where=path)]


def _read_header(stream: IO[bytes], where: str) -> _Header:
    with stream:
        try:
            version = npy.read_magic(stream)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            shape, fortran_order, dtype = read(stream)
            return _Header(tuple(shape), fortran_order and len(shape) > 1, dtype, stream.tell())
        except DECODING_ERRORS as error:
            raise InputError(
                "this array's .npy header cannot be read",
                where=where,
                expected="a NumPy array file of version 1.0 or 2.0",
                found=f"{type(error).__name__}: {error}",
            ) from None
