"""Where bytes live: one class over local paths and s3:// (gs:// and az:// go the same way).

Everything that is not an array goes through `Store` too: run records, ledgers, model folders. obstore
writes an object whole or not at all and has conditional creation on every backend.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url
from zarr.storage import ObjectStore

from unet_core.errors import InputError


class Store:
    """A folder of objects, local or remote, named by a path or URL.

    Only the URL travels between processes; a store is opened where it is used. Credentials come from
    the environment (`AWS_*`) and never appear in `url`.
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
        local = split.path if split.scheme == "file" else text
        self.url = text.rstrip("/") if self.remote else str(Path(local).expanduser().absolute())

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
        if not self.remote:
            return LocalStore(self.url, mkdir=True)
        options: dict[str, Any] = {}
        if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
            options["client_options"] = {"allow_http": True}
        try:
            return from_url(self.url, **options)
        except (BaseError, ValueError) as error:
            raise InputError(
                "this URL cannot be opened",
                where=self.url,
                expected="a local path, or s3://bucket/key",
                found=str(error).splitlines()[0],
            ) from None

    def zarr(self, *, read_only: bool) -> ObjectStore[Any]:
        """The store as zarr-python wants it."""
        return ObjectStore(self._store, read_only=read_only)

    def exists(self) -> bool:
        """Whether anything lies here. Creates nothing."""
        if not self.remote:
            return self.path.exists()
        with self._reached():
            return any(len(batch) > 0 for batch in obstore.list(self._store, chunk_size=1))

    def read(self, key: str) -> bytes | None:
        """The object's bytes, or None where there is none."""
        if not self.remote and not self.path.is_dir():
            return None
        with self._reached():
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, key: str, data: bytes) -> None:
        """Put an object, whole or not at all, over whatever was there."""
        obstore.put(self._store, key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Put an object only where there is none; False where there is one."""
        try:
            obstore.put(self._store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Keys below a prefix, streamed in pages: memory does not grow with their number."""
        if not self.remote and not self.path.is_dir():
            return
        with self._reached():
            for batch in obstore.list(self._store, prefix or None):
                for item in batch:
                    yield item["path"]

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """One clear error where a remote store does not answer, or refuses."""
        try:
            yield
        except BaseError as error:
            if not self.remote:
                raise
            raise InputError(
                "this store cannot be reached",
                where=self.url,
                found=str(error).splitlines()[0],
                fix="check the bucket's name, AWS_ENDPOINT_URL, AWS_REGION and the credentials in AWS_*",
            ) from None

    def check_writable(self, needed: int) -> None:
        """Refuse, before any work, an output that cannot be written or whose disk is too small.

        Raises
        ------
        InputError
            No permission to write here, or fewer than `needed` bytes are free.
        """
        if self.remote:
            return
        existing = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not existing.is_dir():
            raise InputError("the output lies below something that is not a folder", where=existing)
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise InputError(
                "the output cannot be written",
                where=existing,
                found=error.strerror,
                fix="choose another --to, or get write permission there",
            ) from None
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise InputError(
                "the disk is too small for this output",
                where=existing,
                expected=f"at most {needed:,} bytes needed, by the plan's estimate",
                found=f"{free:,} bytes free",
                fix="choose another --to, or an --roi",
            )
