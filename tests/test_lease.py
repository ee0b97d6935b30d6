"""One owner per output, on a disk and in a bucket: refused while he lives, replaced when he is dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import pytest

from unet_core.errors import InputError, LostLeaseError
from unet_core.ledger import Holder, Ledger, hold, holder, require_epoch
from unet_core.volumes import Store

KEY = ".unet-flows/lease/{:08d}"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "out")
    return Store(f"{request.getfixturevalue('bucket')}/{uuid4().hex}")


def refusal() -> AbstractContextManager[object]:
    return pytest.raises(InputError, match="another run is at work")


class Clock:
    """A monotonic clock that moves when somebody sleeps; `meanwhile` happens in each sleep."""

    def __init__(self, meanwhile=lambda: None) -> None:
        self.now = 1000.0
        self.meanwhile = meanwhile

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


def foreign(store: Store, epoch: int = 1, **facts) -> None:
    """A lease of a process on another machine."""
    owner = {"host": "elsewhere", "pid": 1, "started": 0, "space": "another boot", "id": "x"}
    document = {"owner": owner, "beat": 3, "every": 10.0, "released": False, **facts}
    store.write(KEY.format(epoch), json.dumps(document).encode())


def test_owners_follow_one_another(store: Store) -> None:
    assert holder(store) is None
    for epoch in (1, 2, 3):
        with hold(store) as lease:
            assert lease.epoch == epoch
            there = holder(store)
            assert there is not None
            assert not there.released
            assert str(os.getpid()) in str(there)
        released = holder(store)
        assert released is not None
        assert released.released
    assert list(store.keys()) == [KEY.format(3)], "earlier leases are cleared away"


def test_a_living_owner_refuses_the_second(store: Store) -> None:
    with hold(store, every=0.05), pytest.raises(InputError, match="another run is at work") as refused:  # noqa: SIM117
        with hold(store):
            pass
    assert str(os.getpid()) in refused.value.found


def test_of_many_that_begin_at_once_one_owns(store: Store) -> None:
    """Whoever does not own saw an owner, or lost the race."""
    barrier, owned, refused = threading.Barrier(8), [], []
    all_tried = threading.Barrier(8)

    def begin(_: int) -> None:
        barrier.wait()
        try:
            with hold(store, every=0.05) as lease:
                owned.append(lease.epoch)
                all_tried.wait()
        except InputError:
            refused.append(1)
            all_tried.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(8)))
    assert (owned, len(refused)) == ([1], 7)


def test_an_owner_that_does_not_move_is_replaced(store: Store) -> None:
    foreign(store)
    clock, told = Clock(), []
    with hold(store, on_wait=lambda *facts: told.append(facts), clock=clock, sleep=clock.sleep) as lease:
        assert lease.epoch == 2
    assert clock.now - 1000 == pytest.approx(60, abs=1)
    assert [(str(there), seconds) for there, seconds in told] == [
        ("process 1 on elsewhere, heartbeat 3", 60.0)
    ]


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_clocks_that_differ_by_an_hour_do_not_matter(
    skew: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's machine and the observer's disagree about the time of day; the owner lives."""
    with hold(store, every=0.05):
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + skew)
        monkeypatch.setattr("psutil.boot_time", lambda: skew)
        with pytest.raises(InputError, match="another run is at work"), hold(store):
            pass
    foreign(store, 2)
    clock = Clock()
    with hold(store, clock=clock, sleep=clock.sleep) as lease:
        assert lease.epoch == 3


def test_an_owner_that_moves_late_is_not_replaced(store: Store) -> None:
    foreign(store)
    clock = Clock()

    def beat() -> None:
        if clock.now > 1050:
            foreign(store, beat=4)

    clock.meanwhile = beat
    with refusal(), hold(store, clock=clock, sleep=clock.sleep):
        pass
    assert holder(store).epoch == 1


def test_an_owner_that_ends_meanwhile_lets_in(store: Store) -> None:
    foreign(store)
    clock = Clock(lambda: foreign(store, released=True))
    with hold(store, clock=clock, sleep=clock.sleep) as lease:
        assert lease.epoch == 2
    assert clock.now < 1005


def test_of_two_that_wait_for_a_dead_owner_the_second_is_refused(store: Store) -> None:
    foreign(store)
    clock = Clock()

    def other_is_faster() -> None:
        if clock.now > 1058:
            foreign(store, 2)

    clock.meanwhile = other_is_faster
    with refusal(), hold(store, clock=clock, sleep=clock.sleep):
        pass


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff", b'{"owner": null, "every": "x"}', b'{"owner": 5, "every": null}']
)
def test_a_lease_that_says_nothing_expires_too(text: bytes, store: Store) -> None:
    store.write(KEY.format(7), text)
    clock = Clock()
    with hold(store, clock=clock, sleep=clock.sleep) as lease:
        assert lease.epoch == 8


HOLDS = """
import sys, time
from unet_core.ledger import hold
from unet_core.volumes import Store
with hold(Store(sys.argv[1]), every=60) as lease:
    print(lease.epoch, flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def other(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the output, and beats once an hour."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, store.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.communicate()


def test_an_owner_killed_on_this_machine_is_replaced_at_once(
    store: Store, other: subprocess.Popen[str]
) -> None:
    clock = Clock()
    other.send_signal(signal.SIGKILL)
    other.wait()
    with hold(store, clock=clock, sleep=clock.sleep) as lease:
        assert lease.epoch == 2
    assert clock.now == 1000.0


def test_a_stopped_owner_is_late_when_it_wakes(store: Store, other: subprocess.Popen[str]) -> None:
    """Stopped, it does not beat; replaced, its epoch is worth nothing."""
    other.send_signal(signal.SIGSTOP)
    clock = Clock()
    with hold(store, clock=clock, sleep=clock.sleep) as lease:
        assert lease.epoch == 2
        with pytest.raises(LostLeaseError, match="taken over"):
            Ledger(store, "stage", 3, 1).commit(0, "0" * 16)
        Ledger(store, "stage", 3, 2).commit(1, "0" * 16)
        assert list(Ledger(store, "stage", 3).read().done.indices()) == [1]


def test_an_owner_notices_that_it_was_replaced(store: Store) -> None:
    with hold(store, every=0.05) as lease:
        lease.require()
        foreign(store, 2)
        for _ in range(200):
            time.sleep(0.05)
            try:
                lease.require()
            except LostLeaseError:
                break
        else:
            pytest.fail("it never noticed")
        with pytest.raises(LostLeaseError):
            require_epoch(store, lease.epoch)
    there = holder(store)
    assert isinstance(there, Holder)
    assert (there.epoch, there.released) == (2, False), "leaving, it does not touch the other's lease"


def test_what_an_owner_reports_travels_with_its_beat(store: Store) -> None:
    with hold(store, every=3600) as lease:
        lease.report({"stage": "predict", "done": 5})
        lease.beat()
        there = holder(store)
        assert there is not None
        assert there.document["report"] == {"stage": "predict", "done": 5}
        first = there.document["beat"]
        lease.beat()
        assert holder(store).document["beat"] == first + 1
