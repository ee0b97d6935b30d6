"""Which true object meets which predicted one, in how many voxels: all that measures of instances need.

    true id   predicted id   voxels
       0           0           912      background in both
       7           3           120  \\
       7           4            15   } object 7 was found as 3, and a piece of it as 4
       9           3             2      ... which 3 shares with 9

The table is sparse, O(overlapping pairs), and tables of disjoint regions add up with `+` in any order. So
two label volumes are compared block by block, anywhere, and never lie in memory whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError

# Voxels that are cut into runs at a time: the worst data has one run per voxel, of about 50 bytes.
_PIECE = 2**22


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of one side of a table, background (id 0) included: one entry each, by id and image.

    `of_pair` says for each row of the table which segment it belongs to.
    """

    image: NDArray[np.int64]
    id: NDArray[np.uint64]
    voxels: NDArray[np.int64]
    of_pair: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Contingency:
    """Voxels per (image, true id, predicted id), sorted by them, each pair once, none without voxels.

    Objects of different images are different objects whatever their ids: a volume is one image, a stack
    of planes that have nothing to do with each other is as many. Id 0 is background.

    Parameters
    ----------
    image, true, predicted, voxels
        One-dimensional, one entry per pair: int64, uint64, uint64, int64. `of` and `merge` make them.
    """

    image: NDArray[np.int64]
    true: NDArray[np.uint64]
    predicted: NDArray[np.uint64]
    voxels: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Contingency:
        """The table of nothing: adding it changes nothing."""
        ids = np.zeros(0, np.uint64)
        return cls(np.zeros(0, np.int64), ids, ids, np.zeros(0, np.int64))

    @classmethod
    def of(
        cls,
        true: NDArray[Any],
        predicted: NDArray[Any],
        *,
        planar: bool = False,
        image: int = 0,
        ignore: int | None = None,
        where: object = None,
    ) -> Contingency:
        """Count a block of labels.

        Parameters
        ----------
        true, predicted
            Ids, integers of any type, of one shape; (z, y, x) or fewer axes.
        planar
            The planes (along the first axis) are images of their own, `image` the first one's number.
        image
            The number of the image that this block is a part of.
        ignore
            True id of voxels that nobody labelled: they count nowhere, not in predicted objects either.
        where
            The block's place, for the message.

        Raises
        ------
        InputError
            Shapes that differ, ids that are not integers or are negative.
        """
        if true.shape != predicted.shape:
            raise InputError(
                "labels of different shapes", where=where, expected=true.shape, found=predicted.shape
            )
        for what, ids in (("true", true), ("predicted", predicted)):
            if ids.dtype.kind not in "uib":
                raise InputError(f"{what} ids must be integers", where=where, found=ids.dtype)
        tables = []
        for number, t, p in _pieces(true, predicted, planar=planar, first=image):
            t, p, voxels = _runs(t, p)
            if ignore is not None and not (known := t != ignore).all():
                t, p, voxels = t[known], p[known], voxels[known]
            for what, ids in (("true", t), ("predicted", p)):
                if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
                    raise InputError(
                        f"{what} ids must not be negative",
                        where=where,
                        found=ids.min(),
                        fix="if it marks voxels that nobody labelled, ignore it: --ignore=ID"
                        if what == "true"
                        else None,
                    )
            numbers = np.full(t.size, number, np.int64)
            tables.append(_summed([cls(numbers, t.astype(np.uint64), p.astype(np.uint64), voxels)]))
        return cls.merge(tables)

    @classmethod
    def merge(cls, tables: Iterable[Contingency]) -> Contingency:
        """The sum of many tables, taken one by one: in about twice the memory of the sum, and in a time
        that grows with all their pairs together, not with their number times the sum's."""
        total, waiting, pairs = cls.empty(), list[Contingency](), 0
        for table in tables:
            waiting.append(table)
            pairs += 1 + len(table)
            if pairs > max(len(total), 1000):
                total, waiting, pairs = _summed([total, *waiting]), [], 0
        return _summed([total, *waiting])

    def __add__(self, other: Contingency) -> Contingency:
        return _summed([self, other])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Contingency):
            return NotImplemented
        return all(np.array_equal(a, b) for a, b in zip(self._columns, other._columns))

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.voxels)

    @cached_property
    def true_segments(self) -> Segments:
        return _segments(self.image, self.true, self.voxels)

    @cached_property
    def predicted_segments(self) -> Segments:
        return _segments(self.image, self.predicted, self.voxels)

    @cached_property
    def true_foreground(self) -> Contingency:
        """The pairs whose true id is not 0."""
        known = self.true != 0
        return Contingency(*(column[known] for column in self._columns))

    @property
    def _columns(self) -> tuple[NDArray[Any], ...]:
        return self.image, self.true, self.predicted, self.voxels


def _pieces(
    true: NDArray[Any], predicted: NDArray[Any], *, planar: bool, first: int
) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
    """(image, true, predicted), flat, of bounded size and at least one voxel."""
    images = zip(true, predicted) if planar else [(true, predicted)]
    for number, (t, p) in enumerate(images, first):
        t, p = t.reshape(-1), p.reshape(-1)
        for start in range(0, t.size, _PIECE):
            yield number, t[start : start + _PIECE], p[start : start + _PIECE]


def _runs(
    true: NDArray[Any], predicted: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Ids and lengths of the stretches in which neither id changes: objects are wide, so they are few."""
    changes = np.flatnonzero((true[1:] != true[:-1]) | (predicted[1:] != predicted[:-1])) + 1
    starts = np.concatenate([[0], changes])
    return true[starts], predicted[starts], np.diff(starts, append=true.size)


def _summed(tables: Sequence[Contingency]) -> Contingency:
    image, true, predicted, voxels = (np.concatenate(c) for c in zip(*(t._columns for t in tables)))
    order = np.lexsort((predicted, true, image))
    image, true, predicted = image[order], true[order], predicted[order]
    first = _first_of_each(image, true, predicted)
    return Contingency(image[first], true[first], predicted[first], np.add.reduceat(voxels[order], first))


def _segments(image: NDArray[np.int64], ids: NDArray[np.uint64], voxels: NDArray[np.int64]) -> Segments:
    # Rows come sorted by image, and a stable sort leaves them so within an id.
    order = np.argsort(ids, kind="stable")
    image, ids = image[order], ids[order]
    first = _first_of_each(image, ids)
    of_pair = np.empty(order.size, np.intp)
    of_pair[order] = np.repeat(np.arange(first.size), np.diff(first, append=order.size))
    return Segments(image[first], ids[first], np.add.reduceat(voxels[order], first), of_pair)


def _first_of_each(*columns: NDArray[Any]) -> NDArray[np.intp]:
    """Where sorted rows differ from the row before."""
    differs = np.ones(columns[0].size, bool)
    differs[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.flatnonzero(differs)
