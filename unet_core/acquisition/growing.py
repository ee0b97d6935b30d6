"""Finished or growing: a microscope that writes for hours declares its whole shape in the first second.

marker     where one is named, it alone decides: an object in the image's folder that says "finished"
record     of what `ingest` made, its record says it
age        else an image is finished when nothing that is looked at was written lately, and every object of
           the first and the last plane is there, at all levels, of all channels and time points

Age is looked at in the metadata, the two outer planes, and a thousand other objects from all over the image.

What this does not see, so that only a marker helps:
* a writer that pauses for longer than the patience, after the outer planes are there;
* writing in no order of z, when each look meets none of the objects written lately: while a copy of twenty
  hours is made in any order, a patience of ten minutes has 1 in 120 of the objects, and a thousand looks
  miss all of them once in 4,000 times;
* planes missing from a shard that is there.

And what it sees in vain: writers that leave out chunks without signal (zarr-python does by default) can
leave out one of an outer plane. Such an image counts as growing for ever; the reason says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from unet_core.acquisition.finding import Found
from unet_core.errors import InputError
from unet_core.ledger import read_status
from unet_core.metadata import Multiscale, parse_multiscale
from unet_core.volumes import Facts, Store, Volume, outer_keys, some_keys

_SOME = 1000
_AT_ONCE = 32  # requests to a remote store
_ARRAY_DOCUMENTS = ("zarr.json", ".zarray")


@dataclass(frozen=True)
class Patience:
    """When an image counts as finished.

    Parameters
    ----------
    marker
        Key of the object, in the image's folder, that says so; None goes by age.
    quiet
        Seconds without writing.
    now
        Seconds since 1970, by the clock of the store that the images are in.
    """

    marker: str | None
    quiet: float
    now: Callable[[], float]


def why_growing(found: Found, patience: Patience, *, level: int = 0) -> str | None:
    """Why an image does not count as finished; None where it does.

    Raises
    ------
    InputError
        It is finished, and is no image that `level` could be read of.
    StoreError
        The store does not answer.
    """
    status = read_status(found.store)
    if status is not None and status.get("status") != "complete":
        return f"unet-flows ingest is not done with it (status {status.get('status')})"
    if patience.marker is not None:
        return None if found.store.facts(patience.marker) else f"no {patience.marker} in it yet"
    if status is not None:
        return None
    if (young := _young(patience, ((name, found.store.facts(name)) for name in found.documents))) is not None:
        return young
    if found.attributes is None:
        raise InputError("the metadata cannot be read", where=f"{found.store.url}/{found.documents[0]}")
    multiscale = parse_multiscale(found.attributes, where=found.store.url)
    for number in range(max(level + 1, len(multiscale.datasets))):
        try:
            volume = Volume.open(found.store.url, level=number)
        except InputError:
            if number == level:
                raise
            continue  # a level that nobody made: it is not needed
        reason = _why_level(found.store, volume, patience)
        if reason is not None:
            return reason
    return None


def _why_level(store: Store, volume: Volume, patience: Patience) -> str | None:
    """Level by level: a pyramid is often made when the finest level is there."""
    root = f"{volume.path}/".lstrip("/")
    documents = ((root + name, store.facts(root + name)) for name in _ARRAY_DOCUMENTS)
    if (young := _young(patience, documents)) is not None:
        return young
    absent = None
    for key, facts in _facts_of(store, (root + key for key in outer_keys(volume.array, volume.axes))):
        # Crashed file systems leave objects without bytes.
        if facts is None or facts.size == 0:
            absent = key
            break
        if (young := _young(patience, [(key, facts)])) is not None:
            return young
    if (
        young := _young(patience, _facts_of(store, (root + k for k in some_keys(volume.array, _SOME))))
    ) is not None:
        return young
    if absent is None:
        return None
    return (
        f"{absent}, of an outer plane, is not there, and nothing is being written; where the writer leaves "
        "out chunks without signal, let it put a file into the image at the end, and name that with --marker"
    )


def _young(patience: Patience, objects: Iterable[tuple[str, Facts | None]]) -> str | None:
    """The first of some objects that was written lately, and when."""
    for key, facts in objects:
        if facts is not None and (age := patience.now() - facts.modified) < patience.quiet:
            when = f"{age:.0f} s ago" if age >= 0 else f"{-age:.0f} s in the future: the clocks differ"
            return f"{key} was written {when}"
    return None


def _facts_of(store: Store, keys: Iterator[str]) -> Iterator[tuple[str, Facts | None]]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while batch := list(islice(keys, 2 * _AT_ONCE)):
            yield from zip(batch, pool.map(store.facts, batch))


def stamp(found: Found, *, marker: str | None, level: int, also: str) -> str:
    """16 hex digits that change when an image is written anew, for the price of a few looks.

    They are over size and time of the metadata's objects and of the marker: every writer begins with the one
    and ends with the other. Chunks that are mended in place do not change it. `also` changes it, too.
    """
    keys = [*found.documents, *([marker] if marker else [])]
    if (multiscale := _multiscale(found)) is not None and level < len(multiscale.datasets):
        path = multiscale.datasets[level].path
        keys += [f"{path}/{name}" for name in _ARRAY_DOCUMENTS]
    facts = [
        (key, None if f is None else (f.size, f.modified)) for key, f in _facts_of(found.store, iter(keys))
    ]
    return hashlib.sha256(json.dumps([facts, also]).encode()).hexdigest()[:16]


def _multiscale(found: Found) -> Multiscale | None:
    try:
        return parse_multiscale(found.attributes or {}, where=found.store.url)
    except InputError:
        return None
