"""Every threshold of a probability at once, from one small histogram.

Probabilities are uint8, p = v / 255. A voxel is predicted foreground where v >= threshold; the thresholds
are 0 (everything is) to 256 (nothing is).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

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
from unet_core.geometry import Box
from unet_core.targets import IGNORE
from unet_core.volumes import Volume

Criterion = Literal["iou", "dice", "pixel_error"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
VALUES = 256
_HALF = 128  # the threshold that is argmax's: p >= 1/2
_PIECE = 2**20  # np.bincount wants 8-byte indices: they are made for this many voxels at a time


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it scored: foreground is v >= `value`, or p >= `probability`."""

    value: int
    criterion: Criterion
    score: float

    @property
    def probability(self) -> float:
        return self.value / (VALUES - 1)

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "probability": self.probability,
            "criterion": self.criterion,
            "score": self.score,
        }


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Voxels by true class and probability, and what follows. Thresholds of disjoint regions add up with `+`.

    Parameters
    ----------
    histogram
        (true class: 0 background, 1 foreground; probability) voxel counts, (2, 256) int64.

    `iou`, `dice` and `pixel_error` have one entry per threshold 0 to 256. IoU and Dice are those of the
    foreground, and NaN where there is none in truth and prediction; the pixel error is NaN where there is no
    voxel. What is meant for others (`best`, `to_dict`) has None there.

    Raises
    ------
    InputError
        A histogram of another shape.
    """

    histogram: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.histogram.shape != (2, VALUES):
            raise InputError(
                "a threshold histogram has two classes and 256 values",
                expected=(2, VALUES),
                found=self.histogram.shape,
            )

    @classmethod
    def empty(cls) -> Thresholds:
        """The histogram of nothing: adding it changes nothing."""
        return cls(np.zeros((2, VALUES), np.int64))

    @classmethod
    def of(cls, classes: NDArray[np.uint8], probabilities: NDArray[np.uint8]) -> Thresholds:
        """Count a block.

        Parameters
        ----------
        classes
            0 and 1, or `targets.IGNORE` where nobody labelled: those voxels are left out.
        probabilities
            Of class 1, uint8, of the same shape.

        Raises
        ------
        InputError
            Shapes that differ, probabilities that are not uint8, other classes.
        """
        if classes.shape != probabilities.shape:
            raise InputError(
                "classes and probabilities differ in shape", expected=classes.shape, found=probabilities.shape
            )
        if probabilities.dtype != np.uint8:
            raise InputError("probabilities must be uint8", found=probabilities.dtype, fix="v = round(255 p)")
        flat, values = classes.reshape(-1), probabilities.reshape(-1)
        counts = np.zeros(2 * VALUES, np.int64)
        for start in range(0, flat.size, _PIECE):
            true, value = flat[start : start + _PIECE], values[start : start + _PIECE]
            if not (known := true != IGNORE).all():
                true, value = true[known], value[known]
            if true.size and not 0 <= true.min() <= true.max() <= 1:
                raise InputError(
                    "a threshold tells two classes apart",
                    expected="0 and 1",
                    found=f"{true.min()} to {true.max()}",
                )
            counts += np.bincount(true.astype(np.intp) * VALUES + value, minlength=2 * VALUES)
        return cls(counts.reshape(2, VALUES))

    def __add__(self, other: Thresholds) -> Thresholds:
        return Thresholds(self.histogram + other.histogram)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Thresholds):
            return NotImplemented
        return np.array_equal(self.histogram, other.histogram)

    __hash__ = None  # type: ignore[assignment]

    @property
    def voxels(self) -> int:
        """Labelled voxels."""
        return int(self.histogram.sum())

    @property
    def iou(self) -> NDArray[np.float64]:
        """TP / (TP + FP + FN)."""
        true, false, missed = self._errors
        return _ratio(true, true + false + missed)

    @property
    def dice(self) -> NDArray[np.float64]:
        """2 TP / (2 TP + FP + FN)."""
        true, false, missed = self._errors
        return _ratio(2 * true, 2 * true + false + missed)

    @property
    def pixel_error(self) -> NDArray[np.float64]:
        """(FP + FN) / all."""
        _, false, missed = self._errors
        return _ratio(false + missed, np.full(false.shape, self.voxels))

    def best(self, criterion: Criterion = "iou") -> Threshold | None:
        """The threshold of highest IoU or Dice (it is the same one), or lowest pixel error.

        Of equal ones the nearest to one half, which is what argmax of two classes does; then the lower.
        None where no threshold is better than another for lack of truth: no labelled voxel, or for IoU
        and Dice no foreground in the truth.

        Raises
        ------
        InputError
            An unknown criterion.
        """
        if criterion not in CRITERIA:
            raise InputError("this criterion is not known", expected=CRITERIA, found=repr(criterion))
        if not self.voxels or (criterion != "pixel_error" and not self.histogram[1].any()):
            return None
        scores: NDArray[np.float64] = getattr(self, criterion)
        aim = scores.min() if criterion == "pixel_error" else scores.max()
        equal = np.flatnonzero(scores == aim)
        value = int(equal[np.abs(equal - _HALF).argmin()])
        return Threshold(value=value, criterion=criterion, score=float(aim))

    def to_dict(self) -> dict[str, Any]:
        """The histogram and the best threshold by each criterion, JSON-ready."""
        best = {name: self.best(name) for name in CRITERIA}
        return {
            "voxels": self.voxels,
            "best": {name: None if found is None else found.to_dict() for name, found in best.items()},
            "histogram": self.histogram.tolist(),
        }

    @property
    def _errors(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """True positives, false positives and false negatives per threshold."""
        from_above = np.zeros((2, VALUES + 1), np.int64)
        from_above[:, :-1] = self.histogram[:, ::-1].cumsum(axis=1)[:, ::-1]
        false, true = from_above
        return true, false, true[0] - true


def evaluate_thresholds(
    probabilities: Volume, truth: Truth, *, roi: Box | None = None, block_voxels: int = BLOCK_VOXELS
) -> Thresholds:
    """Score every threshold of the second class's probability, one block in memory at a time.

    Parameters
    ----------
    probabilities
        uint8, one channel for each of two classes, as `segment --probabilities` writes them.
    truth
        Of two classes.
    roi
        What is compared, in voxels of both volumes; None compares everything.

    Raises
    ------
    InputError
        Other channels or classes, another type or shape, an ROI outside the volume, or no labelled voxel.
    """
    if len(probabilities.channels) != 2 or truth.count != 2 or probabilities.dtype != np.uint8:
        raise InputError(
            "a threshold needs the probabilities of two classes",
            where=probabilities.url,
            expected="uint8, two channels, and a truth of two classes",
            found=f"{probabilities.dtype}, {len(probabilities.channels)} channels, {truth.count} classes",
        )
    require_same_shape(probabilities, truth.volume)
    require_inside(roi, truth.volume, what="the ROI")
    blocks = blocks_of([probabilities, truth.volume], roi, block_voxels // 2)
    total = Thresholds.empty()
    for block in blocks:
        box = block.intersect(blocks.extent)
        total += Thresholds.of(truth.classes(box), probabilities.read(box)[1])
    if not total.voxels:
        raise InputError("no voxel of this region is labelled", where=truth.volume.url, found=blocks.extent)
    return total


def _ratio(part: NDArray[np.int64], whole: NDArray[Any]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio
