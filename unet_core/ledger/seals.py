"""A sealed segment: a file that tells which blocks are done in its first bytes, and their digests after.

    checksum | head | a bit per block | checksum | digests of those done | absent input chunks of those done

Who only asks which blocks are done reads the first part: 32 kB for 2^18 blocks.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_core.ledger.flags import packed, packed_size, unpacked

# Blocks. A seal writes its segment anew: smaller ones would be more files to open, larger ones more bytes.
SEGMENT = 2**18
_CHECK = 16  # bytes of a checksum
# What it is, first block, blocks, blocks of the stage, absent chunks, empty blocks.
_HEAD = struct.Struct("<8sQQQQQ")
_MAGIC = b"seal-1\0\0"
# Stands for absent chunks where a block was left out: it read none, so none can have been absent.
EMPTY = 2**32 - 1
_ITEM = np.dtype("<u8").itemsize + np.dtype("<u4").itemsize


class DamagedSealError(ValueError):
    """These bytes are not those of a seal."""


@dataclass(frozen=True)
class Part:
    """Facts of the blocks of one segment, from block `start` on; digest and absent count where done."""

    start: int
    done: NDArray[np.bool_]
    digest: NDArray[np.uint64]
    absent: NDArray[np.uint32]

    @classmethod
    def empty(cls, start: int, size: int) -> Part:
        return cls(start, np.zeros(size, np.bool_), np.zeros(size, np.uint64), np.zeros(size, np.uint32))


@dataclass(frozen=True)
class Head:
    """The first part of a seal. `absent` is the sum over its blocks; `empty` of them were left out."""

    start: int
    size: int
    count: int
    absent: int
    empty: int
    bits: NDArray[np.uint8]

    @property
    def length(self) -> int:
        """Bytes of the first part."""
        return _CHECK + _HEAD.size + self.bits.size


@dataclass(frozen=True, order=True)
class Name:
    """A seal's name, EPOCH-NUMBER: the greatest that counts is the newest."""

    epoch: int
    number: int

    _PATTERN = re.compile(r"(\d{8})-(\d{8})")

    def __str__(self) -> str:
        return f"{self.epoch:08d}-{self.number:08d}"

    @classmethod
    def parse(cls, text: str) -> Name | None:
        match = cls._PATTERN.fullmatch(text)
        return None if match is None else cls(int(match[1]), int(match[2]))


def head_size() -> int:
    """Bytes of the first part of the largest segment."""
    return _CHECK + _HEAD.size + packed_size(SEGMENT)


def encode(part: Part, *, count: int) -> bytes:
    """The seal of a segment of a stage of `count` blocks."""
    bits = packed(part.done)
    absent = part.absent[part.done]
    read = absent[absent != EMPTY]
    total, empty = int(read.sum(dtype=np.uint64)), absent.size - read.size
    head = _HEAD.pack(_MAGIC, part.start, part.done.size, count, total, empty)
    body = part.digest[part.done].astype("<u8").tobytes() + absent.astype("<u4").tobytes()
    return checked(head + bits.tobytes()) + checked(body)


def decode_head(data: bytes) -> Head:
    """The first part; `data` may go on.

    Raises
    ------
    DamagedSealError
        A checksum does not agree.
    """
    try:
        magic, start, size, count, absent, empty = _HEAD.unpack_from(data, _CHECK)
    except struct.error:
        raise DamagedSealError from None
    stop = _CHECK + _HEAD.size + packed_size(size)
    if magic != _MAGIC or stop > len(data):
        raise DamagedSealError
    unchecked(data[:stop])
    bits = np.frombuffer(data[stop - packed_size(size) : stop], np.uint8)
    return Head(start, size, count, absent, empty, bits)


def decode(data: bytes) -> tuple[Head, Part]:
    """All of a seal.

    Raises
    ------
    DamagedSealError
        A checksum does not agree.
    """
    head = decode_head(data)
    body = unchecked(data[head.length :])
    done = unpacked(head.bits, head.size)
    number = int(done.sum())
    if len(body) != number * _ITEM:
        raise DamagedSealError
    part = Part.empty(head.start, head.size)
    part.done[:] = done
    part.digest[done] = np.frombuffer(body, "<u8", number)
    part.absent[done] = np.frombuffer(body, "<u4", number, 8 * number)
    return head, part


def checked(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECK).digest() + data


def unchecked(data: bytes) -> bytes:
    """What `checked` was given; DamagedSealError if these are other bytes."""
    if len(data) < _CHECK or checked(data[_CHECK:]) != data:
        raise DamagedSealError
    return data[_CHECK:]
