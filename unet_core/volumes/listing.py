"""Looking at folders and objects without reading them: names, sizes, ages. One folder at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore


@dataclass(frozen=True)
class Facts:
    """Of an object: bytes, and seconds since 1970 when it was last written, by its store's clock."""

    size: int
    modified: float


@dataclass(frozen=True)
class Listing:
    """Names of what lies directly in a folder."""

    folders: frozenset[str]
    objects: frozenset[str]


def list_local(path: Path) -> Listing:
    """A folder that is gone is empty. Links are followed, but not those that lead to where they lie."""
    folders, objects = set(), set()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not Path(entry.path).is_dir():  # unlike the entry's own, False for a link to itself
                    objects.add(entry.name)
                elif not (entry.is_symlink() and _leads_up(entry.path)):
                    folders.add(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return Listing(frozenset(folders), frozenset(objects))


def _leads_up(link: str) -> bool:
    target, place = os.path.realpath(link), os.path.realpath(Path(link).parent)
    return f"{place}/".startswith(f"{target.rstrip('/')}/")


def list_remote(store: Any, folder: str) -> Listing:
    """One listing with a delimiter: its pages are those of the names in the folder."""
    answer: Mapping[str, Any] = obstore.list_with_delimiter(store, folder or None)
    return Listing(
        frozenset(path.rsplit("/", 1)[-1] for path in answer["common_prefixes"]),
        frozenset(item["path"].rsplit("/", 1)[-1] for item in answer["objects"]),
    )


def local_facts(path: Path) -> Facts | None:
    """A copy may keep the time of what it copies, but not the time at which its own entry was made."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Facts(found.st_size, max(found.st_mtime, found.st_ctime))


def remote_facts(store: Any, key: str) -> Facts:
    found = obstore.head(store, key)
    return Facts(int(found["size"]), found["last_modified"].timestamp())
