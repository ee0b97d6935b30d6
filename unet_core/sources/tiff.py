"""TIFF, BigTIFF, OME-TIFF and ImageJ hyperstacks through tifffile, page by page.

uncompressed, one after the other     read as one C-order array (also ImageJ's one-directory files)
all others                            whole planes by page, some rows by the strips or tiles they need
"""

from __future__ import annotations

from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.sources.linear import LinearReader, open_plain
from unet_core.sources.source import DECODING_ERRORS, usable_dtype
from unet_core.sources.tiff_check import check_complete
from unet_core.sources.tiff_metadata import physical_size, tiff_axes

_JPEG = {6, 7, 34892, 33007}  # compressions whose segments need the page's tables


class TiffArray:
    """One series of a TIFF file: its pages of one shape. Memory of a read: the box and one page."""

    forward_only = False
    voxel_size: tuple[float, ...] | None
    unit: str | None

    def __init__(self, path: str, dataset: str | None) -> None:
        self.where = path
        pages = check_complete(path)
        try:
            self._file = tifffile.TiffFile(path)
        except DECODING_ERRORS as error:
            raise _unreadable(path, pages, error) from None
        try:
            self._describe(_choose_series(self._file.series, dataset, path))
        except InputError:
            self._file.close()
            raise
        except DECODING_ERRORS as error:
            self._file.close()
            raise _unreadable(path, pages, error) from None

    def _describe(self, series: Any) -> None:
        self.shape: Shape = tuple(series.shape)
        raw_dtype = np.dtype(series.dtype or "V1")
        self.dtype = usable_dtype(raw_dtype, where=self.where)
        self.axes = tiff_axes(series.axes)
        self.voxel_size, self.unit = physical_size(self._file, series)
        self._pages = list(series.pages)
        _check_none_missing(self._pages, self.where)
        self._keyframe: Any = self._pages[0].keyframe
        # The series' last axes are the page's; what comes before counts pages.
        page_size, ndim = prod(self.shape) // len(self._pages), 0
        while prod(self.shape[len(self.shape) - ndim :]) < page_size:
            ndim += 1
        self._outer: Shape = self.shape[: len(self.shape) - ndim]
        self._page_shape: Shape = self.shape[len(self.shape) - ndim :]
        page_axes = self._keyframe.axes
        self._rows = page_axes.index("Y") if "Y" in page_axes and len(page_axes) == ndim else None
        self._linear = (
            None
            if series.dataoffset is None
            else self._open_linear(series.dataoffset, raw_dtype.newbyteorder(self._keyframe.parent.byteorder))
        )
        segments = self._keyframe.chunked[self._rows] if self._rows is not None else 1
        self.splits_rows = self._linear is not None or segments > 1

    def _open_linear(self, offset: int, raw_dtype: np.dtype[Any]) -> LinearReader:
        # The pages of a multi-file OME-TIFF may lie in another file than the one that was named. And of
        # ImageJ's and tifffile's one-directory stacks the directory describes the first plane only.
        path = str(self._pages[0].parent.filehandle.path)
        needed, size = offset + prod(self.shape) * raw_dtype.itemsize, Path(path).stat().st_size
        if needed > size:
            raise InputError(
                "this TIFF is cut short",
                where=path,
                expected=f"at least {needed:,} bytes for shape {self.shape}",
                found=f"{size:,} bytes",
                fix="copy or export it again",
            )
        return LinearReader(
            partial(open_plain, path),
            offset=offset,
            shape=self.shape,
            raw_dtype=raw_dtype,
            forward_only=False,
        )

    def read(self, box: Box) -> NDArray[Any]:
        if self._linear is not None:
            return self._linear.read(box)
        outer = len(self._outer)
        out = np.empty(box.shape, self.dtype)
        inside = Box(box.lower[outer:], box.upper[outer:])
        for index in np.ndindex(*box.shape[:outer]):
            position = tuple(i + low for i, low in zip(index, box.lower))
            page = self._pages[int(np.ravel_multi_index(position, self._outer))] if outer else self._pages[0]
            out[index] = self._read_page(page, inside)
        return out

    def _read_page(self, page: Any, box: Box) -> NDArray[Any]:
        rows, shape = self._rows, self._page_shape
        if rows is None or box.shape[rows] == shape[rows]:
            whole: NDArray[Any] = page.asarray().reshape(shape)[box.slices]
            return whole
        band = _read_rows(page, box.lower[rows], box.upper[rows])
        band = band.reshape(*shape[:rows], box.shape[rows], *shape[rows + 1 :])
        return band[(*box.slices[:rows], slice(None), *box.slices[rows + 1 :])]

    def close(self) -> None:
        if self._linear is not None:
            self._linear.close()
        self._file.close()


def _unreadable(path: str, pages: int, error: BaseException) -> InputError:
    return InputError(
        "this TIFF cannot be read",
        where=path,
        expected=f"an image in its {pages} pages",
        found=f"{type(error).__name__}: {error}",
        fix="copy or export it again",
    )


def _check_none_missing(pages: list[Any], where: str) -> None:
    """OME-XML and multi-file series may name planes that no file holds; tifffile would read zeros."""
    missing = [i for i, page in enumerate(pages) if page is None]
    if missing:
        raise InputError(
            "planes of this TIFF are missing",
            where=where,
            expected=f"{len(pages)} planes, as its metadata says",
            found=f"no plane {missing[0]}, {len(missing)} missing",
            fix="put all files of the series into one folder, or export it again",
        )


def _read_rows(page: Any, low: int, high: int) -> NDArray[Any]:
    """Rows low:high of a page in tifffile's normalised order (separate sample, depth, row, column, sample).

    Decodes only the strips or tiles that hold these rows.
    """
    keyframe = page.keyframe
    samples, depth, _, width, contiguous = keyframe.shaped
    out = np.zeros((samples, depth, high - low, width, contiguous), keyframe.dtype)
    tables = (
        {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        if keyframe.compression in _JPEG
        else {}
    )
    file = page.parent.filehandle
    for i, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts)):
        _, (s, d, y, x, _), shape = keyframe.decode(None, i, **tables)
        top, bottom = max(y, low), min(y + shape[1], high)
        if top >= bottom or count == 0:  # a sparse file leaves empty segments out: zeros
            continue
        file.seek(offset)
        segment, _, shape = keyframe.decode(file.read(count), i, **tables)
        deep, right = min(shape[0], depth - d), min(shape[2], width - x)
        part = segment[:deep, top - y : bottom - y, :right]
        out[s, d : d + deep, top - low : bottom - low, x : x + right] = part
    return out


def _choose_series(series: Any, dataset: str | None, path: str) -> Any:
    listed = ", ".join(f"{i} {s.name!r} {tuple(s.shape)}" for i, s in enumerate(series))
    if dataset is not None:
        for i, one in enumerate(series):
            if dataset in (str(i), one.name):
                return one
        raise InputError(
            "no such series in the file",
            where=path,
            expected=repr(dataset),
            found=listed,
            fix="use --dataset with the number of one of these",
        )
    if len(series) != 1:
        raise InputError(
            "the TIFF holds several series, of different shapes" if series else "the TIFF holds no images",
            where=path,
            expected="one series of pages of one shape",
            found=listed or None,
            fix="choose one by its number, such as --dataset 0" if series else None,
        )
    return series[0]
