"""Arrays that were computed not long ago, for several threads, in a bounded number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Any

from numpy.typing import NDArray


class Recent:
    """Arrays by owner (an object, by identity) and key; the least recently used ones are dropped first.

    Each is computed once: threads that ask for it meanwhile wait for the one that computes. Where that one
    fails, all of them see its error, and the next to ask computes again. Arrays larger than `capacity`
    bytes are not kept. Copies, also in other processes, begin empty.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0  # bytes of finished arrays, at most `capacity` between calls
        self.made = 0  # bytes of all arrays that were computed because they were not there
        self._lock = Lock()
        # The owner stands in the entry so that it lives as long: no other object gets its id.
        self._entries: OrderedDict[tuple[int, Hashable], tuple[object, Future[NDArray[Any]]]] = OrderedDict()

    def get(self, owner: object, key: Hashable, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array, made by `compute` where it is not there. Read-only by convention."""
        name = id(owner), key
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None:
                self._entries.move_to_end(name)
            else:
                mine: Future[NDArray[Any]] = Future()
                self._entries[name] = owner, mine
        if entry is not None:
            return entry[1].result()
        try:
            array = compute()
        except BaseException as error:
            with self._lock:
                del self._entries[name]
            mine.set_exception(error)
            raise
        mine.set_result(array)
        self._count(array)
        return array

    def find(self, owner: object, key: Hashable) -> NDArray[Any] | None:
        """The array if it is there, or is being computed."""
        with self._lock:
            entry = self._entries.get((id(owner), key))
            if entry is None:
                return None
            self._entries.move_to_end((id(owner), key))
        return entry[1].result()

    def keep(self, owner: object, key: Hashable, part: NDArray[Any]) -> None:
        """Keep a copy of what the caller has computed; two may have, at the same time."""
        made: Future[NDArray[Any]] = Future()
        made.set_result(part.copy())
        with self._lock:
            known = self._entries.setdefault((id(owner), key), (owner, made))[1] is not made
        self._count(part, held=not known)

    def _count(self, array: NDArray[Any], *, held: bool = True) -> None:
        with self._lock:
            self.made += array.nbytes
            self.held += array.nbytes * held
            self._drop()

    def _drop(self) -> None:
        """Drop finished arrays, the oldest first, until what is held fits."""
        for name, (_, future) in list(self._entries.items()):
            if self.held <= self.capacity:
                return
            if future.done():
                self.held -= future.result().nbytes
                del self._entries[name]

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return Recent, (self.capacity,)
