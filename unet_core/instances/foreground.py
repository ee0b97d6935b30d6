"""Which voxels belong to objects: chosen classes, by the most likely class or by a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray


def by_class(classes: NDArray[np.uint8], foreground: Sequence[int]) -> NDArray[np.uint8]:
    """1 + the class where it is one of `foreground`, 0 elsewhere; any shape.

    One more than the class, so that class 0 can be an object: the inside of cells between membranes.
    """
    result = np.zeros(classes.shape, np.uint8)
    for one in foreground:  # each at the speed of memory, where looking them up is not
        result += (classes == one) * np.uint8(one + 1)
    return result


def by_threshold(
    probabilities: NDArray[np.uint8], foreground: Sequence[int], threshold: float
) -> NDArray[np.uint8]:
    """1 + the most likely class among `foreground` where its probability reaches the threshold, else 0.

    `probabilities` (class, z, y, x) hold p = v / 255; on a tie the class named first wins.
    """
    least = ceil(threshold * 255)
    codes = np.asarray(foreground, np.uint8) + np.uint8(1)
    best = probabilities[foreground[0]]
    result = np.where(best >= least, codes[0], np.uint8(0))
    for one, code in zip(foreground[1:], codes[1:]):  # in place: argmax takes eight bytes a voxel
        value = probabilities[one]
        better = value > best
        result[better & (value >= least)] = code
        best = np.maximum(best, value)
    return result
