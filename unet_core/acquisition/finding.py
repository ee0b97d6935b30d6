"""Finding OME-Zarr images below a prefix: one listing with a delimiter for each folder on the way.

An image is a leaf: its levels and its `labels` are not looked at. Plates, wells and series of images are
folders like others. Not images: plain arrays, label images, what our other commands have written, and
whatever lies in folders whose names begin with a dot (snapshots, records).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unet_core.errors import StoreError
from unet_core.ingestion import KIND as INGESTED
from unet_core.ledger import FOLDER
from unet_core.volumes import Store

_DEEPEST = 16  # folders above one another: deeper than any collection of images
_DOCUMENTS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")


@dataclass(frozen=True)
class Found:
    """An image.

    Parameters
    ----------
    path
        Below the prefix; empty where that is the image.
    documents
        Names of the metadata objects in its folder.
    attributes
        Those of its group; None where they cannot be read: they are being written, or damaged.
    """

    path: str
    store: Store
    documents: tuple[str, ...]
    attributes: Mapping[str, Any] | None


def find_volumes(prefix: Store, *, apart: Store, notes: list[str]) -> Iterator[Found]:
    """All images below a prefix, folder by folder in the order of names.

    Holds the names of the folders that wait, never more. What cannot be looked into is passed over and told
    in `notes`, so that one folder does not hide the others.

    Parameters
    ----------
    apart
        A folder that is not looked into, such as that of the outputs.

    Raises
    ------
    StoreError
        The prefix itself cannot be looked into.
    """
    waiting = [""]
    while waiting:
        path = waiting.pop()
        try:
            found, folders = _look(prefix, path)
        except StoreError as error:
            prefix.listing()  # or nothing can be looked into
            notes.append(f"{path}: not looked into: {error.problem} ({error.found})")
            continue
        if found is not None:
            yield found
        if folders and path.count("/") + 1 >= _DEEPEST:
            notes.append(f"{path}: not looked into: more than {_DEEPEST} folders deep")
            continue
        below = (f"{path}/{name}".lstrip("/") for name in sorted(folders, reverse=True))
        waiting += [folder for folder in below if prefix.child(folder).url != apart.url]


def _look(prefix: Store, path: str) -> tuple[Found | None, frozenset[str]]:
    """The image at a path, if one is there, and the names of the folders that may hold others."""
    here = prefix.child(path)
    listing = prefix.listing(path)
    documents = tuple(name for name in _DOCUMENTS if name in listing.objects)
    folders = frozenset(name for name in listing.folders if not name.startswith("."))
    if FOLDER in listing.folders and _made_by_another_command(here):
        return None, frozenset()
    if not documents:
        return None, folders
    if ".zarray" in documents and "zarr.json" not in documents:
        return None, frozenset()
    try:
        attributes = _attributes(here, documents)
    except ValueError:
        return Found(path, here, documents, None), frozenset()
    if attributes is None:
        return None, frozenset()
    ome = attributes.get("ome")
    both = {**attributes, **(ome if isinstance(ome, Mapping) else {})}
    if "multiscales" not in both:
        return None, folders
    return None if "image-label" in both else Found(path, here, documents, attributes), frozenset()


def _made_by_another_command(store: Store) -> bool:
    """Whether a run of ours made this, or makes it, and is no ingest."""
    data = store.read(f"{FOLDER}/run.json")
    if data is None:
        return False
    try:
        return bool(json.loads(data)["kind"] != INGESTED)
    except (ValueError, TypeError, KeyError):
        return True


def _attributes(store: Store, documents: tuple[str, ...]) -> Mapping[str, Any] | None:
    """The attributes of a group; None of an array. ValueError where they cannot be read."""
    name = "zarr.json" if "zarr.json" in documents else ".zattrs"
    data = store.read(name)
    if data is None and name == ".zattrs":
        return {}
    document = json.loads(data or b"")
    if not isinstance(document, dict):
        raise ValueError(name)
    if name == ".zattrs":
        return document
    if document.get("node_type") == "array":
        return None
    attributes = document.get("attributes", {})
    if document.get("node_type") != "group" or not isinstance(attributes, dict):
        raise ValueError(name)
    return attributes
