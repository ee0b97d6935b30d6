"""Which reader a path needs; series of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from unet_core.errors import InputError
from unet_core.paths import absolute
from unet_core.sources.axes import resolve_axes
from unet_core.sources.files import files_of, kind_of, readable
from unet_core.sources.hdf5 import Hdf5Array
from unet_core.sources.images import ImageFile
from unet_core.sources.npz import NpyArray
from unet_core.sources.source import Source, SourceSpec, Stored
from unet_core.sources.stack import Stack
from unet_core.sources.tiff import TiffArray

_STACKABLE = ("TIFF", "image")


def open_source(paths: Sequence[str], *, dataset: str | None = None, axes: str | None = None) -> Source:
    """Open a volume that is not Zarr. Reads headers, no voxels; every file of a series is looked at.

    Parameters
    ----------
    paths
        One TIFF, HDF5, NPZ, NPY or image file; or several TIFF or image files, a folder of them, or a
        quoted pattern such as "slices/*.png": these stack, sorted naturally, along z.
    dataset
        Name of the HDF5 dataset or NPZ array, number of the TIFF series; None where there is only one.
    axes
        What the array's dimensions are, in its own order, such as "zyx" or "yxc"; overrides the file.
        For a series of files the first letter is the axis along which the files stack.

    Raises
    ------
    InputError
        No such file, an unknown or mixed kind, a file that is corrupt or cut short, a dataset that is
        not there or not named, axes that are wrong or cannot be guessed, an empty array, a data type
        that a volume cannot have.
    """
    files = files_of(paths)
    kind = _common_kind(files)
    stored = _open_stored(kind, files, dataset)
    try:
        stored_axes = resolve_axes(axes, stored.axes, stored.shape, where=stored.where)
        if 0 in stored.shape:
            raise InputError("this array is empty", where=stored.where, found=f"shape {stored.shape}")
    except InputError:
        stored.close()
        raise
    spec = SourceSpec(tuple(str(absolute(p)) for p in paths), dataset, axes)
    folder = len(files) > 1
    name = absolute(files[0]).parent.name if folder else Path(files[0]).name.partition(".")[0]
    return Source(spec=spec, name=name, files=files, stored=stored, stored_axes=stored_axes)


def _open_stored(kind: str, files: Sequence[str], dataset: str | None) -> Stored:
    if kind == "HDF5":
        return Hdf5Array(files[0], dataset)
    if kind == "NPZ":
        return NpyArray(files[0], dataset)
    if kind == "image" and dataset is not None:
        raise InputError("image files have no datasets", where=files[0], found=f"--dataset {dataset}")
    open_one: Callable[[str], Stored] = ImageFile if kind == "image" else partial(TiffArray, dataset=dataset)
    return open_one(files[0]) if len(files) == 1 else Stack(files, open_one)


def _common_kind(files: Sequence[str]) -> str:
    kinds = {kind_of(f): f for f in files}
    if "" in kinds:
        raise InputError(
            "this kind of file is not read",
            where=kinds[""],
            expected=readable(),
            found=Path(kinds[""]).suffix or "no suffix",
        )
    if len(kinds) > 1:
        raise InputError(
            "the sources are of different kinds",
            expected="files of one kind",
            found=", ".join(f"{kind}: {Path(path).name}" for kind, path in sorted(kinds.items())),
            fix="ingest each kind on its own",
        )
    (kind,) = kinds
    if len(files) > 1 and kind not in _STACKABLE:
        raise InputError(
            f"only one {kind} file can be ingested at a time",
            where=files[0],
            expected="one file, or a series of TIFF or image files",
            found=f"{len(files)} files",
        )
    return kind
