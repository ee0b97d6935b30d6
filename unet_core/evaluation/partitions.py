"""Measures of two partitions of the voxels: which voxels lie together. They need no matching of objects.

Sources
    [A]  Arganda-Carreras et al. 2015, "Crowdsourcing the creation of image segmentation algorithms for
         connectomics", Frontiers in Neuroanatomy 9:142: the measures of the challenges ISBI 2012 and
         SNEMI3D. The code behind them is Fiji's `trainableSegmentation.metrics`.
    [M]  Meila 2007, "Comparing clusterings - an information based distance", J. Multivariate Analysis 98.

Below, n is the number of voxels that count; n_ij those of true segment i and predicted segment j;
t_i = sum_j n_ij, s_j = sum_i n_ij; p = n / sum n; entropies H are in bits (log base 2), of T the truth and
S the prediction. "Split" is about what the prediction cut apart, "merge" about what it joined.

Of several images each measure is the mean over those in which it is defined (the challenges' "per slice
average"); it is None where it is defined in none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.evaluation.contingency import Contingency, Segments

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AdaptedRand:
    """Adapted Rand error, 0 is best, with precision and recall, 1 is best."""

    error: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Variation:
    """Variation of information in bits: 0 is best."""

    split: float | None
    merge: float | None

    @property
    def total(self) -> float | None:
        return None if self.split is None or self.merge is None else self.split + self.merge


@dataclass(frozen=True)
class SplitMerge:
    """A score for splits, one for merges, and their harmonic mean: 1 is best."""

    split: float | None
    merge: float | None
    f_score: float | None


def adapted_rand(table: Contingency) -> AdaptedRand:
    """Adapted Rand error of SNEMI3D and CREMI: 1 - F of "these two voxels lie together".

        together = sum_ij n_ij (n_ij - 1),  in truth = sum_i t_i (t_i - 1),  predicted = sum_j s_j (s_j - 1)
        precision = together / predicted,  recall = together / in truth
        error = 1 - 2 together / (in truth + predicted)

    Voxels of true id 0 do not count; predicted id 0 is a segment like any other. The error equals
    skimage's `adapted_rand_error`. So do precision and recall as its documentation defines them (splits
    cost recall, merges cost precision); what its code returns is the two in the opposite order
    (scikit-image issue 6485, open in 0.26).

    A figure is None where it would divide by no pair at all: no object of two voxels.
    """
    joint, true, predicted = _sums(table.true_foreground, lambda n, _: n * (n - 1), lone_zero=False)
    error = _mean(true + predicted - 2 * joint, true + predicted)
    return AdaptedRand(error, precision=_mean(joint, predicted), recall=_mean(joint, true))


def variation_of_information(table: Contingency, *, foreground: bool = False) -> Variation:
    """Variation of information [M]: split = H(S|T), merge = H(T|S), in bits.

    Every voxel counts, id 0 is a segment like any other: skimage's `variation_of_information(truth,
    prediction)` with its defaults. With `foreground` voxels of true id 0 do not count, as in CREMI
    (skimage's `ignore_labels=[0]`). None where no voxel counts.
    """
    table = table.true_foreground if foreground else table
    joint, true, predicted = _sums(table, _information, lone_zero=False)
    one = np.ones(joint.size)
    return Variation(
        split=_mean((joint - true).clip(min=0), one), merge=_mean((joint - predicted).clip(min=0), one)
    )


def v_rand(table: Contingency) -> SplitMerge:
    """Foreground-restricted Rand score V-Rand [A, "Rand scoring"], the first measure of ISBI 2012.

        split = sum_ij p_ij^2 / sum_i t_i^2,  merge = sum_ij p_ij^2 / sum_j s_j^2
        F = 2 sum_ij p_ij^2 / (sum_i t_i^2 + sum_j s_j^2)                          (alpha = 0.5)

    Two voxels are drawn with replacement, which is all that makes it differ from 1 - `adapted_rand` where
    nothing is predicted 0. Voxels of true id 0, the borders, do not count. Each voxel that is predicted 0
    inside a true object is a segment of its own, as in the challenge's code (`foregroundRestrictedStatsN2`):
    a border that is predicted thick costs splits. The challenge thins predicted borders to one voxel
    first; do so where it is to be compared with. None where no voxel counts.
    """
    joint, true, predicted = _sums(table.true_foreground, lambda n, _: n * n, lone_zero=True)
    return SplitMerge(
        split=_mean(joint, true), merge=_mean(joint, predicted), f_score=_mean(2 * joint, true + predicted)
    )


def v_info(table: Contingency) -> SplitMerge:
    """Foreground-restricted information theoretic score V-Info [A], the second measure of ISBI 2012.

        split = I(S;T) / H(S),  merge = I(S;T) / H(T),  F = 2 I(S;T) / (H(S) + H(T))

    I is the mutual information H(S) + H(T) - H(S,T). What counts, and what predicted 0 is, as in `v_rand`.
    Where an entropy in the denominator is 0 there is one segment, which cannot be split (or merged)
    wrongly: that score is 1. None where no voxel counts.
    """
    joint, true, predicted = _sums(table.true_foreground, _information, lone_zero=True)
    mutual = (true + predicted - joint).clip(min=0)

    def score(entropy: Floats) -> float | None:
        sure = entropy <= 0
        return _mean(np.where(sure, 1.0, np.minimum(mutual, entropy)), np.where(sure, 1.0, entropy))

    return SplitMerge(split=score(predicted), merge=score(true), f_score=score((true + predicted) / 2))


def _information(n: Floats, total: Floats) -> Floats:
    """A segment's share of the entropy."""
    p = n / total
    return -p * np.log2(p)


def _sums(
    table: Contingency, measure: Callable[[Floats, Floats], Floats], *, lone_zero: bool
) -> tuple[Floats, Floats, Floats]:
    """Sums of `measure(voxels, voxels of the image)` over pairs, true and predicted segments, per image.

    With `lone_zero` every voxel that is predicted 0 is a segment of its own.
    """
    images, index = np.unique(table.image, return_inverse=True)
    total = _totals(index, table.voxels, images.size)

    def per_image(image: NDArray[np.int64], voxels: NDArray[np.int64], lone: NDArray[np.bool_]) -> Floats:
        index = np.searchsorted(images, image)
        lone = lone & lone_zero
        # A lone voxel's measure as often as there are lone voxels.
        size, times = np.where(lone, 1.0, voxels), np.where(lone, voxels, 1.0)
        return _totals(index, times * measure(size, total[index]), images.size)

    def of(segments: Segments, lone: NDArray[np.bool_]) -> Floats:
        return per_image(segments.image, segments.voxels, lone)

    true, predicted = table.true_segments, table.predicted_segments
    return (
        per_image(table.image, table.voxels, table.predicted == 0),
        of(true, np.zeros(true.id.size, bool)),
        of(predicted, predicted.id == 0),
    )


def _totals(index: NDArray[np.intp], values: NDArray[Any], count: int) -> Floats:
    totals: Floats = np.bincount(index, values, count).astype(np.float64)
    return totals


def _mean(parts: Floats, wholes: Floats) -> float | None:
    """Mean of the ratios that are defined."""
    defined = wholes > 0
    return float((parts[defined] / wholes[defined]).mean()) if defined.any() else None
