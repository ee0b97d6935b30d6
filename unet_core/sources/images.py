"""Single-plane image files: PNG, JPEG, BMP. Values are kept: 16 bit stays 16 bit, a palette's indices stay.

Pillow reads 16-bit colour PNG as 8 bit; imagecodecs keeps it, but expands palettes. So each does its part.
PNG's header: https://www.w3.org/TR/png-3/#11IHDR
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.sources.source import DECODING_ERRORS

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
_PNG_CHANNELS = {0: 1, 2: 3, _PALETTE: 1, 4: 2, 6: 4}  # by colour type
_PILLOW_CHANNELS = {"1": 1, "L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4}  # by mode; all 8 bit


class _Header(NamedTuple):
    height: int
    width: int
    channels: int
    dtype: str
    use_pillow: bool


class ImageFile:
    """One plane: axes yx, or yxc where it has several channels. A read decodes the whole plane."""

    voxel_size: tuple[float, ...] | None = None
    unit: str | None = None
    splits_rows = False
    forward_only = False

    def __init__(self, path: str) -> None:
        self.where = path
        header = _png_header(path) if Path(path).suffix.lower() == ".png" else _pillow_header(path)
        colour = header.channels > 1
        self._header = header
        self.dtype: np.dtype[Any] = np.dtype(header.dtype)
        self.shape: Shape = (header.height, header.width, *([header.channels] if colour else []))
        self.axes: str | None = "yxc" if colour else "yx"

    def read(self, box: Box) -> NDArray[Any]:
        if self._header.use_pillow:
            with Image.open(self.where) as image:
                plane = np.asarray(image)
        else:
            plane = imagecodecs.png_decode(Path(self.where).read_bytes())
        # A PNG's tRNS chunk makes the decoder add an alpha channel that the file does not store.
        plane = plane.reshape(*self.shape[:2], -1)[..., : self._header.channels].reshape(self.shape)
        data: NDArray[Any] = plane[box.slices].astype(self.dtype, copy=False)
        return data

    def close(self) -> None:
        """Nothing stays open between reads."""


def _png_header(path: str) -> _Header:
    with Path(path).open("rb") as file:
        head = file.read(33)
        size = file.seek(0, 2)
        file.seek(max(0, size - 12))
        tail = file.read()
    if len(head) < 33 or not head.startswith(_SIGNATURE) or head[12:16] != b"IHDR":
        raise InputError("this is not a PNG file", where=path, found=f"it starts with {head[:8]!r}")
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    if tail[4:8] != b"IEND":
        raise InputError(
            "this PNG file is cut short",
            where=path,
            expected="an IEND chunk at its end",
            found=f"{size:,} bytes without one",
            fix="copy or export it again",
        )
    if colour not in _PNG_CHANNELS:
        raise InputError("this PNG file has an unknown colour type", where=path, found=colour)
    use_pillow = colour == _PALETTE or depth < 8
    return _Header(height, width, _PNG_CHANNELS[colour], "u2" if depth == 16 else "u1", use_pillow)


def _pillow_header(path: str) -> _Header:
    try:
        with Image.open(path) as image:
            (width, height), mode = image.size, image.mode
    except (*DECODING_ERRORS, Image.DecompressionBombError) as error:
        raise InputError("this image file cannot be read", where=path, found=str(error)) from None
    if mode not in _PILLOW_CHANNELS:
        raise InputError(
            "this kind of image is not read",
            where=path,
            expected="grey, palette, RGB or RGBA",
            found=f"Pillow mode {mode}",
            fix="export it as TIFF",
        )
    return _Header(height, width, _PILLOW_CHANNELS[mode], "u1", True)
