"""What is labelled, and what the labels mean to a network: classes and border weights, read lazily.

region   |--------------------------------|        its border map lies on a grid of cells, each
cells    |------:------:------:------:----|        computed once, from labels `reach` around it,
box               |== patch ==|                    and kept while the cache has room
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import DataError, InputError, UnetFlowsError
from unet_core.geometry import Box, Grid
from unet_core.recent import Recent
from unet_core.targets import DERIVED, IGNORE, MARGIN, Target, classes_of, end_at, objects_of, require_target
from unet_core.volumes import Volume
from unet_core.weight_map import BorderWeight

PROBE_VOXELS = 2**26  # labels looked at, per region, before a training without foreground is refused
_PROBED = 2**23  # labels looked at at a time: finding places takes about 40 bytes for each


@dataclass(frozen=True, kw_only=True)
class LabelledRegion:
    """An image, its labels and the part of them that is labelled, z, y, x, half-open.

    `ignore` is the label of voxels that nobody labelled. The image may be read beyond the region, as
    context. Of the labels beyond, those next to it say where its objects end, and 0 there says nothing: a
    crop that was labelled mostly lies in a volume of 0.

    Raises
    ------
    InputError
        Labels of another shape than the image's or of several channels, a region that is empty, reaches
        beyond the volume or has not three axes.
    """

    image: Volume
    labels: Volume
    region: Box
    ignore: int | None = None

    def __post_init__(self) -> None:
        name = _name(self.labels)
        if self.labels.shape != self.image.shape:
            raise InputError(
                "image and labels differ in shape",
                where=name,
                expected=f"{self.image.shape}, as {_name(self.image)} has",
                found=self.labels.shape,
            )
        if len(self.labels.channels) != 1:
            raise InputError("labels have one channel", where=name, found=len(self.labels.channels))
        if self.labels.dtype.kind not in "uib":
            raise InputError("labels must be integers", where=name, found=self.labels.dtype)
        if len(self.region.lower) != 3:
            raise InputError(
                "this region has the wrong number of axes",
                where=name,
                expected=f"z0:z1,y0:y1,x0:x1 within {self.image.box}",
                found=self.region,
            )
        if not self.region or not self.image.box.contains(self.region):
            raise InputError(
                "this region is empty" if not self.region else "this region reaches beyond the volume",
                where=name,
                expected=f"a box within {self.image.box}",
                found=self.region,
            )

    @classmethod
    def whole(cls, image: Volume, labels: Volume, *, ignore: int | None = None) -> LabelledRegion:
        """Labels that cover the whole volume."""
        return cls(image=image, labels=labels, region=image.box, ignore=ignore)

    @classmethod
    def open(cls, reference: dict[str, Any]) -> LabelledRegion:
        """The region that a `reference` names."""
        image = Volume.open(reference["image"], channels=reference["channels"])
        labels = Volume.open(reference["labels"])
        region = Box.parse(reference["region"])
        return cls(image=image, labels=labels, region=region, ignore=reference["ignore"])

    def keeping(self, recent: Recent) -> LabelledRegion:
        """The same region of volumes whose chunks `recent` keeps decoded."""
        return replace(self, image=self.image.keeping(recent), labels=self.labels.keeping(recent))

    def reference(self) -> dict[str, Any]:
        """JSON-ready: how another process finds it again."""
        return {
            "image": self.image.url,
            "channels": list(self.image.channels),
            "labels": self.labels.url,
            "region": str(self.region),
            "ignore": self.ignore,
        }

    def overlaps(self, other: LabelledRegion) -> bool:
        """Whether both hold voxels of one image in common."""
        same = all(
            getattr(self.image, name) == getattr(other.image, name) for name in ("url", "path", "timepoint")
        )
        return same and bool(self.region.intersect(other.region))

    def identity(self) -> dict[str, Any]:
        """JSON-ready: what was trained on."""
        return {
            "image": self.image.identity(),
            "labels": self.labels.identity(),
            "region": str(self.region),
            "ignore": self.ignore,
        }


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What labels mean to a network: target, number of classes, and whether planes stand alone (2D).

    Safe to use from several threads.

    Parameters
    ----------
    border
        The weight of background between objects, for targets made from instance ids.
    cache_bytes
        Most that computed border maps take in memory.

    Raises
    ------
    InputError
        A border weight for a target that knows no objects.
    """

    target: Target
    classes: int
    planar: bool = False
    border: BorderWeight | None = None
    cache_bytes: int = 2**28
    _cells: Recent = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_target(self.target)
        if self.border is not None and self.target not in DERIVED:
            raise InputError(
                "a border weight needs objects",
                where="border",
                expected=f"instance ids and one of the targets {', '.join(DERIVED)}",
                found=f'the target "{self.target}"',
            )
        object.__setattr__(self, "_cells", Recent(self.cache_bytes))

    def read(
        self, source: LabelledRegion, box: Box, *, error: type[UnetFlowsError] = DataError
    ) -> NDArray[np.uint8]:
        """Classes of a box, uint8 (z, y, x); `IGNORE` outside the region.

        Raises
        ------
        error
            A label that the network has no class for.
        """
        inside = box.intersect(source.region)
        classes = np.full(box.shape, IGNORE, np.uint8)
        if not inside:
            return classes
        labels = self._labels(source, inside)
        try:
            found = classes_of(labels, self.target, planar=self.planar, ignore=source.ignore)
        except InputError as problem:
            raise error(
                problem.problem,
                where=f"{_name(source.labels)} in {inside}",
                expected=problem.expected,
                found=problem.found,
                fix=problem.fix,
            ) from None
        beyond = (found >= self.classes) & (found != IGNORE)
        if beyond.any():
            raise error(
                "the labels hold a class that the network does not have",
                where=f"{_name(source.labels)} in {inside}",
                expected=f"classes 0 to {self.classes - 1}",
                found=_classes(found[beyond]),
                fix="give the network more classes, or name this label as the one to ignore"
                + ("; for ids of objects, choose a target made of them" if self.target == "semantic" else ""),
            )
        classes[inside.relative_to(box.lower).slices] = found
        return classes

    def border_of(self, source: LabelledRegion, box: Box) -> NDArray[np.float32] | None:
        """The border term of the weight map in a box, float32 (z, y, x); None without a border weight.

        It is the map of the region's own objects, cut out: to the bit, whatever the box. 0 in objects, at
        voxels labelled `ignore`, and beyond the region.
        """
        if self.border is None:
            return None
        found = np.zeros(box.shape, np.float32)
        inside = box.intersect(source.region)
        if inside:
            view = found[inside.relative_to(box.lower).slices]
            if self.cached_bytes(source):
                self._fill(self.border, source, inside, view)
            else:
                # Cells would be dropped before anyone comes back to them: compute the box alone.
                view[...] = self._border(self.border, source, inside)
        return found

    def cached_bytes(self, source: LabelledRegion) -> int:
        """What the border map of a region will take in the cache: 0 where none is kept."""
        if self.border is None:
            return 0
        size = source.region.size * np.dtype(np.float32).itemsize
        return size if size <= self.cache_bytes else 0

    def _fill(
        self, border: BorderWeight, source: LabelledRegion, box: Box, view: NDArray[np.float32]
    ) -> None:
        """Copy the border map of a box inside the region from the cells that hold it."""
        reach = border.reach(source.image.voxel_size, planar=self.planar)
        # So large that the labels around a cell are not most of the work.
        shape = (1, 512, 512) if self.planar else tuple(max(64, 4 * n) for n in reach)
        for cell in Grid(box, shape):
            cell = cell.intersect(source.region)
            values = self._cells.get(source, cell, partial(self._border, border, source, cell))
            part = cell.intersect(box)
            view[part.relative_to(box.lower).slices] = values[part.relative_to(cell.lower).slices]

    def _border(self, border: BorderWeight, source: LabelledRegion, box: Box) -> NDArray[np.float32]:
        """The border map of a box inside the region, computed."""
        reach = border.reach(source.image.voxel_size, planar=self.planar)
        around = box.grow(reach, reach).intersect(source.region)
        labels = self._labels(source, around)
        ids = objects_of(labels, self.target, planar=self.planar, ignore=source.ignore)
        within = box.relative_to(around.lower)
        found = border.of(ids, source.image.voxel_size, planar=self.planar, within=within)
        if source.ignore is not None:
            found[labels[within.shift((MARGIN,) * 3).slices] == source.ignore] = 0
        return found

    def _labels(self, source: LabelledRegion, box: Box) -> NDArray[Any]:
        """Labels of a box inside the region with the targets' margin, without 0 beyond the region."""
        margin = (0 if self.planar else MARGIN, MARGIN, MARGIN)  # planes that stand alone need no others
        labels = source.labels.read(box.grow(margin, margin))[0]
        labels = np.pad(labels, [(MARGIN - n, MARGIN - n) for n in margin], mode="edge")
        end_at(labels, box, source.region)
        return labels

    def probe(self, sources: Sequence[LabelledRegion], *, voxels: int = PROBE_VOXELS) -> NDArray[np.int64]:
        """Voxels per class among at most about `voxels` of each region, spread evenly over it.

        Raises
        ------
        InputError
            A label that the network has no class for; none above class 0 in any region.
        """
        counts = np.zeros(self.classes, np.int64)
        for source in sources:
            for box in spread(source, voxels):
                found = self.read(source, box, error=InputError)
                counts += np.bincount(found.ravel(), minlength=IGNORE + 1)[: self.classes]
        self.require_foreground(counts, sources)
        return counts

    def require_foreground(self, counts: NDArray[np.int64], sources: Sequence[LabelledRegion]) -> None:
        """Refuse regions that were found to hold nothing above class 0: InputError."""
        if counts[1:].any():
            return
        regions = "; ".join(f"{_name(s.labels)} in {s.region}" for s in sources)
        raise InputError(
            "nothing is labelled here" if not counts.any() else "there is only background here",
            where=regions,
            expected=f'at least one voxel above class 0 for the target "{self.target}"',
            found=f"{counts[0]:,} labelled voxels, all of class 0",
            fix="name a region that holds labelled objects",
        )


def _classes(found: NDArray[np.uint8]) -> str:
    """For people: the classes that occur, the first few of many."""
    known = [str(k) for k in np.unique(found)]
    shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    return f"class{'es' if len(known) > 1 else ''} {shown}"


def spread(source: LabelledRegion, voxels: int) -> Iterator[Box]:
    """Boxes of about a label chunk, spread evenly over the region.

    Chunks shorter than 32 voxels are read side by side, huge ones in parts: no box has more than `_PROBED`.
    """
    shape = source.region.shape
    cell = [min(n, c) for n, c in zip(shape, source.labels.chunk_shape)]
    while prod(cell) > _PROBED:
        axis = cell.index(max(cell))
        cell[axis] = (cell[axis] + 1) // 2
    for axis, n in enumerate(shape):
        others = prod(cell) // cell[axis]
        cell[axis] = max(cell[axis], min(n, 32, _PROBED // others))
    for box in Grid(source.region, tuple(cell)).spread(max(1, voxels // prod(cell))):
        yield box.intersect(source.region)


def _name(volume: Volume) -> str:
    return f"{volume.url}/{volume.path}".rstrip("/")
