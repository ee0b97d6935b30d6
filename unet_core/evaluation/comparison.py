"""Predicted classes against a truth, block by block: never two whole volumes in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.evaluation.scores import Scores, confusion_of
from unet_core.geometry import Box, Grid
from unet_core.targets import DERIVED, IGNORE, MARGIN, Target, class_names, classes_of, end_at
from unet_core.volumes import Volume

# One block of labels, truth and the truth's classes takes about 12 bytes a voxel: 200 MB.
BLOCK_VOXELS = 2**24
# Without class names, values above this are taken for instance ids: nobody reads a table that long.
UNNAMED_CLASSES = 32


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A truth volume, and how its values become classes.

    Parameters
    ----------
    volume
        Integers, one channel.
    target
        None or "semantic": the values are classes. Any other: the values are instance ids, turned into
        classes box by box.
    names
        The classes, background first. None: those of the target; for semantic truth whatever
        occurs, at most `UNNAMED_CLASSES`.
    planar, ignore
        As in `unet_core.targets.classes_of`; voxels labelled `ignore` are not compared.
    region
        The labelled part, None for everything: 0 beyond it is not background, as in training.

    Raises
    ------
    InputError
        Values that are not integers, several channels, or names that do not fit the target.
    """

    volume: Volume
    target: Target | None = None
    names: tuple[str, ...] | None = None
    planar: bool = False
    ignore: int | None = None
    region: Box | None = None

    def __post_init__(self) -> None:
        require_labels(self.volume, what="the truth")
        if self.names is not None and not 1 <= len(self.names) <= IGNORE:
            raise InputError("wrong number of classes", expected=f"1 to {IGNORE}", found=len(self.names))
        if self.target is not None:
            class_names(self.target, self.count)

    @property
    def derived(self) -> bool:
        """Whether classes are made from instance ids."""
        return self.target in DERIVED

    @property
    def count(self) -> int:
        """Classes that may occur."""
        if self.names is not None:
            return len(self.names)
        return UNNAMED_CLASSES if self.target not in DERIVED else len(DERIVED[self.target])

    @property
    def class_names(self) -> tuple[str, ...]:
        """`count` names."""
        return self.names or class_names(self.target or "semantic", self.count)

    def classes(self, box: Box) -> NDArray[np.uint8]:
        """Classes of a box inside the volume, uint8 (z, y, x); `targets.IGNORE` where nobody labelled.

        Raises
        ------
        InputError
            A value beyond the classes.
        """
        if self.target is not None and self.derived:
            margin = (MARGIN,) * 3
            labels = self.volume.read(box.grow(margin, margin))[0]
            end_at(labels, box, self.region or self.volume.box)
            try:
                return classes_of(labels, self.target, planar=self.planar, ignore=self.ignore)
            except InputError as error:
                raise InputError(
                    error.problem,
                    where=f"the truth, {self.volume.url}, box {box}",
                    expected=error.expected,
                    found=error.found,
                    fix=error.fix,
                ) from None
        values = self.volume.read(box)[0]
        unlabelled = None if self.ignore is None else values == self.ignore
        if unlabelled is not None:
            values = np.where(unlabelled, 0, values)
        require_classes(
            values,
            self.count,
            volume=self.volume,
            box=box,
            what="the truth",
            fix="if a number below 0 marks voxels that nobody labelled, ignore it: --ignore=-1"
            if values.min() < 0
            else "if these are instance ids, add --target foreground or --target boundary; "
            "if they are classes, name them all",
        )
        classes: NDArray[np.uint8] = values.astype(np.uint8)
        if unlabelled is not None:
            classes[unlabelled] = IGNORE
        return classes


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Predicted classes against a truth, as blocks that can be scored anywhere, in any order, and added up.

    `roi` is in voxels of the volumes, None for everything; no block holds more than about `block_voxels`.

    Raises
    ------
    InputError
        Shapes that differ, labels that are not integers, an ROI outside the volume.
    """

    labels: Volume
    truth: Truth
    roi: Box | None = None
    block_voxels: int = BLOCK_VOXELS

    def __post_init__(self) -> None:
        require_labels(self.labels, what="the prediction")
        require_same_shape(self.labels, self.truth.volume)
        require_inside(self.roi, self.truth.volume, what="the ROI")

    @cached_property
    def blocks(self) -> Grid:
        """Blocks of whole chunks that meet the ROI; clip them with `intersect`."""
        return blocks_of([self.labels, self.truth.volume], self.roi, self.block_voxels)

    def score(self, index: int) -> Scores:
        """Scores of block `index`. Raises InputError for a value beyond the classes."""
        box = self.blocks[index].intersect(self.blocks.extent)
        predicted = self.labels.read(box)[0]
        require_classes(
            predicted,
            self.truth.count,
            volume=self.labels,
            box=box,
            what="the prediction",
            fix="compare the volume that holds classes, or name all classes",
        )
        return Scores(
            confusion_of(self.truth.classes(box), predicted, self.truth.count), self.truth.class_names
        )

    def finish(self, total: Scores) -> Scores:
        """The sum of all blocks' scores, made ready to be shown.

        Raises
        ------
        InputError
            Not one labelled voxel was compared.
        """
        if not total.voxels:
            raise InputError(
                "no voxel of this region is labelled", where=self.truth.volume.url, found=self.blocks.extent
            )
        if self.truth.names is None and not self.truth.derived:
            # The longest table that the data fills: unnamed classes are known only by their use.
            used = np.flatnonzero(total.confusion.sum(axis=0) + total.confusion.sum(axis=1))
            return total.trimmed(max(2, int(used[-1]) + 1))
        return total


def evaluate(
    labels: Volume,
    truth: Volume,
    *,
    target: Target | None = None,
    roi: Box | None = None,
    class_names: Sequence[str] | None = None,
    planar: bool = False,
    ignore: int | None = None,
    block_voxels: int = BLOCK_VOXELS,
) -> Scores:
    """Compare predicted classes with a truth, one block in memory at a time.

    Parameters
    ----------
    labels
        Predicted classes, integers, one channel.
    truth, target, class_names, planar, ignore
        See `Truth`.
    roi
        What is compared, in voxels of both volumes; None compares everything.

    Raises
    ------
    InputError
        As `Truth`, `Comparison` and their methods raise it.
    """
    names = None if class_names is None else tuple(class_names)
    known = Truth(volume=truth, target=target, names=names, planar=planar, ignore=ignore, region=roi)
    comparison = Comparison(labels=labels, truth=known, roi=roi, block_voxels=block_voxels)
    total = Scores(np.zeros((known.count, known.count), np.int64), known.class_names)
    for index in range(len(comparison.blocks)):
        total += comparison.score(index)
    return comparison.finish(total)


def blocks_of(volumes: Sequence[Volume], roi: Box | None, voxels: int) -> Grid:
    """Blocks for reading volumes of one shape side by side: whole chunks, about `voxels` at most.

    Where the volumes' chunks differ a block takes the longer one on each axis. Chunks that make a block
    too large are cut, and then decoded more than once: memory is bounded, time is not.
    """
    shape = volumes[0].shape
    block = [min(n, max(chunk)) for n, chunk in zip(shape, zip(*(v.chunk_shape for v in volumes)))]
    while prod(block) > voxels and max(block) > 1:
        axis = block.index(max(block))
        block[axis] = (block[axis] + 1) // 2
    while open_axes := [a for a in range(3) if block[a] < shape[a] and prod(block) * 2 <= voxels]:
        # The shortest axis first: cubes have the least surface, and a margin is read on every surface.
        block[min(open_axes, key=lambda a: block[a])] *= 2
    return Grid(Box.of_shape(shape) if roi is None else roi, tuple(block))


def require_labels(volume: Volume, *, what: str) -> None:
    """Refuse a volume that cannot hold labels."""
    if volume.dtype.kind not in "uib":
        raise InputError(
            f"{what} must hold integers",
            where=volume.url,
            expected="classes or instance ids",
            found=volume.dtype,
            fix="is this the image, or a volume of probabilities?",
        )
    if len(volume.channels) != 1:
        raise InputError(
            f"{what} must have one channel",
            where=volume.url,
            expected=1,
            found=len(volume.channels),
            fix="choose one with --channels",
        )


def require_same_shape(volume: Volume, truth: Volume) -> None:
    """Refuse a truth of another shape."""
    if volume.shape != truth.shape:
        raise InputError(
            "the two volumes have different shapes",
            where=f"{volume.url} and {truth.url}",
            expected=f"one shape on z, y, x; {volume.url} has {volume.shape}",
            found=f"{truth.url} has {truth.shape}",
            fix="compare the same pyramid level of the same acquisition",
        )


def require_inside(roi: Box | None, volume: Volume, *, what: str) -> None:
    """Refuse a region that is empty or not inside the volume."""
    if roi is not None and not (len(roi.lower) == 3 and roi and volume.box.contains(roi)):
        raise InputError(
            f"{what} is not inside the volume",
            where=volume.url,
            expected=f"a box within {volume.box}",
            found=roi,
        )


def require_classes(
    values: NDArray[Any], count: int, *, volume: Volume, box: Box, what: str, fix: str
) -> None:
    """Refuse values that are not classes 0 to count - 1."""
    low, high = values.min(), values.max()
    if low < 0 or high >= count:
        raise InputError(
            f"{what} holds values beyond the classes",
            where=f"{volume.url}, box {box}",
            expected=f"0 to {count - 1}",
            found=f"{low} to {high}",
            fix=fix,
        )
