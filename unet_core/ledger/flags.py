"""One bit for each block of a stage: a hundred million blocks are 12.5 MB, and are never listed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LISTED = 2**9  # bytes of flags whose indices are listed at a time


class Flags:
    """`count` flags, all false at first; read like a numpy array of bool."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._bits = np.zeros(packed_size(count), np.uint8)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bool:
        if not 0 <= index < self._count:
            raise IndexError(f"block {index} of {self._count}")
        return bool(self._bits[index >> 3] >> (index & 7) & 1)

    def __setitem__(self, index: int, flag: bool) -> None:
        if not 0 <= index < self._count:
            raise IndexError(f"block {index} of {self._count}")
        byte, bit = int(self._bits[index >> 3]), 1 << (index & 7)
        self._bits[index >> 3] = byte | bit if flag else byte & ~bit

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of them, a byte each; for stages that are known to be small."""
        return unpacked(self._bits, self._count).astype(dtype or np.bool_)

    def sum(self) -> int:
        return int(np.bitwise_count(self._bits).sum(dtype=np.int64))

    def any(self) -> bool:
        return bool(self._bits.any())

    def all(self) -> bool:
        return self.sum() == self._count

    def part(self, start: int, stop: int) -> NDArray[np.bool_]:
        """The flags of blocks [start, stop), a byte each; `start` is a multiple of 8."""
        return unpacked(self._bits[start >> 3 : packed_size(stop)], stop - start)

    def put(self, start: int, packed: NDArray[np.uint8]) -> None:
        """Replace flags from `start` on, a multiple of 8, by packed ones."""
        self._bits[start >> 3 : (start >> 3) + packed.size] = packed

    def indices(self) -> Iterator[int]:
        """The blocks whose flag is true, ascending."""
        return self._listed(0)

    def missing(self) -> Iterator[int]:
        """The blocks whose flag is false, ascending."""
        return self._listed(255)

    def _listed(self, inverted: int) -> Iterator[int]:
        for start in range(0, self._bits.size, _LISTED):
            bits = self._bits[start : start + _LISTED] ^ np.uint8(inverted)
            if bits.any():
                left = self._count - 8 * start
                yield from (8 * start + np.flatnonzero(unpacked(bits, min(left, 8 * bits.size)))).tolist()

    @classmethod
    def of(cls, count: int, indices: Iterable[int]) -> Flags:
        """True for these blocks."""
        flags = cls(count)
        for index in indices:
            flags[index] = True
        return flags


def packed_size(count: int) -> int:
    """Bytes of so many flags."""
    return -(-count // 8)


def packed(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(flags, bitorder="little")


def unpacked(bits: NDArray[np.uint8], count: int) -> NDArray[np.bool_]:
    return np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
