"""Where patches may be placed: voxels of every class and of the objects, found once, as plain data.

A sampler that must hit a class of 0.6 % cannot draw boxes until one holds it. Instead, a bounded part of
every region is looked at before training, spread evenly over it, and some voxels are kept:

    per class     an even sample of the voxels looked at           (smallest of random keys)
    per object    a few voxels per box that holds it, for an even sample of the objects, large and small
                  alike, the same in every box                     (smallest of a hash of the id)

What is kept is bounded for any volume and goes into the run record, so that every process draws alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Shape
from unet_core.labelling import PROBE_VOXELS, LabelledRegion, Labelling, spread
from unet_core.targets import DERIVED, IGNORE

KEPT = 2**14  # voxels per class, and of objects, over all sources
EACH = 8  # voxels per object and box
_FEWEST = 64  # voxels of each source, however many sources there are


@dataclass(frozen=True)
class Found:
    """One region. Voxels are flat indices into it, in raster order.

    Parameters
    ----------
    probed
        Voxels looked at.
    counts
        Of these, how many each class has.
    voxels
        Per class some of its voxels; none for class 0.
    object_count
        About how many objects the voxels looked at belong to.
    objects
        Per object that was kept, its voxels that were kept.
    """

    probed: int
    counts: tuple[int, ...]
    voxels: tuple[tuple[int, ...], ...]
    object_count: float = 0.0
    objects: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Places:
    """What was found in each source, in their order."""

    sources: tuple[Found, ...]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Voxels per class among those looked at."""
        total: NDArray[np.int64] = np.array([found.counts for found in self.sources], np.int64).sum(axis=0)
        return total

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "sources": [
                {
                    "probed": found.probed,
                    "counts": list(found.counts),
                    "voxels": [list(voxels) for voxels in found.voxels],
                    "object_count": found.object_count,
                    "objects": [list(voxels) for voxels in found.objects],
                }
                for found in self.sources
            ]
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Places:
        return cls(
            tuple(
                Found(
                    found["probed"],
                    tuple(found["counts"]),
                    tuple(map(tuple, found["voxels"])),
                    found["object_count"],
                    tuple(map(tuple, found["objects"])),
                )
                for found in data["sources"]
            )
        )


def find_places(
    labelling: Labelling,
    sources: Sequence[LabelledRegion],
    *,
    objects: bool = False,
    voxels: int = PROBE_VOXELS,
) -> Places:
    """Look at about `voxels` labels of each region at most; also for `objects` where patches are balanced so.

    The same data give the same places.

    Raises
    ------
    InputError
        A label that the network has no class for; nothing above class 0 in any region; objects asked for
        where labels are classes, or where there is none.
    """
    if objects and labelling.target not in DERIVED:
        raise InputError(
            "patches cannot be balanced by object here",
            where="balance",
            expected=f"instance ids and one of the targets {', '.join(DERIVED)}",
            found=f'the target "{labelling.target}", whose labels are classes',
            fix='balance by "class"',
        )
    kept = max(_FEWEST, KEPT // max(1, len(sources)))
    places = Places(
        tuple(
            _find(labelling, source, np.random.default_rng(index), kept, objects, voxels)
            for index, source in enumerate(sources)
        )
    )
    labelling.require_foreground(places.counts, sources)
    if objects and not any(found.objects for found in places.sources):
        raise InputError(
            "there is no object here",
            where="balance",
            expected="ids above 0 among the labels looked at",
            found="none",
            fix='balance by "class"',
        )
    return places


def _find(
    labelling: Labelling,
    source: LabelledRegion,
    rng: np.random.Generator,
    kept: int,
    objects: bool,
    voxels: int,
) -> Found:
    counts = np.zeros(labelling.classes, np.int64)
    samples = [_Smallest(kept) for _ in range(labelling.classes)]
    instances = _Objects(kept)
    probed = 0
    for box in spread(source, voxels):
        probed += box.size
        classes = labelling.read(source, box, error=InputError).ravel()
        counts += np.bincount(classes, minlength=IGNORE + 1)[: labelling.classes]
        lower, shape = box.relative_to(source.region.lower).lower, box.shape
        for k in range(1, labelling.classes):
            inside = np.flatnonzero(classes == k)
            keys = rng.random(len(inside))
            chosen = samples[k].wants(keys)
            samples[k].add(keys[chosen], _flat(inside[chosen], shape, lower, source.region.shape))
        if objects:
            ids = source.labels.read(box)[0].ravel()
            inside = _few_of_each(ids, np.flatnonzero((ids > 0) & (classes != IGNORE)), rng)
            instances.add(ids[inside], _flat(inside, shape, lower, source.region.shape))
    return Found(
        probed,
        tuple(int(n) for n in counts),
        tuple(tuple(sorted(sample.values.tolist())) for sample in samples),
        instances.count,
        instances.voxels(),
    )


def _few_of_each(ids: NDArray[Any], inside: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """Of these voxels at most `EACH` of every id, drawn evenly."""
    inside = inside[rng.permutation(len(inside))]
    inside = inside[np.argsort(ids[inside], kind="stable")]
    begins = np.ones(len(inside), bool)
    begins[1:] = ids[inside[1:]] != ids[inside[:-1]]
    starts = np.flatnonzero(begins)
    rank = np.arange(len(inside)) - np.repeat(starts, np.diff(starts, append=len(inside)))
    return inside[rank < EACH]


def _flat(inside: NDArray[np.intp], shape: Shape, lower: Shape, region: Shape) -> NDArray[np.int64]:
    """From flat indices into a box to those into the region."""
    places = (p + a for p, a in zip(np.unravel_index(inside, shape), lower))
    # By hand: numpy's would take no more than 2**63 bytes of an array that there need not be.
    flat = np.zeros(len(inside), np.int64)
    for place, n in zip(places, region):
        flat = flat * n + place
    return flat


class _Smallest:
    """Of a stream of values, those with the `most` smallest keys: an even sample where keys are random."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.keys, self.values = np.empty(0), np.empty(0, np.int64)

    def wants(self, keys: NDArray[np.float64]) -> NDArray[np.intp]:
        limit = self.keys.max() if len(self.keys) == self.most else np.inf
        return np.flatnonzero(keys < limit)

    def add(self, keys: NDArray[np.float64], values: NDArray[np.int64]) -> None:
        self.keys = np.concatenate([self.keys, keys])
        self.values = np.concatenate([self.values, values])
        if len(self.keys) > self.most:
            smallest = np.argpartition(self.keys, self.most)[: self.most]
            self.keys, self.values = self.keys[smallest], self.values[smallest]


class _Objects:
    """An even sample of objects: whole objects with the smallest hashes, of at most `most` voxels together.

    The hash of an id is the same wherever it is met, so that no list of all ids is needed.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.hashes, self.values = np.empty(0, np.uint64), np.empty(0, np.int64)
        self.limit: int | None = None  # the smallest hash that was dropped

    def add(self, ids: NDArray[Any], values: NDArray[np.int64]) -> None:
        hashes = _hash(ids)
        known = slice(None) if self.limit is None else hashes < np.uint64(self.limit)
        self.hashes = np.concatenate([self.hashes, hashes[known]])
        self.values = np.concatenate([self.values, values[known]])
        order = np.argsort(self.hashes, kind="stable")
        self.hashes, self.values = self.hashes[order], self.values[order]
        if len(self.hashes) > self.most:
            cut = int(np.searchsorted(self.hashes, self.hashes[self.most]))
            # One object with more voxels than that stays, alone.
            cut = cut or int(np.searchsorted(self.hashes, self.hashes[0], side="right"))
            if cut < len(self.hashes):
                self.limit = int(self.hashes[cut])
                self.hashes, self.values = self.hashes[:cut], self.values[:cut]

    @property
    def count(self) -> float:
        """About how many objects there were: exact where all were kept."""
        kept = len(np.unique(self.hashes))
        # Hashes lie evenly: k of them below a share p of all numbers are the sign of k / p.
        return float(kept if self.limit is None else kept * 2.0**64 / self.limit)

    def voxels(self) -> tuple[tuple[int, ...], ...]:
        _, starts = np.unique(self.hashes, return_index=True)
        return tuple(tuple(sorted(part.tolist())) for part in np.split(self.values, starts[1:]) if len(part))


def _hash(ids: NDArray[Any]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele 2014): a permutation of 64-bit numbers that looks random."""
    x = ids.astype(np.uint64)
    x += np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
