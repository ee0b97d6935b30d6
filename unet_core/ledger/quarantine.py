"""Blocks that could not be done: set aside, each with its error and traceback, while the rest goes on.

OUTPUT/.unet-flows/failed/STAGE/INDEX.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from unet_core.ledger.flags import Flags
from unet_core.ledger.record import FOLDER
from unet_core.volumes import Store


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a block is in quarantine. `worker` is where it was tried last, `attempts` how often."""

    stage: str
    index: int
    error: str
    traceback: str
    worker: str
    attempts: int


@dataclass(frozen=True)
class Quarantine:
    """The blocks of one stage that failed."""

    store: Store
    stage: str

    def add(self, failure: Failure) -> None:
        self.store.write(self._key(failure.index), json.dumps(asdict(failure), indent=1).encode())

    def release(self, index: int) -> None:
        """The block has been done after all."""
        self.store.delete([self._key(index)])

    def indices(self) -> list[int]:
        """The blocks in quarantine, ascending; opens none of them."""
        names = (key.rsplit("/", 1)[1].removesuffix(".json") for key in self.store.keys(self._prefix))
        return sorted(int(name) for name in names if name.isdecimal())

    def standing(self, done: Flags) -> list[int]:
        """Those that are still to be done, given one flag per block of the stage; ascending."""
        return [index for index in self.indices() if index < len(done) and not done[index]]

    def release_done(self, done: Flags) -> int:
        """Drop the records of blocks that have been done since; returns how many."""
        gone = sorted(set(self.indices()) - set(self.standing(done)))
        self.store.delete(map(self._key, gone))
        return len(gone)

    def failures(self, *, limit: int | None = None) -> Iterator[Failure]:
        """What is known about the first `limit` of them."""
        for index in self.indices()[:limit]:
            data = self.store.read(self._key(index))
            if data is None:
                continue
            try:
                yield Failure(**json.loads(data))
            except (ValueError, TypeError):  # damaged; that the block failed, its name says
                error = f"the record of this failure cannot be read: {self._key(index)}"
                yield Failure(
                    stage=self.stage, index=index, error=error, traceback="", worker="unknown", attempts=0
                )

    @property
    def _prefix(self) -> str:
        return f"{FOLDER}/failed/{self.stage}"

    def _key(self, index: int) -> str:
        return f"{self._prefix}/{index}.json"
