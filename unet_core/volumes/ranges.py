"""An object of a store as a file that is read in ranges: for formats with an index of their own (Parquet)."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import obstore

Persist = Callable[[str, Callable[[], Any]], Any]


class RangeFile(io.RawIOBase):
    """A seekable file for reading; one read is one request, and nothing is kept.

    Parameters
    ----------
    persist
        Makes a request of a store, again where that may help: `Store`'s.
    """

    def __init__(self, store: Any, key: str, persist: Persist) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._persist = persist
        self._at = 0
        self._size = int(persist(key, lambda: obstore.head(store, key))["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0

        def request() -> Any:
            return obstore.get_range(self._store, self._key, start=self._at, end=stop)

        data = memoryview(self._persist(self._key, request)).cast("B")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
