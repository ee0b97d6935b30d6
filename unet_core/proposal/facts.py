"""What is looked at before a training is proposed: an image, its labels, a machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, Shape, ceil_div
from unet_core.targets import MARGIN, classes_of
from unet_core.volumes import Volume

_BOXES, _BOX = 16, (64, 256, 256)  # so many boxes are looked at, spread evenly
CORE = 7  # voxels: background with nothing else in such a square lies apart from objects
INDEPENDENT = 0.25  # continuity below which planes are images of their own
_FEW = 32  # ids whose parts are counted: more are no classes


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """One image, or several as one. Shape and voxel size are z, y, x.

    Parameters
    ----------
    shape
        Of several images the median, axis by axis; `smallest` and `largest` are the extremes, likewise.
    voxel_size, unit
        None where the volumes do not say one, or not the same.
    dtype
        Of several images all that there are, such as "uint8, uint16".
    """

    shape: Shape
    voxel_size: tuple[float, ...] | None
    unit: str | None
    dtype: str
    channels: int
    count: int = 1
    smallest: Shape | None = None
    largest: Shape | None = None

    @classmethod
    def of(cls, image: Volume) -> ImageFacts:
        known = any(size != 1.0 for size in image.voxel_size) or image.unit is not None
        return cls(
            shape=image.shape,
            voxel_size=image.voxel_size if known else None,
            unit=image.unit,
            dtype=image.dtype.name,
            channels=len(image.channels),
        )

    @classmethod
    def of_several(cls, images: Sequence[Volume]) -> ImageFacts:
        """All of them; an image that occurs twice counts once.

        Raises
        ------
        InputError
            Another number of channels in some than in the others.
        """
        images = list({image.url: image for image in images}.values())
        facts = [cls.of(image) for image in images]
        kinds = {each.channels: image.url for each, image in zip(facts, images)}
        if len(kinds) > 1:
            raise InputError(
                "these images have different numbers of channels",
                found="; ".join(f"{n}, such as {url}" for n, url in sorted(kinds.items())),
                fix="name the channels that all have with --channels, or train on each kind by itself",
            )
        sizes = [sorted(lengths) for lengths in zip(*(each.shape for each in facts))]
        alike = len({(each.voxel_size, each.unit) for each in facts}) == 1
        return cls(
            shape=tuple(lengths[len(lengths) // 2] for lengths in sizes),
            voxel_size=facts[0].voxel_size if alike else None,
            unit=facts[0].unit if alike else None,
            dtype=", ".join(sorted({each.dtype for each in facts})),
            channels=facts[0].channels,
            count=len(facts),
            smallest=tuple(lengths[0] for lengths in sizes),
            largest=tuple(lengths[-1] for lengths in sizes),
        )

    @property
    def anisotropy(self) -> float:
        """How much larger voxels are along z than in the plane; 1 where that is not known."""
        return 1.0 if self.voxel_size is None else self.voxel_size[0] / max(self.voxel_size[1:])


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trains: "cpu" or "cuda", and the bytes of memory that one training step may take."""

    device: str
    memory: int


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """Labels as far as they were looked at; shares are of the voxels that were, 0 where there are none.

    Parameters
    ----------
    values
        Voxels per label, of the 1,000 most frequent ones.
    count
        Number of distinct labels above 0, counted in each region by itself.
    parts
        Connected parts of a label above 0 in a box, on average; in a plane where planes are images of their
        own: in a film an object is one part in each. None if a box has more than 32 labels.
    background
        Share of voxels of label 0.
    open_background
        Share of voxels that are 0 and have nothing else within three voxels in the plane.
    boundary
        Share of voxels with a face neighbour of another label, label 0 included.
    touching
        Of the faces in the plane between an object and something else, the share with another object.
    extent
        Extents z, y, x of the object that a labelled voxel lies in, the median over these voxels: specks
        count by their size, not their number. Of objects that are cut what was seen counts; None where that
        is most of a box, as in dense tissue.
    continuity
        How much better than chance the label of a voxel agrees with that of the voxel below it, from 0 to 1;
        1 for a single plane.
    profiles
        Per axis of the first region, labelled voxels (above 0) in each plane across it.
    whole
        Whether every voxel was looked at.
    below_zero
        Numbers below 0 that were met, a few of many: marks. Everything else takes their voxels for 0.
    """

    values: dict[int, int]
    count: int
    parts: float | None
    background: float
    open_background: float
    boundary: float
    touching: float
    extent: tuple[float, ...] | None
    continuity: float
    profiles: tuple[tuple[int, ...], ...]
    whole: bool
    below_zero: tuple[int, ...] = ()


def measure_labels(regions: Sequence[tuple[Volume, Box]]) -> LabelFacts:
    """Look at the labels of some regions, together at 16 boxes of 64 × 256 × 256 voxels or a few more.

    Raises
    ------
    InputError
        Labels that are not integers, have several channels, or are all 0 as far as was looked.
    """
    looked = _Looked(regions[0][1])
    seen = 0
    for number, (labels, region) in enumerate(regions):
        if labels.dtype.kind not in "uib":
            raise InputError("labels must be integers", where=labels.where, found=labels.dtype)
        if len(labels.channels) != 1:
            raise InputError("labels have one channel", where=labels.where, found=len(labels.channels))
        looked.begin()
        for box in _boxes(region, ceil_div(_BOXES, len(regions))):
            grown = labels.read(box.grow((MARGIN,) * 3, (MARGIN,) * 3))[0]
            looked.add(grown, box, profiled=number == 0)
            seen += box.size
    if not looked.count:
        raise InputError(
            "these labels hold no labelled voxel",
            where=f"{regions[0][0].where}, {regions[0][1]}",
            expected="ids or classes above 0",
            found=f"only 0 in the {seen:,} voxels that were looked at",
            fix="name the box that is labelled, with --region",
        )
    return looked.facts(whole=seen == sum(region.size for _, region in regions))


def _boxes(region: Box, most: int) -> Iterator[Box]:
    cell = tuple(min(n, c) for n, c in zip(region.shape, _BOX))
    for box in Grid(Box.of_shape(region.shape), cell).spread(most):
        yield box.shift(region.lower).intersect(region)


class _Looked:
    """Sums over boxes."""

    def __init__(self, region: Box) -> None:
        self._origin = region.lower
        self._values: dict[int, int] = {}
        self._ids: set[int] = set()  # of the region that is being looked at
        self._earlier = 0  # ids of those before
        self._parts: list[tuple[float, float]] | None = []  # in a box, in a plane
        self._extents: list[tuple[int, ...]] = []
        self._sizes: list[int] = []  # their voxels
        self._cut = 0  # voxels of those that a box cuts
        self._largest = (0, 0, 0)
        self._profiles = [np.zeros(n, np.int64) for n in region.shape]
        self._voxels = self._open = self._boundary = 0
        self._between = self._faces = 0
        self._pairs = self._same = 0
        self._below: set[int] = set()

    def begin(self) -> None:
        """Of another region: its ids are its own."""
        self._earlier = self.count
        self._ids = set()

    @property
    def count(self) -> int:
        return self._earlier + len(self._ids - {0})

    def add(self, grown: NDArray[Any], box: Box, *, profiled: bool) -> None:
        """Labels of a box with `MARGIN` voxels around it; those below 0 count as 0."""
        if grown.dtype.kind == "i" and grown.min() < 0 and len(self._below) < _FEW:
            within = grown[(slice(MARGIN, -MARGIN),) * 3]
            self._below.update(np.unique(within[within < 0])[:_FEW].tolist())
        grown = np.maximum(grown, 0)
        inside = grown[(slice(MARGIN, -MARGIN),) * 3]
        if not inside.any():  # most of a sparse truth
            self._values[0] = self._values.get(0, 0) + inside.size
            self._voxels += inside.size
            self._open += inside.size
            return
        values, dense, counts = np.unique(inside, return_inverse=True, return_counts=True)
        self._ids.update(values.tolist())
        for value, voxels in zip(values.tolist(), counts.tolist()):
            self._values[value] = self._values.get(value, 0) + voxels
        self._voxels += inside.size
        labelled = inside != 0
        for axis, profile in enumerate(self._profiles if profiled else ()):
            start = box.lower[axis] - self._origin[axis]
            others = tuple(a for a in range(3) if a != axis)
            profile[start : start + box.shape[axis]] += labelled.sum(axis=others)
        near = ndimage.maximum_filter(labelled, size=(1, CORE, CORE))
        self._open += int(near.size - near.sum())
        planar = box.shape[0] == 1
        self._boundary += int(classes_of(grown, "boundary", planar=planar).sum())
        for axis in (1, 2):
            a, b = (np.moveaxis(inside, axis, 0)[s] for s in (slice(1, None), slice(None, -1)))
            differ = a != b
            self._faces += int(differ.sum())
            self._between += int((differ & (a != 0) & (b != 0)).sum())
        if box.shape[0] > 1:
            either = labelled[1:] | labelled[:-1]
            self._pairs += int(either.sum())
            self._same += int((inside[1:] == inside[:-1])[either].sum())
        self._measure(values, counts, dense.reshape(inside.shape))

    def _measure(self, values: NDArray[Any], counts: NDArray[np.intp], dense: NDArray[np.intp]) -> None:
        """Extents of objects, and parts of labels if they are few."""
        self._largest = tuple(map(max, self._largest, dense.shape))
        if values[0] != 0:
            dense = dense + 1
        names, sizes = values[values != 0], counts[values != 0]
        if len(names) > _FEW:
            self._parts = None
        for number, found in enumerate(ndimage.find_objects(dense), 1):
            # A single plane cuts nothing along z.
            ends = [(s.start > 0 and s.stop < n) or n == 1 for s, n in zip(found, dense.shape)]
            self._extents.append(tuple(s.stop - s.start for s in found))
            self._sizes.append(int(sizes[number - 1]))
            self._cut += 0 if all(ends) else self._sizes[-1]
            if self._parts is not None:
                self._parts.append(_parts(dense[found] == number))

    def _extent(self) -> tuple[float, ...] | None:
        """The median extents, each object counted by its voxels."""
        extents, sizes = np.array(self._extents), np.array(self._sizes)
        order = np.argsort(extents, axis=0)
        below = np.cumsum(sizes[order], axis=0)
        middle = (2 * below >= sizes.sum()).argmax(axis=0)
        found = tuple(float(extents[order[k, axis], axis]) for axis, k in enumerate(middle))
        large = any(2 * n > box for n, box in zip(found[1:], self._largest[1:]))
        return None if large and 2 * self._cut > sizes.sum() else found

    def facts(self, *, whole: bool) -> LabelFacts:
        frequent = sorted(self._values.items(), key=lambda item: -item[1])[:1000]
        objects = [voxels for value, voxels in self._values.items() if value != 0]
        # That two labelled voxels agree by chance.
        chance = sum((n / sum(objects)) ** 2 for n in objects) if len(objects) > 1 else 0.0
        agree = self._same / self._pairs if self._pairs else 1.0
        continuity = max(0.0, (agree - chance) / (1 - chance))
        in_box, in_plane = np.mean(self._parts or [(0.0, 0.0)], axis=0).tolist()
        return LabelFacts(
            values=dict(frequent),
            count=self.count,
            parts=None if not self._parts else in_plane if continuity < INDEPENDENT else in_box,
            background=self._values.get(0, 0) / self._voxels,
            open_background=self._open / self._voxels,
            boundary=self._boundary / self._voxels,
            touching=self._between / self._faces if self._faces else 0.0,
            extent=self._extent(),
            continuity=continuity,
            profiles=tuple(tuple(profile.tolist()) for profile in self._profiles),
            whole=whole,
            below_zero=tuple(sorted(self._below)),
        )


def _parts(label: NDArray[np.bool_]) -> tuple[float, float]:
    """Connected parts of a label, and those in a plane that holds it, on average."""
    in_planes = ndimage.generate_binary_structure(3, 1)
    in_planes[[0, 2]] = False
    planes = int(label.any(axis=(1, 2)).sum())
    return ndimage.label(label)[1], ndimage.label(label, in_planes)[1] / planes
