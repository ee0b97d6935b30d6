"""What became of one thing on the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Did = Literal["made", "updated", "unchanged"]


@dataclass(frozen=True)
class Change:
    """`kind` and `name` of the thing, what was done with it, and how it is now, in a few words."""

    kind: Literal["work pool", "deployment", "schedule", "automation"]
    name: str
    did: Did
    note: str = ""
