"""Several files of one shape and data type as one array: img1, img2, ..., img10, in this order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.sources.source import Stored


def natural_order(name: str) -> list[str | int]:
    """Sorting key by which img2 comes before img10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


class Stack:
    """Files stacked along a new first axis; each is opened when one of its voxels is needed.

    Planes stack along z. Where each file holds more than planes, the first axis has to be named.

    Raises
    ------
    InputError
        A file cannot be opened, or differs from the first one in shape or data type; names it.
    """

    forward_only = False

    def __init__(self, paths: Sequence[str], open_one: Callable[[str], Stored]) -> None:
        self._paths = list(paths)
        self._open = open_one
        first = open_one(paths[0])
        first.close()
        for path in paths[1:]:
            self._check_like(first, path)
        self.where = f"{paths[0]} ... {paths[-1]} ({len(paths)} files)"
        self.shape = (len(paths), *first.shape)
        self.dtype: np.dtype[Any] = first.dtype
        self.axes = f"z{first.axes}" if first.axes and not {"t", "z"} & set(first.axes) else None
        self.splits_rows = first.splits_rows
        # A single plane does not say how far apart the planes lie.
        self.voxel_size = None if self.axes else first.voxel_size
        self.unit = None if self.axes else first.unit

    def _check_like(self, first: Stored, path: str) -> None:
        other = self._open(path)
        other.close()
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            raise InputError(
                "the files of this series are not alike",
                where=path,
                expected=f"shape {first.shape}, {first.dtype}, as in {first.where}",
                found=f"shape {other.shape}, {other.dtype}",
                fix="leave this file out, or ingest it on its own",
            )

    def read(self, box: Box) -> NDArray[Any]:
        inside = Box(box.lower[1:], box.upper[1:])
        out = np.empty(box.shape, self.dtype)
        for i in range(box.lower[0], box.upper[0]):
            member = self._open(self._paths[i])
            try:
                out[i - box.lower[0]] = member.read(inside)
            finally:
                member.close()
        return out

    def close(self) -> None:
        """Nothing stays open between reads."""
