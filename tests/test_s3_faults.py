"""Remote stores that fail: with answers that get lost on the way, with refusals, out of reach."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import obstore
import pytest
import s3_server
import zarr
from obstore.exceptions import GenericError
from pipeline import complete, save_random_model
from s3_server import KEY_ID, SECRET, FaultyProxy, at_random, faulty_proxy, in_order, make_bucket
from test_stores import make_array, noise

from flows.inspection import verify
from unet_core.architecture import UNetSpec
from unet_core.errors import InputError, StoreError
from unet_core.geometry import Box
from unet_core.volumes import Store, Volume, open_for_writing, write_box

_NUMBERS = count()


@pytest.fixture
def proxy(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy that AWS_* point to."""
    with faulty_proxy(s3_endpoint) as proxy:
        for name, value in s3_server.environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("UNET_FLOWS_RETRY_SECONDS", "30")
        yield proxy


@pytest.fixture
def remote(proxy: FaultyProxy) -> Store:
    """An empty bucket behind the proxy, whose faults begin when the test says so."""
    name = f"stores-{next(_NUMBERS)}"
    make_bucket(f"http://{proxy.upstream}", name)
    return Store(f"s3://{name}/run")


# Passing faults


@pytest.mark.parametrize("fault", [*s3_server.FAULTS, "400 RequestTimeout", "409 OperationAborted"])
def test_every_operation_outlives_one_fault(proxy: FaultyProxy, remote: Store, fault: str) -> None:
    array = make_array(remote.child("array"))
    array[:] = noise()
    remote.write("key", b"value")
    big = bytes(6 * 2**20)  # more than one part

    def once(act: Callable[[], object]) -> object:
        proxy.seen.clear()
        proxy.decide = in_order(fault)
        result = act()
        assert any(done == fault for _, _, done in proxy.seen)
        return result

    assert once(lambda: remote.read("key")) == b"value"
    assert once(lambda: sorted(remote.keys("array"))[-1]) == "array/zarr.json"
    once(lambda: remote.write("written", b"1"))
    once(lambda: remote.write("big", big))
    assert once(lambda: remote.create("created", b"1")) is True
    once(lambda: remote.delete(["key"]))
    np.testing.assert_array_equal(once(lambda: array[:]), noise())
    once(lambda: array.__setitem__(np.s_[:16], 7))
    np.testing.assert_array_equal(once(lambda: array[:16]), 7)
    proxy.decide = in_order()
    assert remote.read("key") is None
    assert remote.read("written") == remote.read("created") == b"1"
    assert remote.read("big") == big


def test_a_stalled_request_is_given_up_and_made_again(
    proxy: FaultyProxy, remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNET_FLOWS_RETRY_SECONDS", "3")
    proxy.decide = in_order("stall")
    remote.write("key", b"x")
    proxy.decide = in_order("stall")
    assert not remote.create("key", b"y")
    assert [fault for _, _, fault in proxy.seen].count("stall") == 2


def test_a_listing_goes_on_where_it_broke(proxy: FaultyProxy, remote: Store) -> None:
    names = [f"ledger/{i:03d}" for i in range(130)]
    for name in names:
        remote.write(name, b"")
    proxy.page = 60
    proxy.decide = in_order(None, "cut", None, "cut")
    proxy.seen.clear()
    assert list(remote.keys("ledger")) == names
    assert "start-after" in proxy.seen[-1][1]


def test_the_same_bytes_through_a_bad_network(proxy: FaultyProxy, remote: Store, tmp_path: Path) -> None:
    local = Store(tmp_path / "local")
    proxy.decide = at_random(0.25, seed=1)
    for store in (local, remote):
        array = make_array(store.child("0"))
        for z in range(0, 32, 16):
            write_box(array, Box((z, 0, 0), (z + 16, 32, 32)), noise()[z : z + 16])
        for index in range(20):
            assert store.create(f"ledger/{index}-{index:x}", b"%d" % index)
        store.delete(f"ledger/{index}-{index:x}" for index in range(5))
    keys = sorted(local.keys())
    assert sorted(remote.keys()) == keys
    for key in keys:
        assert remote.read(key) == local.read(key)
    np.testing.assert_array_equal(
        Volume.open(remote.child("0").url).read(Box.of_shape((32, 32, 32)))[0], noise()
    )
    assert sum(fault is not None for _, _, fault in proxy.seen) > 10


# Exclusive creation


@pytest.mark.parametrize("fault", ["lost", "failed"])
def test_created_although_the_answer_was_lost(proxy: FaultyProxy, remote: Store, fault: str) -> None:
    proxy.decide = in_order(fault)
    assert remote.create("lease", b"mine")
    assert [(method, fault) for method, _, fault in proxy.seen][:2] == [("PUT", fault), ("PUT", None)]
    assert not remote.create("lease", b"yours")
    assert not remote.create("lease", b"mine")  # no answer was lost: it was there before


def test_not_created_when_another_was_faster(proxy: FaultyProxy, remote: Store) -> None:
    other = Store(remote.url)

    def decide(method: str, path: str) -> str | None:
        if not proxy.seen:
            proxy.seen.append((method, path, None))
            assert other.create("lease", b"theirs")
            return "reset"
        return None

    proxy.decide = decide
    assert not remote.create("lease", b"mine")
    assert remote.read("lease") == b"theirs"


def test_one_of_two_contenders_creates(proxy: FaultyProxy, remote: Store) -> None:
    proxy.decide = at_random(0.3, seed=2, faults=("500", "reset", "lost", "failed"))
    contenders = [Store(remote.url), Store(remote.url)]
    with ThreadPoolExecutor(2) as pool:
        for round_number in range(15):
            tries = [
                pool.submit(store.create, f"lease/{round_number}", name)
                for store, name in zip(contenders, (b"a", b"b"))
            ]
            won = [name for name, done in zip((b"a", b"b"), tries) if done.result()]
            assert won == [remote.read(f"lease/{round_number}")]
    assert any(fault in ("lost", "failed") for _, _, fault in proxy.seen)


# Faults that stay


@pytest.mark.parametrize(
    ("answer", "problem", "advice"),
    [
        ("403 AccessDenied", "the store refuses access", "get the right"),
        ("403 SignatureDoesNotMatch", "does not accept these credentials", "AWS_SECRET_ACCESS_KEY"),
        ("403 InvalidAccessKeyId", "does not accept these credentials", "AWS_ACCESS_KEY_ID"),
        ("403 RequestTimeTooSkewed", "refuses this machine's time", "check the clock"),
        ("404 NoSuchBucket", "this bucket does not exist", "check the bucket's name"),
        ("301 PermanentRedirect", "in another region", "AWS_REGION"),
        ("400 AuthorizationHeaderMalformed", "the store refuses this", "AWS_REGION"),
    ],
)
def test_refusals_are_told_apart(
    proxy: FaultyProxy, remote: Store, answer: str, problem: str, advice: str
) -> None:
    make_array(remote.child("array"))
    volume = Volume.open(remote.child("array").url)
    array = open_for_writing(remote, "array")
    everything = Box.of_shape((32, 32, 32))
    proxy.decide = lambda method, path: answer
    for act in (
        lambda: remote.read("key"),
        lambda: remote.write("key", b""),
        lambda: remote.create("key", b""),
        lambda: list(remote.keys()),
        lambda: remote.delete(["key"]),
        lambda: volume.read(everything),
        lambda: write_box(array, everything, noise()),
    ):
        proxy.seen.clear()
        with pytest.raises(StoreError, match=problem) as refused:
            act()
        assert advice in (refused.value.fix or "")
        assert remote.url in (refused.value.where or "")
    for look in (remote.exists, lambda: remote.check_writable(1), lambda: Volume.open(volume.url)):
        with pytest.raises(InputError, match=problem) as asked:
            look()
        assert asked.value.exit_code == 2
        assert isinstance(asked.value.__cause__, StoreError)


def test_a_bucket_that_is_not_there_is_not_a_missing_key(proxy: FaultyProxy, remote: Store) -> None:
    assert remote.read("missing") is None
    assert not remote.exists()
    absent = Store("s3://no-such-bucket/run")
    with pytest.raises(StoreError, match="this bucket does not exist"):
        absent.read("missing")
    for look in (absent.exists, lambda: absent.check_writable(1), lambda: Volume.open(absent.url)):
        with pytest.raises(InputError, match="this bucket does not exist"):
            look()


def test_a_bucket_is_probed_before_work(proxy: FaultyProxy, remote: Store) -> None:
    remote.check_writable(10**15)
    assert [method for method, _, _ in proxy.seen] == ["PUT", "POST"]  # a bucket has no size
    assert not remote.exists()
    for faults in (["403 AccessDenied"], [None, "403 AccessDenied"]):
        proxy.decide = in_order(*faults)
        with pytest.raises(InputError, match="the store refuses access"):
            remote.check_writable(1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("500", "500 Internal Server Error, InternalError: As asked."),
        ("503", "503 Service Unavailable, SlowDown: As asked."),
        ("507 InsufficientStorage", "507 Insufficient Storage, InsufficientStorage: As asked."),
        ("reset", "Connection reset by peer"),
        ("stall", "no answer in time"),
    ],
)
def test_a_fault_that_stays_ends_the_operation(
    proxy: FaultyProxy, remote: Store, monkeypatch: pytest.MonkeyPatch, fault: str, found: str
) -> None:
    monkeypatch.setenv("UNET_FLOWS_RETRY_SECONDS", "0.2")
    proxy.decide = lambda method, path: fault
    for act in (lambda: remote.read("key"), lambda: remote.create("key", b"")):
        with pytest.raises(StoreError) as failed:
            act()
        assert found in (failed.value.found or "")
        assert "\n" not in (failed.value.found or "")
        assert "give the same command again" in (failed.value.fix or "")


@pytest.mark.timeout(60)
def test_nobody_listens(remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNET_FLOWS_RETRY_SECONDS", "0.2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9: Connection refused"):
        remote.read("key")
    with pytest.raises(InputError, match="this store cannot be reached"):
        Volume.open(remote.url)


# Secrets


def test_no_secret_in_any_message(
    proxy: FaultyProxy,
    remote: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("UNET_FLOWS_RETRY_SECONDS", "0.05")
    caplog.set_level(logging.DEBUG)
    make_array(remote.child("array"))
    volume = Volume.open(remote.child("array").url)
    said: list[str] = []
    for fault in (
        "403 SignatureDoesNotMatch",
        "403 AccessDenied",
        "400 Odd",
        "500",
        "reset",
        "404 NoSuchBucket",
    ):
        proxy.decide = lambda method, path, fault=fault: fault
        with pytest.raises((GenericError, FileNotFoundError, obstore.exceptions.BaseError)) as raw:
            obstore.put(remote._store, "key", b"")
        if fault[0].isdigit():
            assert KEY_ID in str(raw.value)  # what must not come through
            assert "Signature=" in str(raw.value)
        for act in (
            lambda: remote.read("key"),
            lambda: remote.create("key", b""),
            lambda: list(remote.keys()),
            lambda: remote.delete(["key"]),
            lambda: volume.read(volume.box),
            lambda: remote.check_writable(1),
            lambda: Volume.open(volume.url),
        ):
            with pytest.raises((StoreError, InputError)) as failed:
                act()
            logging.getLogger("test").error("failed", exc_info=failed.value)
            said += [str(failed.value), repr(failed.value), str(failed.value.as_dict())]
            said += traceback.format_exception(failed.value)
    written = capfd.readouterr()
    for text in (*said, caplog.text, written.out, written.err):
        for secret in (SECRET, KEY_ID, "Signature=", "Credential="):
            assert secret not in text


# A whole run


def test_a_whole_run_through_a_bad_network(proxy: FaultyProxy, remote: Store, tmp_path: Path) -> None:
    """A fifth of all requests fail one way or another; the objects are those of a run on a disk."""
    image = np.random.default_rng(0).integers(0, 255, (16, 150, 40), dtype="u1")
    for root in (remote, Store(tmp_path)):
        array = root.child("volume.zarr").zarr(read_only=False)
        zarr.create_array(array, data=image, chunks=(16, 32, 32))
        save_random_model(root.child("model").url, UNetSpec.build(ndim=3, depth=1, base=2), seed=1)
    proxy.decide = at_random(0.2, seed=5)
    for root in (remote, Store(tmp_path)):
        complete(root.url, f"{root.url}/labels.zarr", tile=(8, 16, 16))
    assert sum(fault is not None for _, _, fault in proxy.seen) > 20
    assert verify(f"{remote}/labels.zarr").sound
    proxy.decide = in_order()
    for key in Store(tmp_path / "labels.zarr").keys():  # noqa: SIM118
        if "/c/" in key or "/ledger/" in key:
            assert remote.read(f"labels.zarr/{key}") == (tmp_path / "labels.zarr" / key).read_bytes(), key
