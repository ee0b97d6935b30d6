"""Which blocks of a stage are done: one empty object per block, sealed into one file from time to time.

    OUTPUT/.unet-flows/ledger/STAGE/blocks/EPOCH/GROUP/INDEX-DIGEST[-ABSENT]
                                    sealed/EPOCH       what was done before, in one file

An entry is written after its block's data, by the block's one writer, so that "done" is never a guess
from chunks that exist: chunks that hold only background do not. Reading a ledger is one listing and one
file, 13 bytes a block.

A new owner of the output seals what it finds. From then on, entries of earlier epochs that are not in the
seal do not count: a late owner may still write them, in vain.

    seal of epoch 4:  blocks 0 1 2 3 5
    blocks/00000003/  6          written late: ignored
    blocks/00000004/  4 7        counts
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.ledger.lease import require_epoch
from unet_core.ledger.record import FOLDER
from unet_core.volumes import Store

_ENTRY = re.compile(r"(?P<epoch>\d{8})/\d{6}/(?P<index>\d+)-(?P<digest>[0-9a-f]{16})(?:-(?P<absent>\d+))?")
_GROUP = 4096  # entries in one folder: parallel file systems dislike large ones
_SEAL = np.dtype([("done", "?"), ("absent", "<u4"), ("digest", "<u8")])
_CHECK = 16  # bytes of checksum before a seal's array


@dataclass(frozen=True)
class Entries:
    """One element per block: `done`; `digest` of its data; `absent` input chunks it read as fill value."""

    done: NDArray[np.bool_]
    digest: NDArray[np.uint64]
    absent: NDArray[np.uint32]


@dataclass(frozen=True)
class Ledger:
    """The finished blocks of one stage of `count` blocks. Only the owner of `epoch` writes.

    Raises
    ------
    InputError
        On reading: entries of blocks that the stage does not have, a seal that is damaged.
    LostLeaseError
        On writing: another run has taken over.
    """

    store: Store
    stage: str
    count: int
    epoch: int = 0

    def read(self) -> Entries:
        """All entries that count."""
        epoch = np.zeros(self.count, np.uint32)
        digest, absent = np.zeros(self.count, np.uint64), np.zeros(self.count, np.uint32)
        # Loose entries before the seal: whoever reads while they are being sealed sees all, some twice.
        for _, entry in self._loose():
            index, of_epoch = int(entry["index"]), int(entry["epoch"])
            if of_epoch >= epoch[index]:
                epoch[index] = of_epoch
                digest[index], absent[index] = int(entry["digest"], 16), int(entry["absent"] or 0)
        sealed_epoch, seal = self._seal()
        done = (epoch > 0) & (epoch >= sealed_epoch)
        if seal is not None:
            older = seal["done"] & ~done
            digest[older], absent[older] = seal["digest"][older], seal["absent"][older]
            done |= older
        return Entries(done, digest, absent)

    def committed(self, indices: Collection[int]) -> set[int]:
        """Which of these blocks are done."""
        done = self.read().done
        return {index for index in indices if done[index]}

    def commit(self, index: int, digest: str, *, absent: int = 0) -> None:
        """Record a block as done. Call it last: after its data is in the store."""
        require_epoch(self.store, self.epoch)
        suffix = f"-{absent}" if absent else ""
        self.store.write(f"{self._folder(self.epoch)}/{index // _GROUP:06d}/{index}-{digest}{suffix}", b"")

    def seal(self, *, without: Collection[int] = ()) -> Entries:
        """Put all entries that count into one file and drop them; `without` blocks are open again."""
        entries = self.read()
        entries.done[list(without)] = False
        array = np.zeros(self.count, _SEAL)
        for name in ("done", "absent", "digest"):
            array[name] = getattr(entries, name)
        buffer = BytesIO()
        np.save(buffer, array, allow_pickle=False)
        require_epoch(self.store, self.epoch)
        # The seal before this one stays until the next: after a power cut this one may be empty.
        last = max((epoch for epoch in self._sealed() if epoch < self.epoch), default=0)
        self.store.write(self._sealed_key(self.epoch), _checked(buffer.getvalue()), durable=True)
        dropped = set(without)
        self.store.delete(
            key
            for key, entry in self._loose()
            if int(entry["epoch"]) < self.epoch
            or (
                int(entry["epoch"]) == self.epoch
                and (int(entry["index"]) in dropped or entries.done[int(entry["index"])])
            )
        )
        self.store.delete(self._sealed_key(epoch) for epoch in self._sealed() if epoch < last)
        return entries

    @property
    def _prefix(self) -> str:
        return f"{FOLDER}/ledger/{self.stage}"

    def _folder(self, epoch: int) -> str:
        return f"{self._prefix}/blocks/{epoch:08d}"

    def _sealed_key(self, epoch: int) -> str:
        return f"{self._prefix}/sealed/{epoch:08d}"

    def _loose(self) -> Iterator[tuple[str, re.Match[str]]]:
        """Keys of the entries that are not sealed, taken apart."""
        for key in self.store.keys(f"{self._prefix}/blocks"):
            entry = _ENTRY.fullmatch(key.removeprefix(f"{self._prefix}/blocks/"))
            if entry is None:
                continue  # what file systems leave behind, such as .nfs0001
            if int(entry["index"]) >= self.count:
                raise self._disagreement(key, f"block {entry['index']}")
            yield key, entry

    def _sealed(self) -> list[int]:
        names = (key.rsplit("/", 1)[1] for key in self.store.keys(f"{self._prefix}/sealed"))
        return [int(name) for name in names if name.isdecimal()]

    def _seal(self) -> tuple[int, NDArray[Any] | None]:
        # A new owner may replace the seal between the listing and the reading.
        while epoch := max(self._sealed(), default=0):
            data = self.store.read(self._sealed_key(epoch))
            if data is not None:
                return epoch, self._unsealed(epoch, data)
        return 0, None

    def _unsealed(self, epoch: int, data: bytes) -> NDArray[Any]:
        if _checked(data[_CHECK:]) != data:
            raise InputError(
                "this ledger is damaged",
                where=f"{self.store.url}/{self._sealed_key(epoch)}",
                fix="delete this file: the blocks that it alone says are done will be done again",
            )
        array: NDArray[Any] = np.load(BytesIO(data[_CHECK:]), allow_pickle=False)
        if array.dtype != _SEAL or array.shape != (self.count,):
            raise self._disagreement(self._sealed_key(epoch), f"{array.size} blocks")
        return array

    def _disagreement(self, key: str, found: str) -> InputError:
        return InputError(
            "the ledger does not belong to this plan",
            where=f"{self.store.url}/{key}",
            expected=f"blocks 0 to {self.count - 1}",
            found=found,
            fix="choose another --to, or --restart",
        )


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


def _checked(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECK).digest() + data
