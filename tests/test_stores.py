"""Local stores that fail (full, read-only, forbidden), and what killed writers leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import obstore
import pytest
import zarr
from obstore.exceptions import GenericError

from unet_core.errors import InputError, StoreError
from unet_core.geometry import Box
from unet_core.volumes import Store, Volume, open_for_writing, write_box
from unet_core.volumes.faults import explain


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; its mount point."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@contextmanager
def not_root(folder: Path) -> Iterator[None]:
    """Without any right to a folder, also where root runs the tests: root passes all permissions."""
    folder.chmod(0o000)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def make_array(store: Store, shards: tuple[int, ...] = (16, 16, 16)) -> zarr.Array:
    return zarr.create_array(
        store.zarr(read_only=False),
        shape=(32, 32, 32),
        dtype="u1",
        chunks=(8, 8, 8),
        shards=shards,
        dimension_names=("z", "y", "x"),
    )


def noise(shape: tuple[int, ...] = (32, 32, 32)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape, dtype="u1")


# Disks


def test_a_full_disk_is_named_and_the_next_try_goes_on(small_disk: Path) -> None:
    store = Store(small_disk / "out")
    make_array(store)
    store.write("small", bytes(400_000))
    with pytest.raises(StoreError, match="the disk is full") as full:
        store.write("big", bytes(2**20))
    assert full.value.exit_code == 1
    assert full.value.where == f"{small_disk}/out/big"
    assert "No space left on device" in (full.value.found or "")
    store.write("filler", bytes(600_000))
    with pytest.raises(StoreError, match="the disk is full"):
        write_box(open_for_writing(store, ""), Box.of_shape((32, 32, 32)), noise())
    assert list(store.leftovers()) == []  # a write that fails takes back what it had begun
    store.delete(["small", "filler"])
    write_box(open_for_writing(store, ""), Box.of_shape((32, 32, 32)), noise())
    np.testing.assert_array_equal(Volume.open(store.url).read(Box.of_shape((32, 32, 32)))[0], noise())


def test_a_read_only_file_system(small_disk: Path) -> None:
    store = Store(small_disk / "out")
    array = make_array(store)
    store.write("key", b"x")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for act in (
        lambda: store.write("key", b"y"),
        lambda: store.create("new/key", b"y"),
        lambda: store.delete(["key"]),
        lambda: write_box(array, Box.of_shape((32, 32, 32)), noise()),
        lambda: Store(small_disk / "another").write("key", b"y"),
    ):
        with pytest.raises(StoreError, match="the file system is read-only"):
            act()
    with pytest.raises(InputError, match="the output cannot be written"):
        store.check_writable(1)
    assert store.read("key") == b"x"


def test_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    store = Store(folder / "out")
    array = make_array(store)
    store.write("key", b"x")
    with not_root(folder):
        for act in (
            lambda: store.read("key"),
            lambda: store.write("key", b"y"),
            lambda: list(store.keys()),
            lambda: store.delete(["key"]),
            lambda: array[:],
        ):
            with pytest.raises(StoreError, match="permission denied"):
                act()
        for look in (store.exists, lambda: store.check_writable(1), lambda: Volume.open(store.url)):
            with pytest.raises(InputError, match="permission denied"):
                look()
    assert store.read("key") == b"x"


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (28, "full"),
        (122, "quota"),
        (30, "read-only"),
        (13, "denied"),
        (1, "denied"),
        (5, "disk"),
        (39, "system"),
    ],
)
def test_numbers_of_the_system_are_read_from_errors_and_from_texts(number: int, problem: str) -> None:
    text = f"Generic LocalFileSystem error: Unable to copy data to file: Words (os error {number})\n\nDebug"
    for error in (OSError(number, "Words"), OSError(f"Words (os error {number})"), GenericError(text)):
        fault = explain(error)
        assert fault is not None
        assert problem in fault.problem
        assert not fault.passing
    assert explain(OSError("Invalid data stream")) is None  # bz2's, of damaged data


def test_one_key_of_a_batch_that_is_not_deleted() -> None:
    text = "Generic S3 error: DeleteObjects request failed for key p/b: {} (code: {})\n\nDebug source:"
    refused = explain(GenericError(text.format("Access Denied", "AccessDenied")))
    assert refused is not None
    assert (refused.problem, refused.passing) == ("the store refuses access", False)
    busy = explain(GenericError(text.format("Please reduce your request rate.", "SlowDown")))
    assert busy is not None
    assert busy.passing


def test_delete_takes_keys_as_they_come_and_does_not_mind_missing_ones(tmp_path: Path, bucket: str) -> None:
    for store in (Store(tmp_path / "s"), Store(f"{bucket}/s")):
        names = [f"a/{i}" for i in range(5)]
        for name in [*names, "b"]:
            store.write(name, b"")
        store.delete(["nothing", *names[:2], "b/below-a-file"])
        assert sorted(store.keys()) == [*names[2:], "b"]
        store.delete(key for key in store.keys("a"))
        assert list(store.keys()) == ["b"]
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    with pytest.raises(ValueError, match="not a key"):
        Store(tmp_path / "s").delete(["../outside"])
    assert outside.exists()


def test_a_store_that_minds_missing_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    local = Store(tmp_path)
    for name in ("a", "b"):
        local.write(name, b"")
    store = Store("s3://bucket")  # with a backend that answers as those of gs:// and az:// do
    store.__dict__["_store"] = obstore.store.LocalStore(tmp_path)
    store.delete(["missing", "a", "gone", "b"])
    assert list(local.keys()) == []


# Staging files


def test_staging_files_of_killed_writers_and_no_others_are_leftovers(tmp_path: Path) -> None:
    writer = """
import obstore, sys
store = obstore.store.LocalStore(sys.argv[1], mkdir=True)
for i in range(10**6):
    obstore.put(store, f"c/{i % 3}/{i % 5}", bytes(3 * 2**20), use_multipart=bool(i % 2))
"""
    store = Store(tmp_path / "s")
    uuid4 = "0123456789ab4def8123456789abcdef"
    store.write("zarr.json", b"{}")
    users = ("a#b", "notes#", "#1", "a#0", "my notes#1", "x.partial", f"zarr.{uuid4[:-1]}.partial")
    for name in (*users, f"zarr.{uuid4}.partial"):
        (store.path / name).write_bytes(b"")
    staged: list[str] = []
    for _ in range(30):
        process = subprocess.Popen([sys.executable, "-c", writer, store.url])
        while process.poll() is None:
            if any(path.name.count("#") for path in store.path.glob("c/*/*")):
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.001)
        staged = [str(path.relative_to(store.path)) for path in store.path.glob("c/*/*#*")]
        if staged:
            break
    assert staged
    assert sorted(store.leftovers()) == sorted([*staged, f"zarr.{uuid4}.partial"])
    kept = set(store.keys()) - {f"zarr.{uuid4}.partial"}
    store.delete(store.leftovers())
    assert list(store.leftovers()) == []
    assert set(store.keys()) == kept
    assert all((store.path / name).exists() for name in users)


def test_nothing_is_left_over_where_nothing_is(tmp_path: Path, bucket: str) -> None:
    remote = Store(f"{bucket}/leftovers")
    remote.write("c/0", b"")
    assert list(remote.leftovers()) == list(Store(tmp_path / "absent").leftovers()) == []


# URLs


def test_a_signed_url_is_refused() -> None:
    with pytest.raises(InputError, match="must not hold a query") as refused:
        Store("https://bucket.s3.amazonaws.com/volume.zarr?X-Amz-Signature=abcdef")
    assert "abcdef" not in str(refused.value)
