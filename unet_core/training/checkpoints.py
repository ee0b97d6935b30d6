"""Checkpoints: one object per checkpoint, written whole or not at all; no pickle, no code.

    MODEL/.unet-flows/checkpoints/
        000000400-000000300-5f0c93a1b2c4d5e6.safetensors   step 400; the best weights are those of step 300
        best-000000300-99a2b3c4d5e6f708.safetensors        these weights

Facts stand as JSON in a file's header. A name ends in the SHA-256 of the content, so that a damaged file is
known, and the one before it is taken. The best weights are written before the checkpoint that names them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from unet_core.ledger import FOLDER, require_epoch
from unet_core.volumes import Store

_KEPT = 2  # the newest, and the one before in case it is damaged
_PREFIX = f"{FOLDER}/checkpoints"
_NONE = "000000000"
_NAME = re.compile(r"(best|\d{9})-(\d{9})-([0-9a-f]{16})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state after a step: tensors by name, what JSON holds, and the step with the best weights, or 0."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    best_step: int = 0


@dataclass(frozen=True)
class Checkpoints:
    """Those of one training, written by the owner of `epoch`; 0 only reads."""

    store: Store
    epoch: int = 0

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it, then drop those that nobody needs any more.

        Raises
        ------
        LostLeaseError
            Another run has taken the training over.
        StoreError
            The store does not take it.
        """
        step = f"{checkpoint.step:09d}"
        digest = self._write(f"{step}-{checkpoint.best_step:09d}", checkpoint)
        names = self._names()
        # Others of this step or later were damaged and passed over: they must not push this one out.
        own = [n for n in names if n[0] < step or n[::2] == (step, digest)]  # "best" sorts after digits
        newest = sorted(own, reverse=True)[:_KEPT]
        wanted = {*newest, *(n for n in names if n[0] == "best" and n[1] in {best for _, best, _ in newest})}
        self.store.delete(_key(*name) for name in names if name not in wanted)

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Write the weights that validate best; a checkpoint that names their step follows."""
        there = self._names()
        digest = self._write(f"best-{step:09d}", Checkpoint(step, weights, {}))
        # A step done again by another number of ranks has weights that differ in the last bits.
        self.store.delete(
            _key(*name) for name in there if name[:2] == ("best", f"{step:09d}") and name[2] != digest
        )

    def latest(self) -> Checkpoint | None:
        """The newest one that is whole, with its best weights; None where there is none."""
        for step, best, digest in sorted((n for n in self._names() if n[0] != "best"), reverse=True):
            data = self._read(step, best, digest)
            if data is not None and (best == _NONE or self.best(int(best)) is not None):
                return Checkpoint(int(step), load(data), _facts(data), int(best))
        return None

    def best(self, step: int) -> dict[str, Tensor] | None:
        """The best weights, those of a step; None where they are gone or damaged."""
        for name in self._names():
            if name[:2] == ("best", f"{step:09d}") and (data := self._read(*name)) is not None:
                return load(data)
        return None

    def steps(self) -> list[int]:
        """The steps that there is a checkpoint of, ascending."""
        return sorted(int(first) for first, _, _ in self._names() if first != "best")

    def damaged(self) -> list[str]:
        """Keys of checkpoints and best weights that are not what was written; each is read back."""
        return [_key(*name) for name in self._names() if self._read(*name) is None]

    def _write(self, name: str, checkpoint: Checkpoint) -> str:
        require_epoch(self.store, self.epoch)
        tensors = {key: t.detach().cpu().contiguous() for key, t in checkpoint.tensors.items()}
        data = save(tensors, {"facts": json.dumps(checkpoint.facts)})
        digest = _digest(data)
        self.store.write(f"{_PREFIX}/{name}-{digest}.safetensors", data, durable=True)
        return digest

    def _names(self) -> list[tuple[str, str, str]]:
        matches = (_NAME.fullmatch(key.rpartition("/")[2]) for key in self.store.keys(_PREFIX))
        return [(m[1], m[2], m[3]) for m in matches if m]

    def _read(self, first: str, second: str, digest: str) -> bytes | None:
        data = self.store.read(_key(first, second, digest))
        return data if data is not None and _digest(data) == digest else None


def _key(first: str, second: str, digest: str) -> str:
    return f"{_PREFIX}/{first}-{second}-{digest}.safetensors"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _facts(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file: 8 bytes of its length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    facts: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["facts"])
    return facts
