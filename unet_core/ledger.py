"""Truth on disk: what a run is, which of its blocks are done, and how it ended.

    OUTPUT/.unet-flows/run.json                   written once, before the first block
                       status.json                running, complete, partial or failed
                       ledger/STAGE/INDEX-DIGEST  one empty object per finished block

An entry is written after its block's data, by the block's one writer, so that "done" is never a guess
from chunks that exist: chunks that hold only background do not. Reading a ledger is one listing, and
opens no object.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.volumes import Store, create_records_node

FOLDER = ".unet-flows"
FORMAT = 1
# Changes only when results would: a patch release resumes the runs of the one before.
RESULTS_VERSION = 1
Status = Literal["running", "complete", "partial", "failed"]
AUTO = (None, "auto")
_ENTRY = re.compile(r"(\d+)-[0-9a-f]+")


@dataclass(frozen=True)
class RunRecord:
    """What a run is. `identity` decides results and is compared; `plan` holds what was resolved once."""

    kind: str
    identity: Mapping[str, Any]
    plan: Mapping[str, Any]

    def to_json(self) -> bytes:
        document = {
            "format": FORMAT,
            "kind": self.kind,
            "results_version": RESULTS_VERSION,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "plan": self.plan,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "software": {
                "unet-flows": version("unet-flows"),
                "torch": version("torch"),
                "zarr": version("zarr"),
            },
        }
        return json.dumps(document, indent=1).encode()

    @property
    def fingerprint(self) -> str:
        text = json.dumps([self.kind, RESULTS_VERSION, self.identity], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_record(store: Store) -> RunRecord | None:
    """The record of the run that made, or is making, this output; None where there is none.

    Raises
    ------
    InputError
        A record that cannot be read or was written by a newer version.
    """
    document = _read_json(store, "run.json")
    if document is None:
        return None
    where = f"{store.url}/{FOLDER}/run.json"
    if document.get("format") != FORMAT or document.get("results_version") != RESULTS_VERSION:
        raise InputError(
            "this output was made by another version of unet-flows",
            where=where,
            expected=f"format {FORMAT}, results version {RESULTS_VERSION}",
            found=f"format {document.get('format')}, results version {document.get('results_version')}",
            fix="choose another --to, or use the version that began it",
        )
    return RunRecord(document["kind"], document["identity"], document["plan"])


def begun(store: Store, kind: str, request: Mapping[str, Any]) -> RunRecord | None:
    """The run already begun on this output, if the request is the same run; None for a new output.

    Values that the request leaves open (None or "auto") agree with whatever the run resolved.

    Raises
    ------
    InputError
        Something else lies there, or a run with other parameters: the message names what differs.
    """
    record = read_record(store)
    if record is None:
        if store.exists() and next(store.keys(), None) is not None:
            raise InputError(
                "the output exists and was not made by unet-flows", where=store.url, fix="choose another --to"
            )
        return None
    if record.kind != kind:
        raise InputError(
            "the output exists and is something else",
            where=store.url,
            expected=f"a {kind} output",
            found=f"a {record.kind} output",
            fix="choose another --to",
        )
    differing = [
        name for name, value in request.items() if value not in AUTO and record.identity.get(name) != value
    ]
    if differing:
        raise InputError(
            "the output exists and was begun with other parameters",
            where=store.url,
            expected="; ".join(f"{name} {_short(record.identity.get(name))}" for name in differing),
            found="; ".join(f"{name} {_short(request[name])}" for name in differing),
            fix="give the same parameters to go on with it, or choose another --to",
        )
    return record


def begin(store: Store, record: RunRecord) -> None:
    """Write the record of a run, before its arrays; a run that goes on only changes its status.

    Raises
    ------
    InputError
        Another run has begun on this output since it was looked at.
    """
    if not store.create(f"{FOLDER}/run.json", record.to_json()):
        there = read_record(store)
        if there is None or there.fingerprint != record.fingerprint:
            raise InputError(
                "another run has just begun on this output",
                where=store.url,
                expected=f"run {record.fingerprint}",
                found="no readable record" if there is None else f"run {there.fingerprint}",
                fix="choose another --to",
            )
    create_records_node(store, FOLDER)
    set_status(store, "running")


def set_status(store: Store, status: Status, **facts: Any) -> None:
    """Record how the run stands; `facts` (counts, failures) go with it."""
    store.write(f"{FOLDER}/status.json", json.dumps({"status": status, **facts}, indent=1).encode())


def read_status(store: Store) -> dict[str, Any] | None:
    """How the run on this output stands; None where no run of ours made it."""
    return _read_json(store, "status.json")


def require_complete(store: Store) -> None:
    """Refuse what a run of ours began and did not finish. Volumes of other programs pass."""
    status = read_status(store)
    if status is not None and status["status"] != "complete":
        raise InputError(
            "this volume is not complete",
            where=store.url,
            expected="status complete",
            found=f"status {status['status']}",
            fix="run the command that makes it once more: it does only what is missing",
        )


@dataclass(frozen=True)
class Ledger:
    """The finished blocks of one stage. `count` is the number of blocks of the stage."""

    store: Store
    stage: str
    count: int

    @property
    def _prefix(self) -> str:
        return f"{FOLDER}/ledger/{self.stage}"

    def done(self) -> NDArray[np.bool_]:
        """One flag per block, read by one listing."""
        flags = np.zeros(self.count, np.bool_)
        for key in self.store.keys(self._prefix):
            entry = _ENTRY.fullmatch(key.rsplit("/", 1)[1])
            if entry is None:
                continue  # what file systems leave behind, such as .nfs0001
            index = int(entry[1])
            if index >= self.count:
                raise InputError(
                    "the ledger does not belong to this plan",
                    where=f"{self.store.url}/{key}",
                    expected=f"blocks 0 to {self.count - 1}",
                    found=index,
                )
            flags[index] = True
        return flags

    def commit(self, index: int, digest: str) -> None:
        """Record a block as done. Call it last: after its data is in the store."""
        self.store.write(f"{self._prefix}/{index}-{digest}", b"")


def digest_of(*arrays: NDArray[Any]) -> str:
    """16 hex digits over the bytes of a block's results, for the ledger."""
    state = hashlib.blake2b(digest_size=8)
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _read_json(store: Store, name: str) -> dict[str, Any] | None:
    data = store.read(f"{FOLDER}/{name}")
    if data is None:
        return None
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise InputError("this run record cannot be read", where=f"{store.url}/{FOLDER}/{name}")
    return document


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
