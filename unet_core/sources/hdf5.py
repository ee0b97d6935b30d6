"""HDF5: one dataset by name, its voxel size from `element_size_um` (ilastik, PlantSeg, FIB-SEM exports)."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.sources.source import DECODING_ERRORS, choose_dataset, usable_dtype


class Hdf5Array:
    """One dataset of an HDF5 file. Memory of a read: the box, and HDF5's chunk cache."""

    axes: str | None = None
    splits_rows = True
    forward_only = False

    def __init__(self, path: str, dataset: str | None) -> None:
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise InputError(
                "this is not an HDF5 file, or it is cut short",
                where=path,
                found=str(error),
                fix="copy or export it again",
            ) from None
        try:
            name = choose_dataset(_datasets(self._file), _plain_name(dataset), where=path, what="dataset")
            self.where = f"{path}:{name}"
            self._dataset = self._file[name]
            self.shape: Shape = tuple(self._dataset.shape)
            self.dtype = usable_dtype(self._dataset.dtype, where=self.where)
            _check_filters(self._dataset, self.where)
            self.voxel_size = _element_size(self._dataset, self.where)
        except InputError:
            self._file.close()
            raise
        except DECODING_ERRORS as error:
            self._file.close()
            raise InputError("this HDF5 file cannot be read", where=path, found=str(error)) from None
        self.unit = "micrometer" if self.voxel_size else None

    def read(self, box: Box) -> NDArray[Any]:
        data: NDArray[Any] = np.asarray(self._dataset[box.slices])
        return data.astype(self.dtype, copy=False)

    def close(self) -> None:
        self._file.close()


def _plain_name(dataset: str | None) -> str | None:
    return None if dataset is None else dataset.strip("/")


def _datasets(file: Any) -> list[tuple[str, Shape]]:
    """Name and shape of every dataset; soft and external links are not followed."""
    found: list[tuple[str, Shape]] = []

    def note(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found.append((name, tuple(node.shape or ())))

    file.visititems(note)
    return found


def _check_filters(dataset: Any, where: str) -> None:
    """A filter that is not installed would fail at the first chunk, in the middle of the work."""
    properties = dataset.id.get_create_plist()
    for i in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(i)
        if not h5py.h5z.filter_avail(code):
            raise InputError(
                "the dataset is compressed by a filter that is not installed",
                where=where,
                expected="gzip, lzf, szip or no compression",
                found=f"filter {code} ({label.decode(errors='replace')})",
                fix="rewrite the dataset: h5repack -f GZIP=1 IN.h5 OUT.h5",
            )


def _element_size(dataset: Any, where: str) -> tuple[float, ...] | None:
    """`element_size_um`, z, y, x in micrometer."""
    if "element_size_um" not in dataset.attrs:
        return None
    value = dataset.attrs["element_size_um"]
    try:
        sizes = tuple(float(v) for v in np.ravel(value))
    except (TypeError, ValueError):
        sizes = ()
    if len(sizes) != 3 or not all(np.isfinite(s) and s > 0 for s in sizes):
        raise InputError(
            "the dataset's element_size_um is not a voxel size",
            where=where,
            expected="three positive numbers: z, y, x in micrometer",
            found=repr(value),
            fix="correct the attribute",
        )
    return sizes
