"""Measures of objects: which predicted object is which true one, and how well it fits.

Objects are ids above 0. Voxels that nobody labelled count nowhere, so an object is what of it lies on
labelled voxels of the region. IoU of two objects = common voxels / voxels of either. Objects of several
images are counted together: every object weighs the same.

Sources
    [S]  StarDist, Schmidt et al. 2018 (arXiv:1806.03535), and its `matching`: AP, F1, mean matched IoU.
    [C]  Cellpose, Stringer et al. 2021 (Nature Methods 18), and its `metrics.average_precision`: the same AP.
    [K]  Kirillov et al. 2019, "Panoptic Segmentation" (arXiv:1801.00868).
    [T]  Ulman et al. 2017, "An objective comparison of cell-tracking algorithms" (Nature Methods 14): SEG.

A figure is None where there is nothing to be measured: no object on either side (SEG: no true object). Where
there are objects and none match it is 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unet_core.errors import InputError
from unet_core.evaluation.contingency import Contingency

# As in COCO, StarDist and Cellpose. Quotients of integers: 3 voxels of 5 must reach 0.6 to the bit.
THRESHOLDS = tuple(k / 100 for k in range(50, 100, 5))


@dataclass(frozen=True)
class Matching:
    """Objects matched one to one where their IoU is at least `threshold`: as many as possible.

    `true_positives` pairs were matched, `false_positives` predicted and `false_negatives` true objects were
    not; `iou_sum` is the sum of the matched pairs' IoU.
    """

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    iou_sum: float

    @property
    def average_precision(self) -> float | None:
        """TP / (TP + FP + FN): what [S], [C] and the Data Science Bowl 2018 call (average) precision."""
        return self._share(self.true_positives, 1, 1)

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN)."""
        return self._share(self.true_positives, 0.5, 0.5)

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP): of the predicted objects those that are true; 0 where none was predicted."""
        return self._share(self.true_positives, 1, 0)

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN): of the true objects those that were found; 0 where there are none."""
        return self._share(self.true_positives, 0, 1)

    @property
    def mean_matched_iou(self) -> float | None:
        """Mean IoU of the matched pairs [S, `mean_matched_score`]; panoptic SQ is the same at IoU > 0.5."""
        return self._share(self.iou_sum, 0, 0)

    @property
    def panoptic_quality(self) -> float | None:
        """Sum of the matched IoU / (TP + FP/2 + FN/2) = mean matched IoU x F1 [K]."""
        return self._share(self.iou_sum, 0.5, 0.5)

    def _share(self, part: float, false_positive: float, false_negative: float) -> float | None:
        if not self.true_positives + self.false_positives + self.false_negatives:
            return None
        missed = false_positive * self.false_positives + false_negative * self.false_negatives
        whole = self.true_positives + missed
        return part / whole if whole else 0.0


@dataclass(frozen=True)
class Overlaps:
    """The pairs of a true and a predicted object that share voxels.

    `common`, `true_voxels`, `predicted_voxels` have one entry per pair; `true` and `predicted` number its
    objects. `true_count` and `predicted_count` count all objects, also those that meet none.
    """

    true: NDArray[np.intp]
    predicted: NDArray[np.intp]
    common: NDArray[np.int64]
    true_voxels: NDArray[np.int64]
    predicted_voxels: NDArray[np.int64]
    true_count: int
    predicted_count: int

    @classmethod
    def of(cls, table: Contingency) -> Overlaps:
        both = (table.true != 0) & (table.predicted != 0)
        t, p = table.true_segments, table.predicted_segments
        true, predicted = t.of_pair[both], p.of_pair[both]
        return cls(
            true=true,
            predicted=predicted,
            common=table.voxels[both],
            true_voxels=t.voxels[true],
            predicted_voxels=p.voxels[predicted],
            true_count=int(np.count_nonzero(t.id)),
            predicted_count=int(np.count_nonzero(p.id)),
        )

    @cached_property
    def iou(self) -> NDArray[np.float64]:
        return self.common / (self.true_voxels + self.predicted_voxels - self.common)

    def match(self, threshold: float) -> Matching:
        """Match objects one to one among the pairs whose IoU is at least `threshold`, in (0, 1].

        As many pairs as can be, then those of highest IoU: an optimal assignment, as [S] and [C] solve it.
        It is solved by connected component of the pairs in question. Above IoU 0.5 no object has two
        candidates, and there is nothing to solve.

        Raises
        ------
        InputError
            A threshold outside (0, 1].
        """
        if not 0 < threshold <= 1:
            raise InputError("an IoU threshold lies in (0, 1]", found=threshold)
        candidates = np.flatnonzero(self.iou >= threshold)
        matched = self._one_to_one(candidates)
        return Matching(
            threshold=threshold,
            true_positives=matched.size,
            false_positives=self.predicted_count - matched.size,
            false_negatives=self.true_count - matched.size,
            iou_sum=float(self.iou[matched].sum()),
        )

    def panoptic(self) -> Matching:
        """The matching of panoptic quality [K]: IoU above 0.5, not 0.5 itself.

        PQ is its `panoptic_quality`, SQ its `mean_matched_iou`, RQ its `f1`.
        """
        return self.match(float(np.nextafter(0.5, 1)))

    def seg(self) -> float | None:
        """SEG of the Cell Tracking Challenge [T]: mean over all true objects of the Jaccard index (IoU) with
        the predicted object that covers more than half of the true one, 0 where there is none."""
        if not self.true_count:
            return None
        covers = 2 * self.common > self.true_voxels
        return float(self.iou[covers].sum() / self.true_count)

    def _one_to_one(self, candidates: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those of the candidate pairs that are matched."""
        true, t = np.unique(self.true[candidates], return_inverse=True)
        predicted, p = np.unique(self.predicted[candidates], return_inverse=True)
        if true.size == predicted.size == candidates.size:
            return candidates
        size = true.size + predicted.size
        graph = coo_array((np.ones(t.size, bool), (t, true.size + p)), shape=(size, size))
        component = connected_components(graph, directed=False)[1][t]
        order = np.argsort(component, kind="stable")
        edges = np.flatnonzero(np.diff(component[order])) + 1
        return np.concatenate([self._assigned(candidates[part]) for part in np.split(order, edges)])

    def _assigned(self, pairs: NDArray[np.intp]) -> NDArray[np.intp]:
        """Optimal assignment among a few pairs."""
        true, t = np.unique(self.true[pairs], return_inverse=True)
        predicted, p = np.unique(self.predicted[pairs], return_inverse=True)
        fewest = min(true.size, predicted.size)
        # All IoU together weigh less than one pair more.
        gain = np.zeros((true.size, predicted.size))
        gain[t, p] = 1 + self.iou[pairs] / (2 * fewest)
        pair_at = np.full(gain.shape, -1, np.intp)
        pair_at[t, p] = pairs
        found: NDArray[np.intp] = pair_at[linear_sum_assignment(gain, maximize=True)]
        return found[found >= 0]


def matchings(overlaps: Overlaps, thresholds: Iterable[float] = THRESHOLDS) -> tuple[Matching, ...]:
    """One matching per threshold."""
    return tuple(overlaps.match(threshold) for threshold in thresholds)


def mean_average_precision(found: Iterable[Matching]) -> float | None:
    """Mean of the average precision over the thresholds."""
    values = [m.average_precision for m in found]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def foreground_dice(table: Contingency) -> float | None:
    """Dice of "belongs to an object": 2 |T and P| / (|T| + |P|), whichever object it is."""
    true, predicted = table.true != 0, table.predicted != 0
    whole = int(table.voxels[true].sum() + table.voxels[predicted].sum())
    return 2 * int(table.voxels[true & predicted].sum()) / whole if whole else None
