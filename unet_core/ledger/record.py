"""What a run is: its record, written once, before the first block; the same request goes on with it.

OUTPUT/.unet-flows/run.json
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from unet_core.errors import InputError
from unet_core.volumes import Store, before_work, create_records_node

FOLDER = ".unet-flows"
FORMAT = 2
# Changes only when results would: a patch release resumes the runs of the one before.
RESULTS_VERSION = 1
AUTO = (None, "auto")
_FIELDS = {"kind": str, "identity": dict, "plan": dict}


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
    document = read_json(store, "run.json")
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
    if not all(isinstance(document.get(name), t) for name, t in _FIELDS.items()):
        raise InputError(
            "this run record cannot be read", where=where, expected=f"fields {', '.join(_FIELDS)}"
        )
    return RunRecord(document["kind"], document["identity"], document["plan"])


@before_work()
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
        require_ours(store)
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
        name
        for name, value in request.items()
        if value not in AUTO and not agree(value, record.identity.get(name))
    ]
    if differing:
        raise InputError(
            "the output exists and was begun with other parameters",
            where=store.url,
            expected="; ".join(f"{name} {_short(record.identity.get(name))}" for name in differing),
            found="; ".join(f"{name} {_short(request[name])}" for name in differing),
            fix="give the same parameters to go on with it, choose another --to, or --restart",
        )
    return record


def require_ours(store: Store) -> None:
    """Refuse a folder that holds something and no run of ours: it is not ours to write into or to clear.

    Raises
    ------
    InputError
        An output of another program.
    """
    if store.read(f"{FOLDER}/run.json") is not None or not store.exists():
        return
    if next(contents(store), None) is not None:
        raise InputError(
            "the output exists and was not made by unet-flows", where=store.url, fix="choose another --to"
        )


def require_replaceable(store: Store, kind: str) -> None:
    """Refuse to take away what is not an earlier run of this kind.

    Raises
    ------
    InputError
        An output of another program or of another command.
    """
    require_ours(store)
    try:
        record = read_record(store)
    except InputError:
        return  # a damaged or newer record: --restart is the way out of it
    if record is not None and record.kind != kind:
        raise InputError(
            "--restart would take away something else",
            where=store.url,
            expected=f"an output of {kind}",
            found=f"an output of {record.kind}",
            fix="choose another --to, or remove it yourself",
        )


def require_apart(output: Store, inputs: Iterable[Store]) -> None:
    """Refuse an output that is an input, lies in one, or holds one.

    Raises
    ------
    InputError
        Naming the two.
    """
    place = _place(output)
    for source in inputs:
        other = _place(source)
        if f"{place}/".startswith(f"{other}/") or f"{other}/".startswith(f"{place}/"):
            raise InputError(
                "the output and an input lie in one another",
                where=output.url,
                found=source.url,
                fix="choose another --to",
            )


def _place(store: Store) -> str:
    return store.url if store.remote else os.path.realpath(store.url)


def contents(store: Store) -> Iterator[str]:
    """Keys of everything in an output that is not a record of ours."""
    everything = store.keys()
    return (key for key in everything if not key.startswith(f"{FOLDER}/"))


def begin(store: Store, record: RunRecord, *, arrays: bool = True) -> None:
    """Write the record of a run, before what it makes; a run that goes on finds its own.

    `arrays`: that is a Zarr group, in which the folder of records must be a node.

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
    if arrays:
        create_records_node(store, FOLDER)


def read_json(store: Store, name: str) -> dict[str, Any] | None:
    """A JSON object of the records folder; None where there is none, InputError where it is damaged."""
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


def agree(one: Any, other: Any) -> bool:
    """Equal; but in a list, what was not known on one side (None) agrees with everything."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(None in (a, b) or a == b for a, b in zip(one, other))
    return bool(one == other)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
