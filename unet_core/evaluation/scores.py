"""IoU, Dice and pixel error from one confusion matrix.

Sources: pixel error and IoU as the U-Net paper (Ronneberger 2015, section 4) reports them for the ISBI
challenges of 2012 and 2015. Dice is the F1 score of one class; for one class it is 2 IoU / (1 + IoU).

    confusion[t, p] = voxels of true class t that were predicted as p

    IoU of k  = c[k, k] / (row k + column k - c[k, k])
    Dice of k = 2 c[k, k] / (row k + column k)
    pixel (voxel) error = 1 - trace / sum
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.targets import IGNORE

# np.bincount wants 8-byte indices: they are made for this many voxels at a time.
_PIECE = 2**20


@dataclass(frozen=True, eq=False)
class Scores:
    """A confusion matrix and what follows from it. Scores of disjoint regions add up with `+`.

    Parameters
    ----------
    confusion
        (true class, predicted class) voxel counts, int64.
    class_names
        One name per class, the background first.

    A class that is neither in the truth nor in the prediction has no IoU and no Dice: they are None
    (null in JSON), never NaN, and `mean_iou` is the mean over the other classes, background included.
    A class that only one of the two has scores 0. A region without one labelled voxel has no
    `pixel_error` and no `mean_iou`: they are None.

    Raises
    ------
    InputError
        A matrix that is not square, or not one name per class.
    """

    confusion: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.class_names)
        if self.confusion.shape != (count, count):
            raise InputError(
                "a confusion matrix needs one row and one column per class",
                expected=(count, count),
                found=self.confusion.shape,
            )

    def __add__(self, other: Scores) -> Scores:
        if self.class_names != other.class_names:
            raise InputError(
                "scores of different classes do not add up",
                expected=", ".join(self.class_names),
                found=", ".join(other.class_names),
            )
        return Scores(self.confusion + other.confusion, self.class_names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scores):
            return NotImplemented
        return self.class_names == other.class_names and np.array_equal(self.confusion, other.confusion)

    __hash__ = None  # type: ignore[assignment]

    @property
    def voxels(self) -> int:
        """Voxels that were compared."""
        return int(self.confusion.sum())

    @property
    def true_voxels(self) -> tuple[int, ...]:
        """Voxels of each class in the truth."""
        return tuple(int(n) for n in self.confusion.sum(axis=1))

    @property
    def predicted_voxels(self) -> tuple[int, ...]:
        """Voxels of each class in the prediction."""
        return tuple(int(n) for n in self.confusion.sum(axis=0))

    @property
    def iou(self) -> tuple[float | None, ...]:
        """Intersection over union per class."""
        counts = zip(self._hits, self.true_voxels, self.predicted_voxels)
        return tuple(hit / (t + p - hit) if t + p else None for hit, t, p in counts)

    @property
    def dice(self) -> tuple[float | None, ...]:
        """Dice (F1) per class."""
        counts = zip(self._hits, self.true_voxels, self.predicted_voxels)
        return tuple(2 * hit / (t + p) if t + p else None for hit, t, p in counts)

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU over the classes that the truth or the prediction has."""
        present = [value for value in self.iou if value is not None]
        return sum(present) / len(present) if present else None

    @property
    def pixel_error(self) -> float | None:
        """Share of voxels with the wrong class."""
        return 1 - sum(self._hits) / self.voxels if self.voxels else None

    def to_dict(self) -> dict[str, Any]:
        """Everything by class name, JSON-ready."""
        columns = zip(self.class_names, self.iou, self.dice, self.true_voxels, self.predicted_voxels)
        return {
            "voxels": self.voxels,
            "pixel_error": self.pixel_error,
            "mean_iou": self.mean_iou,
            "classes": {
                name: {"iou": iou, "dice": dice, "true_voxels": true, "predicted_voxels": predicted}
                for name, iou, dice, true, predicted in columns
            },
            "confusion": self.confusion.tolist(),
        }

    def trimmed(self, classes: int) -> Scores:
        """The same scores over the first classes only; those left out must be empty."""
        return Scores(self.confusion[:classes, :classes], self.class_names[:classes])

    @property
    def _hits(self) -> tuple[int, ...]:
        return tuple(int(n) for n in np.diagonal(self.confusion))


def confusion_of(truth: NDArray[np.integer[Any]], predicted: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """(true class, predicted class) counts of two arrays of classes 0 to classes - 1, unchecked.

    Voxels that are `targets.IGNORE` in the truth are left out.
    """
    flat_truth, flat_predicted = truth.reshape(-1), predicted.reshape(-1)
    counts = np.zeros(classes * classes, np.int64)
    for start in range(0, flat_truth.size, _PIECE):
        t = flat_truth[start : start + _PIECE].astype(np.intp)
        p = flat_predicted[start : start + _PIECE].astype(np.intp)
        known = t != IGNORE
        if not known.all():
            t, p = t[known], p[known]
        counts += np.bincount(t * classes + p, minlength=classes * classes)
    return counts.reshape(classes, classes)
