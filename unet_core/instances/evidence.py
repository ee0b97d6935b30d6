"""What blocks leave for one another: a few arrays in one object of the store, compressed and checked.

    OUTPUT/evidence/KIND/000000/INDEX      checksum, size, then by zstd: header (JSON), arrays

Kinds are listed where they are written. Everything that a merge was decided by is kept, so that it can be
decided anew without the network, and without the voxels.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numcodecs.zstd import compress, decompress
from numpy.typing import NDArray

from unet_core.errors import DataError
from unet_core.ledger import object_digest
from unet_core.volumes import Store

Arrays = Mapping[str, NDArray[Any]]

FOLDER = "evidence"
_GROUP = 4096  # objects in one folder
_CHECK, _SIZE = 8, 8  # bytes
_AHEAD = 16  # objects that are read while others are worked on
_LEVEL = 1  # of zstd


class Evidence(Protocol):
    """Where evidence is kept: in a store, or in this process's memory."""

    def read(self, kind: str, index: int) -> Arrays:
        """What block `index` left of this kind."""

    def write(self, kind: str, index: int, arrays: Arrays) -> None:
        """Leave it, over what was there."""

    def read_all(self, kind: str, indices: Iterable[int]) -> Iterator[Arrays]:
        """What these blocks left, in their order."""


@dataclass
class InMemory:
    """Evidence of a volume that is labelled within one process."""

    kept: dict[tuple[str, int], Arrays] = field(default_factory=dict)

    def read(self, kind: str, index: int) -> Arrays:
        return self.kept[kind, index]

    def write(self, kind: str, index: int, arrays: Arrays) -> None:
        self.kept[kind, index] = arrays

    def read_all(self, kind: str, indices: Iterable[int]) -> Iterator[Arrays]:
        return (self.kept[kind, index] for index in indices)


@dataclass(frozen=True)
class InStore:
    """Evidence in the output that it belongs to. Made anew for each block that writes some.

    Attributes
    ----------
    source, sourced
        Another output, and the kinds that are read from there, because it is merged anew.
    digests
        Of the objects written, by key, for the ledger.
    """

    store: Store
    source: Store | None = None
    sourced: frozenset[str] = frozenset()
    digests: dict[str, bytes] = field(default_factory=dict)

    def read(self, kind: str, index: int) -> Arrays:
        """See `Evidence`.

        Raises
        ------
        DataError
            It is not there, or damaged.
        """
        key = key_of(kind, index)
        store = self.source if self.source is not None and kind in self.sourced else self.store
        data = store.read(key)
        if data is None:
            raise DataError("what a block left is not there", where=f"{store.url}/{key}", fix=_MEND)
        return unpack(data, where=f"{store.url}/{key}")

    def write(self, kind: str, index: int, arrays: Arrays) -> None:
        key, data = key_of(kind, index), pack(arrays)
        self.store.write(key, data)
        self.digests[key] = object_digest(data)

    def read_all(self, kind: str, indices: Iterable[int]) -> Iterator[Arrays]:
        """See `Evidence`; some are read ahead, in threads: a remote store takes its time for each."""
        pending: deque[Future[Arrays]] = deque()
        with ThreadPoolExecutor(_AHEAD) as pool:
            for index in indices:
                pending.append(pool.submit(self.read, kind, index))
                if len(pending) >= _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


_MEND = "unet-flows verify OUTPUT --repair, then the command that made it"


def key_of(kind: str, index: int) -> str:
    """The object's key in the output's store."""
    return f"{folder_of(kind)}{index // _GROUP:06d}/{index}"


def folder_of(kind: str) -> str:
    """The folder of all objects of a kind; ends in "/"."""
    return f"{FOLDER}/{kind}/"


def pack(arrays: Arrays) -> bytes:
    """Arrays as bytes; the same arrays give the same bytes."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = json.dumps([[name, a.dtype.str, list(a.shape)] for name, a in whole.items()]).encode()
    parts = [len(header).to_bytes(4, "little"), header, *(a.tobytes() for a in whole.values())]
    content = b"".join(parts)
    body = len(content).to_bytes(_SIZE, "little") + bytes(compress(content, _LEVEL))
    return _checksum(body) + body


def unpack(data: bytes, *, where: str = "") -> dict[str, NDArray[Any]]:
    """What `pack` was given.

    Raises
    ------
    DataError
        The bytes are not those that `pack` made.
    """
    body = data[_CHECK:]
    if _checksum(body) != data[:_CHECK]:
        raise DataError("what a block left is damaged", where=where, fix=_MEND)
    content = bytearray(int.from_bytes(body[:_SIZE], "little"))
    decompress(body[_SIZE:], content)
    start = 4 + int.from_bytes(content[:4], "little")
    arrays = {}
    for name, dtype, shape in json.loads(content[4:start]):
        kind, count = np.dtype(dtype), int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(content, kind, count, start).reshape(shape)
        start += count * kind.itemsize
    return arrays


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECK).digest()
