"""What zarr-python reads and writes through: obstore with clear errors, retries, and absent chunks noted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import obstore
from obstore.exceptions import BaseError, NotSupportedError
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from unet_core.errors import StoreError
from unet_core.volumes.faults import is_missing, is_there, patience, pauses, persist_async, reached

T = TypeVar("T")
_METADATA = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
_MOST_ABSENT = 2**17  # keys kept for whoever asks: 15 MB


class CheckedStore(ObjectStore[Any]):
    """zarr's ObjectStore, with three differences.

    Its own gives None, which zarr takes for "fill value", also where the whole bucket or folder is gone:
    here that is a StoreError. An object without bytes, as crashed file systems leave them, is refused:
    blosc crashes the process on it, and sharding takes it for an empty shard. And `take_absent` tells
    which chunks were asked for and not there.

    Raises
    ------
    StoreError
        From any operation, after retries where the fault may pass.
    """

    def __init__(
        self, store: Any, *, read_only: bool = False, url: str = "", root: Path | None = None
    ) -> None:
        super().__init__(store, read_only=read_only)
        self.url = url
        self._root = root  # of a local store
        # Reads run on zarr's own thread, those who ask on theirs: single operations of a dict are atomic.
        self._absent: dict[str, None] = {}

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.store, read_only=read_only, url=self.url, root=self._root)

    def take_absent(self) -> list[str]:
        """Keys of absent chunks since the last call, each once; at most 131,072. Only where nobody writes."""
        taken = []
        with suppress(KeyError):
            while True:
                taken.append(self._absent.popitem()[0])
        return taken

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        async def attempt() -> Buffer | None:
            try:
                response = await obstore.get_async(self.store, key, options=_options(byte_range))
                return prototype.buffer.from_bytes(await response.bytes_async())  # type: ignore[arg-type]
            except NotSupportedError:  # Azure knows no suffixes; zarr has a way round it
                return await super(CheckedStore, self).get(key, prototype, byte_range)
            except (BaseError, OSError) as error:
                if is_missing(error):
                    return None
                raise

        buffer = await self._persist(key, attempt)
        if buffer is None:
            self._note_absent(key)
        elif len(buffer) == 0 and _is_chunk(key):
            raise ValueError("the object has no bytes")
        return buffer

    def _note_absent(self, key: str) -> None:
        if not _is_chunk(key):
            return
        if self._root is not None and not self._root.is_dir():
            raise StoreError(
                "the folder is gone", where=self.url, fix="mount it or put it back, then go on with the run"
            )
        if self.read_only and len(self._absent) < _MOST_ABSENT:
            self._absent[key] = None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await self._persist(key, lambda: super(CheckedStore, self).exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        await self._persist(key, lambda: super(CheckedStore, self).set(key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        self._check_writable()

        async def attempt() -> None:
            try:
                await obstore.put_async(self.store, key, value.as_buffer_like(), mode="create")
            except BaseError as error:
                if not is_there(error):
                    raise

        await self._persist(key, attempt)

    async def delete(self, key: str) -> None:
        await self._persist(key, lambda: super(CheckedStore, self).delete(key))

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        async def attempt() -> list[str]:
            return [name async for name in super(CheckedStore, self).list_dir(prefix)]

        for name in await self._persist(prefix, attempt):
            yield name

    async def _list(self, prefix: str | None = None) -> AsyncGenerator[Any, None]:
        with reached(f"{self.url}/{prefix or ''}"):
            async for item in super()._list(prefix):
                yield item

    async def _persist(self, key: str, attempt: Callable[[], Awaitable[T]]) -> T:
        return await persist_async(attempt, f"{self.url}/{key}", pauses(patience()))


def _options(byte_range: ByteRequest | None) -> Any:
    match byte_range:
        case RangeByteRequest(start, end):
            return {"range": (start, end)}
        case OffsetByteRequest(offset):
            return {"range": {"offset": offset}}
        case SuffixByteRequest(suffix):
            return {"range": {"suffix": suffix}}
    return None


def _is_chunk(key: str) -> bool:
    return key.rsplit("/", 1)[-1] not in _METADATA
