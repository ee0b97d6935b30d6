"""Which blocks of a stage are done: one empty object per block, sealed into files of many from time to time.

    OUTPUT/.unet-flows/ledger/STAGE/blocks/EPOCH/GROUP/INDEX-DIGEST[-ABSENT]
                                    sealed/SEGMENT/EPOCH-NUMBER    what was done of 2^18 blocks, in one file
                                    fence/EPOCH                    which earlier seals count from then on

An entry is written after its block's data, by the block's one writer, so that "done" is never a guess
from chunks that exist: chunks that hold only background do not. Reading a ledger is one listing and the
first bytes of each segment; what it holds in memory is a bit per block.

Sealing writes the segments anew that were touched since, each under a new name, and deletes their entries
when the seal is durable. The seal before stays until the next: after a power cut the newest may be empty.

A new owner of the output seals what he finds and then raises a fence. From then on entries of earlier
epochs do not count, nor seals that the fence does not name: a late owner may still write either, in vain.

    fence 4 names:    segment 0: 00000003-00000002
    sealed/000000/    00000003-00000002     counts
                      00000003-00000003     written late: ignored
                      00000004-00000003     counts, and is the newest
    blocks/00000003/  6                     written late: ignored
    blocks/00000004/  4 7                   counts
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import ceil_div
from unet_core.ledger import seals
from unet_core.ledger.flags import Flags
from unet_core.ledger.lease import require_epoch
from unet_core.ledger.record import FOLDER
from unet_core.ledger.seals import DamagedSealError, Head, Name, Part
from unet_core.volumes import Store

_ENTRY = re.compile(r"(?P<epoch>\d{8})/\d{6}/(?P<index>\d+)-(?P<digest>[0-9a-f]{16})(?:-(?P<absent>\d+))?")
# Entries that follow one another are in one folder; parallel file systems dislike large folders, and all
# file systems many. Sealed before they are many, they never fill more than a few.
_GROUP, _FOLDERS = 4096, 64
_LOOSE = np.dtype([("index", "<u8"), ("epoch", "<u4"), ("absent", "<u4"), ("digest", "<u8")])
_KEPT = 2  # seals of a segment, and fences: the newest and the one before


@dataclass(frozen=True)
class Entries:
    """Which blocks are `done`, and how many `absent` input chunks they read as fill value.

    Of `empty` blocks among them nothing was to be computed.
    """

    done: Flags
    absent: int
    empty: int


@dataclass(frozen=True)
class _Fence:
    """Entries of earlier epochs do not count, nor seals of theirs that are not in `named`."""

    epoch: int = 0
    named: frozenset[tuple[int, Name]] = frozenset()

    def lets(self, segment: int, name: Name) -> bool:
        return name.epoch >= self.epoch or (segment, name) in self.named


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
        """Which blocks are done, by all entries that count."""
        # Entries before the fence, and that before the seals: whoever reads while others seal sees what was
        # moved at its old place, or its new one, or at both.
        loose, fence = self._loose(), self._fence()
        done, absent, empty = Flags(self.count), 0, 0
        sealed_epoch = np.zeros(ceil_div(self.count, seals.SEGMENT), np.uint32)
        for segment, names in self._sealed().items():
            newest = self._newest(segment, names, fence)
            if newest is not None:
                name, head = newest
                sealed_epoch[segment] = name.epoch
                done.put(head.start, head.bits)
                absent, empty = absent + head.absent, empty + head.empty
        for segment in _segments(loose):
            found = _counting(loose, segment, max(fence.epoch, int(sealed_epoch[segment])))
            for entry in found:
                index = int(entry["index"])
                if not done[index]:
                    done[index] = True
                    was_empty = int(entry["absent"]) == seals.EMPTY
                    absent, empty = absent + (0 if was_empty else int(entry["absent"])), empty + was_empty
        return Entries(done, absent, empty)

    def part(self, index: int) -> Part:
        """All that is known of the segment that holds block `index`: 13 bytes a block."""
        segment = index // seals.SEGMENT
        loose, fence = self._loose(), self._fence()
        return self._part(segment, loose, fence)[0]

    def committed(self, indices: Collection[int]) -> set[int]:
        """Which of these blocks are done."""
        by_segment: dict[int, list[int]] = defaultdict(list)
        for index in indices:
            by_segment[index // seals.SEGMENT].append(index)
        done: set[int] = set()
        for some in by_segment.values():
            part = self.part(some[0])
            done.update(index for index in some if part.done[index - part.start])
        return done

    def commit(self, index: int, digest: str, *, absent: int = 0, empty: bool = False) -> None:
        """Record a block as done. Call it last: after its data is in the store."""
        require_epoch(self.store, self.epoch)
        absent = seals.EMPTY if empty else absent
        suffix = f"-{absent}" if absent else ""
        folder = f"{self._prefix}/blocks/{self.epoch:08d}/{index // _GROUP % _FOLDERS:06d}"
        self.store.write(f"{folder}/{index}-{digest}{suffix}", b"")

    def seal(self, *, without: Flags | Collection[int] = ()) -> None:
        """Put all entries that count into their segments and drop them; `without` blocks are open again."""
        opened = without if isinstance(without, Flags) else Flags.of(self.count, without) if without else None
        loose, fence = self._loose(), self._fence()
        touched = set(_segments(loose))
        if opened is not None:
            starts = range(0, self.count, seals.SEGMENT)
            touched |= {s // seals.SEGMENT for s in starts if opened.part(s, self._stop(s)).any()}
        for segment in sorted(touched):
            self._seal_segment(segment, loose, fence, opened)
        if fence.epoch < self.epoch:
            self._raise_fence(fence)
        require_epoch(self.store, self.epoch)
        sealed = frozenset(loose["index"].tolist())
        self.store.delete(
            key
            for key, entry in self._keys()
            if int(entry["epoch"]) < self.epoch
            or (int(entry["epoch"]) == self.epoch and int(entry["index"]) in sealed)
        )

    def _seal_segment(self, segment: int, loose: NDArray[Any], fence: _Fence, opened: Flags | None) -> None:
        part, names, changed = self._part(segment, loose, fence)
        if opened is not None:
            dropped = opened.part(part.start, part.start + part.done.size)
            changed = changed or bool((part.done & dropped).any())
            part.done[dropped] = False
        if not changed:
            return  # what lies there comes from late owners
        name = Name(self.epoch, max((name.number for name in names), default=0) + 1)
        require_epoch(self.store, self.epoch)
        self.store.write(self._sealed_key(segment, name), seals.encode(part, count=self.count), durable=True)
        kept = sorted(n for n in (*names, name) if fence.lets(segment, n))[-_KEPT:]
        self.store.delete(self._sealed_key(segment, n) for n in names if n < name and n not in kept)

    def _raise_fence(self, before: _Fence) -> None:
        """From here on nothing counts that earlier owners may still write."""
        named = [
            [segment, str(name)]
            for segment, names in sorted(self._sealed().items())
            for name in sorted(names)
            if name.epoch < self.epoch and before.lets(segment, name)
        ]
        require_epoch(self.store, self.epoch)
        self.store.write(
            self._fence_key(self.epoch), seals.checked(json.dumps({"seals": named}).encode()), durable=True
        )
        older = sorted(epoch for epoch in self._fences() if epoch < self.epoch)
        self.store.delete(self._fence_key(epoch) for epoch in older[: 1 - _KEPT])

    def _part(self, segment: int, loose: NDArray[Any], fence: _Fence) -> tuple[Part, list[Name], bool]:
        """A segment, the names of its seals, and whether entries add to what the newest says."""
        start = segment * seals.SEGMENT
        names = self._names(segment)
        sealed_epoch, part = 0, Part.empty(start, self._stop(start) - start)
        while (newest := max((n for n in names if fence.lets(segment, n)), default=None)) is not None:
            data = self.store.read(self._sealed_key(segment, newest))
            if data is not None:
                sealed_epoch, part = newest.epoch, self._decoded(segment, newest, data)
                break
            names = self._names(segment)  # the owner has replaced it since it was listed
        entries = _counting(loose, segment, max(fence.epoch, sealed_epoch))
        at = entries["index"] - np.uint64(start)
        part.done[at], part.digest[at], part.absent[at] = True, entries["digest"], entries["absent"]
        return part, names, bool(entries.size)

    def _newest(self, segment: int, names: list[Name], fence: _Fence) -> tuple[Name, Head] | None:
        """The first part of the newest seal that counts."""
        while (newest := max((n for n in names if fence.lets(segment, n)), default=None)) is not None:
            try:
                data = self.store.ranges(self._sealed_key(segment, newest)).read(seals.head_size())
            except FileNotFoundError:  # the owner has replaced it since it was listed
                names = self._names(segment)
                continue
            with self._damage(self._sealed_key(segment, newest)):
                head = seals.decode_head(data or b"")
            self._require_ours(segment, newest, head)
            return newest, head
        return None

    def _decoded(self, segment: int, name: Name, data: bytes) -> Part:
        with self._damage(self._sealed_key(segment, name)):
            head, part = seals.decode(data)
        self._require_ours(segment, name, head)
        return part

    def _require_ours(self, segment: int, name: Name, head: Head) -> None:
        start = segment * seals.SEGMENT
        if (head.count, head.start, head.size) != (self.count, start, self._stop(start) - start):
            raise self._disagreement(self._sealed_key(segment, name), f"{head.count} blocks")

    def _stop(self, start: int) -> int:
        return min(start + seals.SEGMENT, self.count)

    @property
    def _prefix(self) -> str:
        return f"{FOLDER}/ledger/{self.stage}"

    def _sealed_key(self, segment: int, name: Name) -> str:
        return f"{self._prefix}/sealed/{segment:06d}/{name}"

    def _fence_key(self, epoch: int) -> str:
        return f"{self._prefix}/fence/{epoch:08d}"

    def _keys(self) -> Iterator[tuple[str, re.Match[str]]]:
        """Keys of the entries that are not sealed, taken apart."""
        for key in self.store.keys(f"{self._prefix}/blocks"):
            entry = _ENTRY.fullmatch(key.removeprefix(f"{self._prefix}/blocks/"))
            if entry is None:
                continue  # what file systems leave behind, such as .nfs0001
            if int(entry["index"]) >= self.count:
                raise self._disagreement(key, f"block {entry['index']}")
            yield key, entry

    def _loose(self) -> NDArray[Any]:
        """The entries that are not sealed, by index and epoch; never more than are made between two seals."""
        rows = (
            (int(entry["index"]), int(entry["epoch"]), int(entry["absent"] or 0), int(entry["digest"], 16))
            for _, entry in self._keys()
        )
        return np.sort(np.fromiter(rows, _LOOSE), order=("index", "epoch"))

    def _names(self, segment: int) -> list[Name]:
        return self._sealed(f"/{segment:06d}").get(segment, [])

    def _sealed(self, below: str = "") -> dict[int, list[Name]]:
        """The seals that are there, by segment."""
        found: dict[int, list[Name]] = defaultdict(list)
        for key in self.store.keys(f"{self._prefix}/sealed{below}"):
            segment, _, text = key.removeprefix(f"{self._prefix}/sealed/").partition("/")
            name = Name.parse(text)
            if name is None or not segment.isdecimal():
                continue
            if int(segment) * seals.SEGMENT >= self.count:
                raise self._disagreement(key, f"blocks from {int(segment) * seals.SEGMENT} on")
            found[int(segment)].append(name)
        return found

    def _fences(self) -> list[int]:
        names = (key.rsplit("/", 1)[1] for key in self.store.keys(f"{self._prefix}/fence"))
        return [int(name) for name in names if name.isdecimal()]

    def _fence(self) -> _Fence:
        while epoch := max(self._fences(), default=0):
            data = self.store.read(self._fence_key(epoch))
            if data is None:
                continue  # a new owner has replaced it since it was listed
            with self._damage(self._fence_key(epoch)):
                named = json.loads(seals.unchecked(data))["seals"]
            pairs = ((segment, Name.parse(text)) for segment, text in named)
            return _Fence(epoch, frozenset((segment, name) for segment, name in pairs if name is not None))
        return _Fence()

    @contextmanager
    def _damage(self, key: str) -> Iterator[None]:
        try:
            yield
        except DamagedSealError:
            raise InputError(
                "this ledger is damaged",
                where=f"{self.store.url}/{key}",
                fix="delete this file: the blocks that it alone says are done will be done again",
            ) from None

    def _disagreement(self, key: str, found: str) -> InputError:
        return InputError(
            "the ledger does not belong to this plan",
            where=f"{self.store.url}/{key}",
            expected=f"blocks 0 to {self.count - 1}",
            found=found,
            fix="choose another --to, or --restart",
        )


def _segments(loose: NDArray[Any]) -> list[int]:
    """The segments that have entries."""
    found: list[int] = np.unique(loose["index"] // np.uint64(seals.SEGMENT)).tolist()
    return found


def _counting(loose: NDArray[Any], segment: int, least: int) -> NDArray[Any]:
    """A segment's entries of the epoch `least` or later: one of each block, the latest."""
    start, stop = (np.uint64(n * seals.SEGMENT) for n in (segment, segment + 1))
    first, last = np.searchsorted(loose["index"], [start, stop])
    entries: NDArray[Any] = loose[first:last]
    entries = entries[entries["epoch"] >= least]
    last_of_block = np.ones(entries.size, np.bool_)
    last_of_block[:-1] = entries["index"][1:] != entries["index"][:-1]
    counting: NDArray[Any] = entries[last_of_block]
    return counting
