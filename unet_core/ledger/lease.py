"""One owner per output: a lease with a heartbeat, and an epoch that fences off a late owner.

    OUTPUT/.unet-flows/lease/00000001      one object per owner, newest epoch last
                             00000002      {"owner": ..., "beat": 17, "every": 10.0, "released": false, ...}

To own an output is to have created the object of the highest epoch: creation is exclusive on every store
(a conditional write on S3, an exclusive file locally), so of two that try one succeeds. The owner writes
its object anew at every beat. Nobody compares clocks: whoever finds a lease watches whether it changes,
on his own monotonic clock, and takes the next epoch when it has not changed for six beats.

What an owner commits carries its epoch (`entries`), so that one who slept through the loss of his lease
cannot make anything count.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unet_core.errors import HeldError, InputError, LostLeaseError, StoreError
from unet_core.ledger.record import FOLDER
from unet_core.volumes import Store

PATIENCE = 6  # beats without a change after which an owner counts as dead
_LAST_WORDS = 5.0  # seconds
_EVERY = 10.0  # seconds between two beats
_PREFIX = f"{FOLDER}/lease"


@dataclass(frozen=True)
class Holder:
    """What the newest lease object says: it differs between any two beats."""

    epoch: int
    document: Mapping[str, Any]

    @property
    def released(self) -> bool:
        return bool(self.document.get("released"))

    @property
    def seconds_to_expire(self) -> float:
        return PATIENCE * float(self.document["every"])

    @property
    def process_is_gone(self) -> bool:
        """Certainly dead: it ran in this very machine and process namespace, and runs no more."""
        owner = self.document["owner"]
        if not owner.get("space") or owner.get("space") != _process_space():
            return False
        return bool(_started(owner.get("pid")) != owner.get("started"))

    def __str__(self) -> str:
        owner = self.document["owner"]
        return f"process {owner.get('pid')} on {owner.get('host')}, heartbeat {self.document.get('beat')}"


def holder(store: Store) -> Holder | None:
    """Who owns, or last owned, this output; None where nobody ever did."""
    # An owner may clear away older objects between the listing and the reading.
    while (epoch := _highest(store)) > 0:
        data = store.read(_key(epoch))
        if data is not None:
            return Holder(epoch, _parse(data))
    return None


def require_epoch(store: Store, epoch: int) -> None:
    """Refuse to go on for an owner that another one has replaced.

    Raises
    ------
    LostLeaseError
        The lease of a later epoch exists.
    """
    now = _highest(store)
    if now != epoch:
        raise LostLeaseError(
            "another run has taken over this output",
            where=store.url,
            expected=f"lease {epoch}",
            found=f"lease {now}",
            fix="leave it to the other run, or stop that one first",
        )


@dataclass
class Lease:
    """An output held by this process. `report` is shown to others with every beat."""

    store: Store
    epoch: int
    _document: dict[str, Any]
    _report: Mapping[str, Any] = field(default_factory=dict)
    _lost: LostLeaseError | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def report(self, facts: Mapping[str, Any]) -> None:
        """Facts on progress for `unet-flows status`; they travel with the next beat."""
        self._report = dict(facts)

    def require(self) -> None:
        """Raise `LostLeaseError` if this process is known to own the output no more."""
        if self._lost is not None:
            raise self._lost

    def beat(self) -> None:
        """Show that this owner lives, if it still is the owner."""
        with self._writing:
            if self._stopped.is_set():
                return
            try:
                require_epoch(self.store, self.epoch)
            except LostLeaseError as error:
                self._lost = error
                return
            self._document["beat"] += 1
            self.store.write(_key(self.epoch), _encode({**self._document, "report": self._report}))

    def keep_beating(self) -> None:
        """Beat until released; for a thread of its own."""
        while not self._stopped.wait(self._document["every"]) and self._lost is None:
            # A store that stutters costs a beat, not the run: commits are fenced by the epoch anyway.
            with suppress(StoreError):
                self.beat()

    def release(self) -> None:
        """Let the next one in without waiting."""
        self._stopped.set()
        # A store that does not answer must not keep a run from ending; the lease expires by itself.
        last = threading.Thread(target=self._release, name="release", daemon=True)
        last.start()
        last.join(_LAST_WORDS)

    def _release(self) -> None:
        with self._writing, suppress(StoreError, LostLeaseError):
            require_epoch(self.store, self.epoch)
            self.store.write(_key(self.epoch), _encode({**self._document, "released": True}))


@contextmanager
def hold(
    store: Store,
    *,
    every: float | None = None,
    on_wait: Callable[[Holder, float], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Lease]:
    """Own an output for as long as the context lasts; a thread keeps the lease alive.

    Parameters
    ----------
    every
        Seconds between beats; the default is UNET_FLOWS_HEARTBEAT_SECONDS or 10.
    on_wait
        Told who seems to hold the output and for how many seconds he will be watched.

    Raises
    ------
    HeldError
        Another run lives on this output.
    """
    every = every or _seconds_between_beats()
    lease = _acquire(store, every, on_wait, clock, sleep)
    heart = threading.Thread(target=lease.keep_beating, name="lease", daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        lease.release()


def _seconds_between_beats() -> float:
    text = os.environ.get("UNET_FLOWS_HEARTBEAT_SECONDS", str(_EVERY))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise InputError(
            "this is no number of seconds between heartbeats",
            where="UNET_FLOWS_HEARTBEAT_SECONDS",
            expected="more than 0, at most 3600",
            found=repr(text),
        )
    return seconds


def _acquire(
    store: Store,
    every: float,
    on_wait: Callable[[Holder, float], None] | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Lease:
    there = _free(store, on_wait, clock, sleep)
    epoch = (there.epoch if there else 0) + 1
    document = {"owner": _this_process(), "beat": 0, "every": every, "released": False}
    lease = Lease(store, epoch, document)
    # The second look: whoever came from an older state of things may create an epoch long passed.
    if not store.create(_key(epoch), _encode(document)) or _highest(store) != epoch:
        raise _refusal(store, holder(store))
    store.delete(_key(old) for old in _epochs(store) if old < epoch)
    return lease


def require_free(store: Store, *, on_wait: Callable[[Holder, float], None] | None = None) -> None:
    """Find out whether a run lives on this output, without owning it: as `hold` does, and as long.

    Raises
    ------
    HeldError
        One does.
    """
    _free(store, on_wait, time.monotonic, time.sleep)


def _free(
    store: Store,
    on_wait: Callable[[Holder, float], None] | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Holder | None:
    """Who owned this output last, and lives no more."""
    there = holder(store)
    if there is not None and not there.released and not there.process_is_gone:
        _outlast(store, there, on_wait, clock, sleep)
    return there


def _outlast(
    store: Store,
    there: Holder,
    on_wait: Callable[[Holder, float], None] | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Return when this owner has not moved for as long as its lease lasts; refuse if it moves."""
    patience = there.seconds_to_expire
    if on_wait is not None:
        on_wait(there, patience)
    began = clock()
    while clock() - began < patience:
        sleep(min(1.0, patience / PATIENCE / 2))
        now = holder(store)
        if now is not None and now.epoch == there.epoch and (now.released or now.process_is_gone):
            return
        if now != there:
            raise _refusal(store, now)


def _refusal(store: Store, now: Holder | None) -> HeldError:
    return HeldError(
        "another run is at work on this output",
        where=store.url,
        found=now,
        fix="wait for it (unet-flows status OUTPUT shows how far it is), or stop it first",
    )


def _key(epoch: int) -> str:
    return f"{_PREFIX}/{epoch:08d}"


def _epochs(store: Store) -> Iterator[int]:
    for key in store.keys(_PREFIX):
        name = key.rsplit("/", 1)[1]
        if name.isdecimal():
            yield int(name)


def _highest(store: Store) -> int:
    return max(_epochs(store), default=0)


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode()


def _parse(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    # An object that says nothing still holds its epoch; it expires like any that does not change.
    document = document if isinstance(document, dict) else {"damaged": data.hex()}
    every = document.get("every")
    return {
        **document,
        "owner": document["owner"] if isinstance(document.get("owner"), dict) else {},
        "every": every if isinstance(every, int | float) and 0 < every < 3600 * 24 else _EVERY,
    }


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "space": _process_space(),
        "id": uuid.uuid4().hex,
    }


def _started(pid: object) -> int | None:
    """Clock ticks from boot to the start of a process (proc(5), field 22); None where it is gone.

    Not a time of day: that would change when somebody sets the clock.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] not in "ZX" else None


def _process_space() -> str | None:
    """What makes process numbers comparable: this boot of this machine, this process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None
