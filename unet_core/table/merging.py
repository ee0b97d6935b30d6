"""Merging more rows than fit in memory: sorted runs on disk, then one range of keys after the other.

runs     |1 4 7 9|  |2 4 8|  |3 5 6 9|          each sorted, spilled, mapped into memory
windows  |1 4    |  |2 4  |  |3 5    |          as many rows of each as there is room for
cut      4: the least of the windows' last keys; every row up to it is in a window already
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]


class Runs:
    """Sorted runs of rows of one layout, in files of their own.

    Parameters
    ----------
    folder
        A folder for temporary files, which the caller clears away.
    key
        The field by which rows are ordered: the merge keeps all rows of one key together.
    ordered
        Sorts rows by key, and may add up those that belong together.
    memory
        Bytes of rows that are held at a time.
    """

    def __init__(
        self, folder: Path, *, key: str, ordered: Callable[[Rows], Rows], memory: int = 2**27
    ) -> None:
        self._folder = folder
        self._key = key
        self._ordered = ordered
        self._memory = memory
        self._waiting: list[Rows] = []
        self._bytes = 0
        self._runs: list[Rows] = []
        folder.mkdir()

    def add(self, rows: Rows) -> None:
        """Take rows in any order."""
        if not rows.size:
            return
        if self._waiting:  # what was read from a file has a data type object of its own, larger than a row
            rows = rows.view(self._waiting[0].dtype)
        self._waiting.append(rows)
        self._bytes += rows.nbytes
        if self._bytes > self._memory:
            self._spill()

    def _spill(self) -> None:
        path = self._folder / f"{len(self._runs)}.npy"
        np.save(path, self._ordered(np.concatenate(self._waiting)), allow_pickle=False)
        self._runs.append(np.load(path, mmap_mode="r", allow_pickle=False))
        self._waiting, self._bytes = [], 0

    def sealed(self) -> Source:
        """All that was added, ready to be merged."""
        if self._waiting and self._runs:
            self._spill()
        elif self._waiting:  # they fit: no file
            self._runs = [self._ordered(np.concatenate(self._waiting))]
        return Source(self._runs, self._key, self._ordered, self._memory)


class Source:
    """Runs on their way through a merge; `start` says how far each has come."""

    def __init__(self, runs: Sequence[Rows], key: str, ordered: Callable[[Rows], Rows], memory: int) -> None:
        self._runs = runs
        self._keys = [run[key] for run in runs]
        self._ordered = ordered
        self._start = [0] * len(runs)
        size = runs[0].dtype.itemsize if runs else 1
        self._window = max(1, memory // size // max(1, len(runs)))

    @property
    def cut(self) -> int | None:
        """The last key up to which every run's window reaches; None where all is done."""
        left = [(keys, at) for keys, at in zip(self._keys, self._start) if at < keys.size]
        return min((int(keys[min(at + self._window, keys.size) - 1]) for keys, at in left), default=None)

    def take(self, cut: int) -> Rows:
        """Everything up to and with key `cut`, ordered."""
        parts = []
        for place, keys in enumerate(self._keys):
            start = self._start[place]
            stop = start + int(np.searchsorted(keys[start:], keys.dtype.type(cut), side="right"))
            parts.append(np.asarray(self._runs[place][start:stop]))
            self._start[place] = stop
        return self._ordered(np.concatenate(parts))


def together(sources: Sequence[Source]) -> Iterator[tuple[Rows, ...]]:
    """Several merges side by side: the rows of the same range of keys of each."""
    while cuts := [source.cut for source in sources if source.cut is not None]:
        cut = min(cuts)
        yield tuple(source.take(cut) for source in sources)
