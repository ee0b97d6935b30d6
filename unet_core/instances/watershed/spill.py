"""Edges of a whole volume, sorted in bounded memory: runs on disk, then ranges of saddles, best first.

append: block, seam, …  ->  run of a few million edges, sorted, on disk
ranges: the best saddles of every run | the next | …        each range fits in memory, and is sorted whole
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BEYOND = np.uint64(2**64 - 1)  # above any saddle
_WORKING = 72  # bytes of memory per edge of a range while it is sorted
_SAMPLES = 4096  # saddles of a run that stand for all when ranges are chosen


class Batch(NamedTuple):
    """Edges between nodes of the whole volume; columns of one length."""

    saddle: NDArray[np.uint64]
    a: NDArray[np.uint32]
    b: NDArray[np.uint32]
    direction: NDArray[np.uint8]

    def rows(self, part: Any) -> Batch:
        """Some of the edges: a mask, indices or a slice."""
        return Batch(self.saddle[part], self.a[part], self.b[part], self.direction[part])


class EdgeSpill:
    """Takes edges in any order and gives them back best first, as often as wanted.

    Parameters
    ----------
    folder
        Where runs are written; `settings.EDGE_BYTES` per edge.
    memory
        Bytes that sorting may take.
    """

    def __init__(self, folder: Path, *, memory: int = 2**30) -> None:
        self._folder = folder
        self._most = max(memory // _WORKING, 1)
        self._waiting: list[Batch] = []
        self._pending = 0
        self._runs: list[Batch] = []
        self.count = 0

    def append(self, batch: Batch) -> None:
        """Add edges."""
        self._waiting.append(batch)
        self._pending += len(batch.saddle)
        self.count += len(batch.saddle)
        if self._pending >= self._most:
            self._flush()

    def ranges(self) -> Iterator[Batch]:
        """All edges, best first."""
        self._flush()
        for low, high in self._bounds():
            slices = []
            for run in self._runs:
                start, stop = np.searchsorted(run.saddle, (low, high))
                slices.append(run.rows(slice(start, stop)))
            yield _sorted(slices)

    def _flush(self) -> None:
        if self._pending:
            ascending = _sorted(self._waiting).rows(slice(None, None, -1))
            self._runs.append(self._stored(ascending, f"run-{len(self._runs)}"))
        self._waiting, self._pending = [], 0

    def _bounds(self) -> Iterator[tuple[np.uint64, np.uint64]]:
        """Half-open ranges of saddles, the best first, each of about as many edges as fit."""
        if not self._runs:
            return
        sampled, weight = [], []
        for run in self._runs:
            n = len(run.saddle)
            at = np.unique(np.linspace(0, n - 1, min(n, _SAMPLES)).astype(np.int64))
            sampled.append(run.saddle[at])
            weight.append(np.full(len(at), n / len(at)))
        saddles, edges = np.concatenate(sampled), np.concatenate(weight)
        order = np.argsort(saddles)
        saddles, below = saddles[order], np.cumsum(edges[order])
        # Twice the ranges that would do: samples err.
        wanted = max(1, -(-2 * self.count // self._most)) if self.count > self._most else 1
        cuts = np.searchsorted(below, self.count * np.arange(1, wanted) / wanted)
        bounds = np.unique(np.concatenate([[np.uint64(0)], saddles[cuts], [_BEYOND]]))
        for k in range(len(bounds) - 1, 0, -1):
            yield bounds[k - 1], bounds[k]

    def _stored(self, batch: Batch, name: str) -> Batch:
        """The same columns, on disk."""
        if not len(batch.saddle):
            return batch
        columns: list[Any] = []
        for column, data in batch._asdict().items():
            path = self._folder / f"{name}.{column}"
            data.tofile(path)
            columns.append(np.memmap(path, data.dtype, "r"))
        return Batch(*columns)


def _sorted(batches: list[Batch]) -> Batch:
    """All edges of some batches, best first: by saddle, then by direction."""
    saddle, a, b, direction = (np.concatenate(columns) for columns in zip(*batches))
    order = np.argsort(saddle)
    # Few saddles are equal (one voxel, several directions): sorting all by both columns takes thrice as long.
    ranked = saddle[order]
    equal = np.flatnonzero(ranked[1:] == ranked[:-1])
    if len(equal):
        there = np.union1d(equal, equal + 1)
        part = order[there]
        order[there] = part[np.lexsort((direction[part], saddle[part]))]
    return Batch(saddle, a, b, direction).rows(order[::-1])
