"""Digests of what blocks write: 16 hex digits each, for the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray


def digest_of(*arrays: NDArray[Any]) -> str:
    """16 hex digits over the voxels of a block's results, for the ledger. A zero has no sign here."""
    state = hashlib.blake2b(digest_size=8)
    for array in arrays:
        # Chunks that equal the fill value are not stored, and -0.0 equals 0.0.
        same = array + array.dtype.type(0) if array.dtype.kind == "f" else array
        state.update(np.ascontiguousarray(same).data)
    return state.hexdigest()


def quick_digest(array: NDArray[Any]) -> str:
    """16 hex digits over the bytes of an array, in C order, at memory speed: for large blocks of ids.

    `digest_of` is blake2b, 1 GB/s: for ids of 4 bytes that would be as much work as to label and write them.
    Against damage and mistakes, which is what ledgers are for, XXH64 serves as well.
    """
    return xxhash.xxh64(np.ascontiguousarray(array).data).hexdigest()


def object_digest(data: bytes) -> bytes:
    """The digest of a plain object, such as a file of a table."""
    return hashlib.blake2b(data, digest_size=8).digest()


def digest_of_objects(digests: Mapping[str, bytes]) -> str:
    """16 hex digits over plain objects, by key, for the ledger of a stage that writes no arrays."""
    state = hashlib.blake2b(digest_size=8)
    for key in sorted(digests):
        state.update(key.encode() + b"\0" + digests[key])
    return state.hexdigest()
