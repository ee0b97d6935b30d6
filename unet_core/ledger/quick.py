"""XXH64 (Collet, github.com/Cyan4973/xxHash) by numba: a digest at memory speed, for large blocks of ids.

`digest_of` is blake2b, 1 GB/s: for ids of 4 bytes that would be as much work as labelling and writing them.
Against damage and mistakes, which is what ledgers are for, 64 good bits serve as well.

Import it only where it is used: numba compiles at the first call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_P1, _P2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
_P3, _P4 = np.uint64(0x165667B19E3779F9), np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)


def quick_digest(array: NDArray[Any]) -> str:
    """16 hex digits over the bytes of an array of integers, little-endian, in C order."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    words = data[: len(data) // 8 * 8].view(np.uint64)
    return f"{int(xxh64(words, data[8 * len(words) :], np.uint64(len(data)))):016x}"


def _turn(value: Any, bits: int) -> Any:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


turn = njit(nogil=True)(_turn)


def _round(lane: Any, word: Any) -> Any:
    return turn(lane + word * _P2, 31) * _P1


round_ = njit(nogil=True)(_round)


def _joined(state: Any, lane: Any) -> Any:
    return (state ^ round_(np.uint64(0), lane)) * _P1 + _P4


joined = njit(nogil=True)(_joined)


def _xxh64(words: NDArray[np.uint64], rest: NDArray[np.uint8], length: np.uint64) -> np.uint64:
    """Of `words` and then `rest`, fewer than 8 bytes; seed 0."""
    whole = words.size // 4 * 4
    state = _P5
    if whole > 0:
        a, b, c, d = _P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1
        for i in range(0, whole, 4):
            a, b = round_(a, words[i]), round_(b, words[i + 1])
            c, d = round_(c, words[i + 2]), round_(d, words[i + 3])
        state = turn(a, 1) + turn(b, 7) + turn(c, 12) + turn(d, 18)
        state = joined(joined(joined(joined(state, a), b), c), d)
    state += length
    for i in range(whole, words.size):
        state = turn(state ^ round_(np.uint64(0), words[i]), 27) * _P1 + _P4
    at = 0
    if rest.size >= 4:
        four = np.uint64(0)
        for k in range(4):
            four |= np.uint64(rest[k]) << np.uint64(8 * k)
        state = turn(state ^ (four * _P1), 23) * _P2 + _P3
        at = 4
    for k in range(at, rest.size):
        state = turn(state ^ (np.uint64(rest[k]) * _P5), 11) * _P1
    state = (state ^ (state >> np.uint64(33))) * _P2
    state = (state ^ (state >> np.uint64(29))) * _P3
    return state ^ (state >> np.uint64(32))


xxh64 = njit(nogil=True)(_xxh64)
