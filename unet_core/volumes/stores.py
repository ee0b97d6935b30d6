"""Where bytes live: one class over local paths and s3:// (gs:// and az:// go the same way).

Everything that is not an array goes through `Store` too: run records, ledgers, model folders. obstore
writes an object whole or not at all and has conditional creation on every backend.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from unet_core.errors import InputError, NoRoomError
from unet_core.paths import absolute
from unet_core.volumes.faults import (
    before_work,
    is_missing,
    is_there,
    next_pause,
    patience,
    pauses,
    persist,
    reached,
    scrub,
)
from unet_core.volumes.listing import Facts, Listing, list_local, list_remote, local_facts, remote_facts
from unet_core.volumes.ranges import RangeFile
from unet_core.volumes.zarr_store import CheckedStore

T = TypeVar("T")
_RETRIES = 10  # obstore's own, of one request
_CONNECT, _REQUEST = 10.0, 60.0  # seconds
_SHORT = 15.0  # seconds; who waits for a first look at a store has mostly mistyped its name
_DELETED_AT_ONCE = 1000  # S3's limit
_PROBE = ".unet-flows/probe"
# A write in the making: obstore's NAME#1 (#2 if that is taken), zarr's NAME.UUID.partial.
_STAGING = re.compile(r"[\w.-]+#[1-9]\d*|[\w.-]+\.[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\.partial")


class Store:
    """A folder of objects, local or remote, named by a path or URL.

    Only the URL travels between processes; a store is opened where it is used. Credentials come from
    the environment (`AWS_*`) and never appear in `url`.

    Raises
    ------
    InputError
        The URL holds credentials or a signature, or names no kind of store that is known.
    StoreError
        From any operation: full, read-only, unreachable for `faults.patience` seconds, refused. What is
        looked at before work starts (`exists`, `check_writable`) raises InputError instead.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        split = urlsplit(text)
        self.remote = "://" in text and split.scheme != "file"
        if split.username or split.password:
            raise InputError(
                "a URL must not hold credentials: it is written into run records",
                where=f"{split.scheme}://...@{split.hostname}",
                fix="set them in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        if self.remote and (split.query or split.fragment):
            raise InputError(
                "a URL must not hold a query: signed URLs would be written into run records",
                where=f"{split.scheme}://{split.hostname}{split.path}",
                expected="s3://bucket/key",
            )
        local = split.path if split.scheme == "file" else text
        self.url = text.rstrip("/") if self.remote else str(absolute(local))

    def __str__(self) -> str:
        return self.url

    def child(self, path: str) -> Store:
        """The folder `path` inside this one."""
        return Store(f"{self.url}/{path}") if path else self

    @property
    def path(self) -> Path:
        """The local path; only for stores that are not remote."""
        return Path(self.url)

    @cached_property
    def _store(self) -> Any:
        return self._open()

    @cached_property
    def _asked_once(self) -> Any:
        """The same store, without obstore's own retries."""
        return self._open(retries=0)

    def _open(self, *, seconds: float | None = None, retries: int = _RETRIES) -> Any:
        with reached(self.url):
            if not self.remote:
                return LocalStore(self.url, mkdir=True)
        seconds = patience() if seconds is None else seconds
        clients: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=max(1.0, min(_CONNECT, seconds / 3))),
            "timeout": timedelta(seconds=max(1.0, min(_REQUEST, seconds / 3))),
        }
        if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
            clients["allow_http"] = True
        # A third: what obstore gives up is tried again by `persist`, and both together must end in time.
        retry = {"max_retries": retries, "retry_timeout": timedelta(seconds=seconds / 3)}
        options: dict[str, Any] = {"client_options": clients, "retry_config": retry}
        try:
            return from_url(self.url, **options)
        except (BaseError, ValueError) as error:
            raise InputError(
                "this URL cannot be opened",
                where=self.url,
                expected="a local path, or s3://bucket/key",
                found=scrub(str(error)),
            ) from None

    def zarr(self, *, read_only: bool) -> CheckedStore:
        """The store as zarr-python wants it; raises StoreError where zarr would raise obstore's errors."""
        root = None if self.remote else self.path
        return CheckedStore(self._store, read_only=read_only, url=self.url, root=root)

    def exists(self) -> bool:
        """Whether anything lies here. Creates nothing.

        Raises
        ------
        InputError
            The bucket does not exist, access is refused, or the store does not answer.
        """
        with before_work(), reached(self.url):
            if not self.remote:
                return self.path.exists()
            seconds = min(patience(), _SHORT)
            return next(self._keys("", self._open(seconds=seconds), seconds), None) is not None

    def read(self, key: str) -> bytes | None:
        """The object's bytes, or None where there is none."""
        if not self._readable():
            return None

        def attempt() -> bytes | None:
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except (BaseError, OSError) as error:
                if is_missing(error):
                    return None
                raise

        return self._persist(key, attempt)

    def ranges(self, key: str) -> RangeFile:
        """An object as a file of which parts can be read.

        Raises
        ------
        FileNotFoundError
            No such object.
        """
        return RangeFile(self._store, key, self._there)

    def _there(self, key: str, request: Callable[[], T]) -> T:
        """A request of an object that must be there."""

        def attempt() -> T | None:
            try:
                return request()
            except (BaseError, OSError) as error:
                if is_missing(error):
                    return None
                raise

        answer = self._persist(key, attempt)
        if answer is None:
            raise FileNotFoundError(f"{self.url}/{key}")
        return answer

    def write(self, key: str, data: bytes, *, durable: bool = False) -> None:
        """Put an object, whole or not at all, over whatever was there.

        `durable`: before other objects are deleted because of it, let a disk hold it beyond a power cut.
        """
        self._persist(key, lambda: obstore.put(self._store, key, data))
        if durable and not self.remote:
            path = Path(f"{self.url}/{key}")
            with reached(f"{self.url}/{key}"):
                for synced in (path, path.parent):
                    handle = os.open(synced, os.O_RDONLY)
                    try:
                        os.fsync(handle)
                    finally:
                        os.close(handle)

    def create(self, key: str, data: bytes) -> bool:
        """Put an object only where there is none; False where there is one.

        A remote store may create the object and its answer may get lost. So after a broken answer, and
        only then, an object that holds just these bytes counts as ours. Contenders for a key must write
        different bytes.
        """
        store = self._asked_once if self.remote else self._store
        lost_answer = False

        def attempt() -> bool:
            nonlocal lost_answer
            try:
                obstore.put(store, key, data, mode="create")
            except BaseError as error:
                if is_there(error):
                    return False
                lost_answer = self.remote
                raise
            return True

        return self._persist(key, attempt) or (lost_answer and self.read(key) == data)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Keys below a prefix, streamed in pages: memory does not grow with their number."""
        if self._readable():
            yield from self._keys(prefix, self._store, patience())

    def _keys(self, prefix: str, store: Any, seconds: float) -> Iterator[str]:
        last: str | None = None
        waits = pauses(seconds)
        while True:
            try:
                for batch in obstore.list(store, prefix or None, offset=last):
                    for item in batch:
                        last = item["path"]
                        yield last
                    waits = pauses(seconds)  # what moves on may stumble again
                return
            except (BaseError, OSError) as error:
                pause = next_pause(error, f"{self.url}/{prefix}", waits)
            time.sleep(pause)

    def listing(self, folder: str = "") -> Listing:
        """What lies directly in a folder: never what lies below it, however much that is."""
        if not self.remote:
            with reached(f"{self.url}/{folder}"):
                return list_local(self.child(folder).path)
        return self._persist(folder, lambda: list_remote(self._store, folder))

    def facts(self, key: str) -> Facts | None:
        """Size and age of an object; None where there is none."""
        if not self.remote:
            with reached(f"{self.url}/{key}"):
                return local_facts(self.path / key)

        def attempt() -> Facts | None:
            try:
                return remote_facts(self._store, key)
            except (BaseError, OSError) as error:
                if is_missing(error):
                    return None
                raise

        return self._persist(key, attempt)

    def clock(self) -> float:
        """Seconds since 1970 by the clock that dates what is written here; puts an object and deletes it.

        Raises
        ------
        InputError
            What `check_writable` raises.
        """
        self.check_writable(0)
        if not self.remote:
            with before_work(), reached(self.url):
                existing = next(p for p in (self.path, *self.path.parents) if p.exists())
                with tempfile.TemporaryFile(dir=existing) as probe:
                    return os.fstat(probe.fileno()).st_mtime
        with before_work():
            self.write(_PROBE, b"")
            facts = self.facts(_PROBE)
            self.delete([_PROBE])
        return time.time() if facts is None else facts.modified  # another call took the probe away

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, as their keys come; those that are not there are passed over."""
        keys = iter(keys)
        while batch := list(islice(keys, _DELETED_AT_ONCE if self.remote else 1)):
            if self.remote:
                self._persist(batch[0], partial(_delete, self._store, batch))
            else:
                self._unlink(batch[0])

    def _unlink(self, key: str) -> None:
        # obstore refuses the names of its own staging files, and stops at the first key that is missing.
        if ".." in key.split("/") or not key.strip("/"):
            raise ValueError(f"not a key: {key!r}")
        with reached(f"{self.url}/{key}"), suppress(FileNotFoundError, NotADirectoryError):
            Path(f"{self.url}/{key}").unlink()

    def leftovers(self) -> Iterator[str]:
        """Keys of staging files, left by writers that were killed while they wrote; for `delete`.

        Only to be asked while nobody writes here: a staging file in use looks the same. Remote stores have
        none; what they keep of broken uploads is invisible, and a rule of the bucket clears it away.
        """
        folders = [] if self.remote or not self.path.is_dir() else [self.url]
        while folders:
            with reached(self.url), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif _STAGING.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        yield os.path.relpath(entry.path, self.url)

    def _readable(self) -> bool:
        """False for a folder that is not there: opening it would create it."""
        with reached(self.url):
            return self.remote or self.path.is_dir()

    def _persist(self, key: str, attempt: Callable[[], T]) -> T:
        return persist(attempt, f"{self.url}/{key}", pauses(patience() if self.remote else 0))

    def check_writable(self, needed: int) -> None:
        """Refuse, before any work, an output that cannot be written or whose disk is too small.

        Raises
        ------
        InputError
            No permission to write and delete here, no such bucket, or fewer than `needed` bytes are free.
        """
        if self.remote:
            self._check_bucket()
            return
        with before_work(), reached(self.url):
            existing = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not existing.is_dir():
            itself = existing == self.path
            raise InputError(
                "the output is a file" if itself else "the output lies below something that is not a folder",
                where=existing,
                expected="a folder, or a name that nothing has yet",
                found="a file",
                fix="choose another --to",
            )
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise InputError(
                "the output cannot be written",
                where=existing,
                found=error.strerror or error,
                fix="choose another --to, or get write permission there",
            ) from None
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise NoRoomError(
                "the disk is too small for this output",
                where=existing,
                expected=f"at most {needed:,} bytes needed, by the plan's estimate",
                found=f"{free:,} bytes free",
                fix="choose another --to, or an --roi",
            )

    def _check_bucket(self) -> None:
        """Put and delete an empty object: nothing else tells whether both are allowed."""
        seconds = min(patience(), _SHORT)
        with before_work():
            store = self._open(seconds=seconds)
            for attempt in (partial(obstore.put, store, _PROBE, b""), partial(_delete, store, [_PROBE])):
                persist(attempt, f"{self.url}/{_PROBE}", pauses(seconds))


def _delete(store: Any, keys: list[str]) -> None:
    try:
        obstore.delete(store, keys)
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
        # S3 does not mind a missing key; others stop at it.
        for key in keys:
            with suppress(FileNotFoundError):
                obstore.delete(store, [key])
