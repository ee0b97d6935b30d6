"""Where labels lie, and what is remembered beside them.

    TO/MODEL-DIGEST/watch.json                          how these labels are made: written once
                    volumes.json                        how all volumes stood at the end of the last call
                    2026/a.zarr                         labels of PREFIX/2026/a.zarr
                    2026/a.zarr/.unet-flows/watch.json  of which state of that volume they are
                    2026/b.failed.json                  why b was set aside

A claim is not among them: that is the lease of the labels, which `segment` holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flows.config import HowToSegment, WatchConfig
from flows.outcome import IncompleteRunError
from unet_core.checkpoint import StoredModel
from unet_core.errors import InputError, UnetFlowsError
from unet_core.ledger import FOLDER, read_status
from unet_core.volumes import Store

FORMAT = 1
_SETTINGS, _STANDING = "watch.json", "volumes.json"
_NOTE = f"{FOLDER}/watch.json"
# Where and how fast, not what: the labels are the same.
_NO_MATTER = {"model", "workers", "cluster", "memory", "block", "block_timeout"}


@dataclass(frozen=True)
class Place:
    """Of one volume: its labels, and the key in the root of why it was set aside."""

    labels: Store
    failure: str


@dataclass(frozen=True)
class Outputs:
    """The folder of one model's labels. `settings`: all that decides what they are."""

    root: Store
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, config: WatchConfig, model: StoredModel) -> Outputs:
        name = model.url.rsplit("/", 1)[-1]
        names = [name for name in HowToSegment.model_fields if name not in _NO_MATTER]
        settings = {
            "prefix": Store(config.prefix).url,
            "model": model.digest,
            **{name: getattr(config, name) for name in names},
        }
        return cls(Store(config.to).child(f"{name}-{model.digest[:8]}"), settings)

    def place(self, path: str) -> Place:
        """Of the volume at this path below the prefix; empty where the prefix is the volume."""
        stem = (path or str(self.settings["prefix"]).rsplit("/", 1)[-1]).removesuffix(".zarr")
        return Place(self.root.child(f"{stem}.zarr"), f"{stem}.failed.json")

    def require_same_settings(self) -> None:
        """Refuse to add to labels that are made in another way.

        Raises
        ------
        InputError
            Names what differs.
        """
        begun = _read(self.root, _SETTINGS)
        if begun is None:
            return
        was = begun.get("settings") or {}
        differing = [name for name, value in self.settings.items() if was.get(name) != value]
        if differing or begun.get("format") != FORMAT:
            raise InputError(
                "this folder holds labels that were made with other parameters",
                where=self.root.url,
                expected="; ".join(f"{name} {_said(was.get(name))}" for name in differing),
                found="; ".join(f"{name} {_said(self.settings[name])}" for name in differing),
                fix="give the same parameters, or choose another --to",
            )

    def begin(self) -> None:
        """Write down how these labels are made. Raises as `require_same_settings`."""
        document = {"format": FORMAT, "settings": self.settings, "begun": _now()}
        if not self.root.create(_SETTINGS, json.dumps(document, indent=1).encode()):
            self.require_same_settings()

    def is_done(self, place: Place, stamp: str) -> bool:
        """Whether there are labels of this state of the volume."""
        status = read_status(place.labels)
        if status is None or status.get("status") != "complete":
            return False
        return (_read(place.labels, _NOTE) or {}).get("stamp") == stamp

    def note_done(self, place: Place, stamp: str) -> None:
        place.labels.write(_NOTE, json.dumps({"stamp": stamp, "when": _now()}).encode())
        self.root.delete([place.failure])

    def why_set_aside(self, place: Place, stamp: str) -> str | None:
        """Why this state of the volume was set aside; None where it was not."""
        failure = _read(self.root, place.failure) or {}
        return str(failure.get("reason")) if failure.get("stamp") == stamp else None

    def set_aside(self, place: Place, stamp: str, volume: Store, error: Exception) -> None:
        """Remember why this state of a volume cannot be segmented."""
        before = _read(self.root, place.failure) or {}
        failure = {
            "volume": volume.url,
            "stamp": stamp,
            "when": _now(),
            "attempts": before.get("attempts", 0) + 1 if before.get("stamp") == stamp else 1,
            "reason": reason_of(error),
            "error": described(error),
        }
        if isinstance(error, IncompleteRunError):
            failure["stages"] = error.document["stages"]
        self.root.write(place.failure, json.dumps(failure, indent=1).encode())

    def note_standing(self, document: Mapping[str, Any]) -> None:
        """Leave how all volumes stand."""
        self.root.write(_STANDING, json.dumps({**document, "when": _now()}, indent=1).encode())


def reason_of(error: Exception) -> str:
    """An error in one line."""
    if not isinstance(error, UnetFlowsError):
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    found = (error.found or "").splitlines()
    return f"{error.problem}{f' ({found[0]})' if found else ''}"


def described(error: Exception) -> dict[str, str | None]:
    """An error as data."""
    if isinstance(error, UnetFlowsError):
        return error.as_dict()
    return {"kind": type(error).__name__, "problem": str(error)}


def _read(store: Store, key: str) -> dict[str, Any] | None:
    """A record that is damaged is as good as none: what it says is found out anew."""
    try:
        document = json.loads(store.read(key) or b"")
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _said(value: Any) -> str:
    return "not given" if value is None else str(value)
