"""What needs no network: the figures that a prediction has to beat.

Both answers are chosen on the training region and scored on the evaluated one, as a network is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.evaluation.comparison import (
    BLOCK_VOXELS,
    Truth,
    blocks_of,
    require_inside,
    require_same_shape,
)
from unet_core.evaluation.scores import Scores, confusion_of
from unet_core.geometry import Box
from unet_core.targets import IGNORE, Target
from unet_core.volumes import Volume

# Thresholds that are tried where the intensities are not integers of at most 16 bits' range.
_BINS = 4096


@dataclass(frozen=True, kw_only=True)
class ThresholdRule:
    """Class `below` where the intensity of `channel` is at most `value`, else class `above`."""

    channel: int
    value: float
    below: int
    above: int

    def apply(self, data: NDArray[Any]) -> NDArray[np.uint8]:
        """(channel, z, y, x) intensities to uint8 classes (z, y, x)."""
        result: NDArray[np.uint8] = np.where(data[self.channel] <= self.value, self.below, self.above).astype(
            np.uint8
        )
        return result


@dataclass(frozen=True, kw_only=True)
class TrivialScores:
    """Scores of the training region's most frequent class everywhere, and of its best single threshold."""

    majority: Scores
    majority_class: int
    threshold: Scores
    rule: ThresholdRule

    def to_dict(self) -> dict[str, Any]:
        return {
            "majority": {"class": self.majority_class, **self.majority.to_dict()},
            "threshold": {"rule": asdict(self.rule), **self.threshold.to_dict()},
        }


def trivial_scores(
    image: Volume,
    truth: Volume,
    *,
    train: Box,
    target: Target | None = None,
    roi: Box | None = None,
    class_names: Sequence[str] | None = None,
    planar: bool = False,
    ignore: int | None = None,
    block_voxels: int = BLOCK_VOXELS,
) -> TrivialScores:
    """Score the two trivial answers, one block in memory at a time.

    Parameters
    ----------
    image
        Intensities, one or more channels; the threshold is the best over all channels and over
        which two classes lie below and above it.
    train
        Where the most frequent class and the threshold of highest mean IoU are found.
    roi
        What is scored; None scores everything.
    truth, target, class_names, planar, ignore
        See `Truth`; semantic truth needs `class_names`.

    Raises
    ------
    InputError
        Shapes that differ, a region outside the volume, no names for semantic classes, no labelled voxel
        in a region, intensities that are not finite, or truth values beyond the classes.
    """
    names = None if class_names is None else tuple(class_names)
    known = Truth(volume=truth, target=target, names=names, planar=planar, ignore=ignore, region=train)
    if names is None and not known.derived:
        raise InputError("semantic classes need names here", where="class_names", expected="one per class")
    require_same_shape(image, truth)
    require_inside(train, truth, what="the training region")
    require_inside(roi, truth, what="the ROI")

    histogram, edges = _histogram(image, known, train, block_voxels)
    frequency = histogram[0].sum(axis=1)
    if not frequency.any():
        raise InputError("no voxel of the training region is labelled", where=truth.url, found=train)
    majority = int(frequency.argmax())
    rule = _best_rule(histogram, edges)

    shape = (known.count, known.count)
    by_majority, by_threshold = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    judged = replace(known, region=roi)
    for box in _boxes(image, judged, roi, block_voxels):
        classes = judged.classes(box)
        by_majority += confusion_of(classes, np.full_like(classes, majority), known.count)
        by_threshold += confusion_of(classes, rule.apply(image.read(box)), known.count)
    if not by_majority.any():
        raise InputError("no voxel of this region is labelled", where=truth.url, found=roi or truth.box)
    return TrivialScores(
        majority=Scores(by_majority, known.class_names),
        majority_class=majority,
        threshold=Scores(by_threshold, known.class_names),
        rule=rule,
    )


def _boxes(image: Volume, truth: Truth, region: Box | None, voxels: int) -> Iterator[Box]:
    grid = blocks_of([image, truth.volume], region, voxels)
    return (block.intersect(grid.extent) for block in grid)


def _histogram(
    image: Volume, truth: Truth, region: Box, voxels: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Counts (channel, class, bin) and the bins' upper edges; a value on an edge lies in the bin below it."""
    low, high = np.inf, -np.inf
    for box in _boxes(image, truth, region, voxels):
        data = image.read(box)
        # min and max carry NaN and infinity along, so the block needs no other look.
        low, high = min(low, float(data.min())), max(high, float(data.max()))
        if not np.isfinite([low, high, data.min(), data.max()]).all():
            raise InputError("the image holds NaN or infinite values", where=f"{image.url}, box {box}")
    if image.dtype.kind in "uib" and high - low < 2**16:
        edges = np.arange(low, high + 1)
    else:
        edges = np.linspace(low, high, _BINS + 1)[1:]
    shape = (truth.count, len(edges))
    counts = np.zeros((len(image.channels), *shape), np.int64)
    for box in _boxes(image, truth, region, voxels):
        classes = truth.classes(box)
        for channel, data in enumerate(image.read(box)):
            for plane, intensities in zip(classes, data):
                known = plane != IGNORE
                bins = np.searchsorted(edges, intensities[known].astype(np.float64))
                # The last edge is the highest value but for rounding.
                index = plane[known].astype(np.intp) * len(edges) + bins.clip(max=len(edges) - 1)
                counts[channel] += np.bincount(index, minlength=prod(shape)).reshape(shape)
    return counts, edges


def _best_rule(histogram: NDArray[np.int64], edges: NDArray[np.float64]) -> ThresholdRule:
    """The rule of highest mean IoU over all channels, thresholds and ordered pairs of classes."""
    total = histogram[0].sum(axis=1)[:, np.newaxis]
    below = histogram.cumsum(axis=2)
    above = total - below
    # Every rule is scored over the same classes, so the sum of the two IoUs that are not 0 decides.
    iou_below = _ratio(below, total + below.sum(axis=1, keepdims=True) - below)
    iou_above = _ratio(above, total + above.sum(axis=1, keepdims=True) - above)
    best, rule = -1.0, ThresholdRule(channel=0, value=float(edges[-1]), below=0, above=0)
    for a, b in permutations(range(histogram.shape[1]), 2):
        score = iou_below[:, a] + iou_above[:, b]
        if score.max() > best:
            best = float(score.max())
            channel, edge = np.unravel_index(score.argmax(), score.shape)
            rule = ThresholdRule(channel=int(channel), value=float(edges[edge]), below=a, above=b)
    return rule


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
