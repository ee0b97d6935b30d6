"""Is a TIFF file whole? Walks its directories and compares every offset with the file's size; reads no pixel.

tifffile stops at a broken directory with a log line and goes on with fewer pages, so a file cut short looks
like a shorter stack. TIFF 6.0, section 2: https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_SIZES |= {16: 8, 17: 8, 18: 8}  # BigTIFF
_UNSIGNED = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_OFFSETS = {273, 324}  # StripOffsets, TileOffsets
_COUNTS = {279, 325}  # StripByteCounts, TileByteCounts


@dataclass(frozen=True)
class _Layout:
    """Sizes that differ between TIFF (32-bit offsets) and BigTIFF (64-bit)."""

    order: str  # "<" or ">"
    count: str  # struct code of the number of tags
    entry: str  # struct codes of a tag: code, type, number of values
    offset: str  # struct code of an offset

    def unpack(self, codes: str, data: bytes) -> tuple[Any, ...]:
        return struct.unpack(self.order + codes, data[: struct.calcsize(self.order + codes)])


def check_complete(path: str) -> int:
    """The number of pages of a TIFF whose directories, tag values and image data all lie inside the file.

    Raises
    ------
    InputError
        Not a TIFF, cut short, or directories that form a loop.
    """
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        layout, offset = _read_header(file, path)
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise InputError("this TIFF's pages form a loop", where=path, found=f"at byte {offset:,}")
            seen.add(offset)
            offset = _check_page(file, layout, offset, size, f"{path}, page {len(seen) - 1}")
    if not seen:
        raise InputError("this TIFF has no pages", where=path)
    return len(seen)


def _read_header(file: IO[bytes], path: str) -> tuple[_Layout, int]:
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    magic = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else None
    if order and magic == 42:
        layout = _Layout(order, "H", "HHI", "I")
        return layout, layout.unpack("I", head[4:])[0]
    if order and magic == 43 and len(head) == 16:
        layout = _Layout(order, "Q", "HHQ", "Q")
        return layout, layout.unpack("Q", head[8:])[0]
    raise InputError(
        "this is not a TIFF file",
        where=path,
        expected="II or MM, then 42 or 43",
        found=f"it starts with {head[:4]!r}",
        fix="is it of another kind, or damaged? copy or export it again",
    )


def _check_page(file: IO[bytes], layout: _Layout, offset: int, size: int, where: str) -> int:
    """Check one directory; returns the offset of the next one, 0 after the last."""
    width = struct.calcsize(f"{layout.order}{layout.offset}")
    count_width = struct.calcsize(f"{layout.order}{layout.count}")
    entry_width = struct.calcsize(f"{layout.order}{layout.entry}") + width
    _inside(offset + count_width, size, where)
    file.seek(offset)
    (tags,) = layout.unpack(layout.count, file.read(count_width))
    _inside(offset + count_width + tags * entry_width + width, size, where)
    directory = file.read(tags * entry_width + width)
    starts = counts = None
    for i in range(tags):
        entry = directory[i * entry_width : (i + 1) * entry_width]
        code, kind, number = layout.unpack(layout.entry, entry)
        value, length = entry[-width:], _TYPE_SIZES.get(kind, 1) * number
        if length > width:
            _inside(layout.unpack(layout.offset, value)[0] + length, size, where)
        if code in _OFFSETS:
            starts = _values(file, layout, kind, number, value)
        elif code in _COUNTS:
            counts = _values(file, layout, kind, number, value)
    if starts is not None and starts.size:
        ends = starts + counts if counts is not None and counts.size == starts.size else starts
        _inside(int(ends.max()), size, where)
    following: int = layout.unpack(layout.offset, directory[-width:])[0]
    return following


def _values(
    file: IO[bytes], layout: _Layout, kind: int, number: int, value: bytes
) -> NDArray[np.uint64] | None:
    if kind not in _UNSIGNED:
        return None
    dtype = np.dtype(layout.order + _UNSIGNED[kind])
    if dtype.itemsize * number > len(value):
        file.seek(layout.unpack(layout.offset, value)[0])
        value = file.read(dtype.itemsize * number)
    return np.frombuffer(value, dtype, count=number).astype(np.uint64)


def _inside(end: int, size: int, where: str) -> None:
    if end > size:
        raise InputError(
            "this TIFF is cut short",
            where=where,
            expected=f"at least {end:,} bytes",
            found=f"{size:,} bytes",
            fix="copy or export it again",
        )
