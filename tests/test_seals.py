"""Sealing that is killed at any step, or overtaken by a new owner at any step, loses and invents nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_core.errors import LostLeaseError
from unet_core.ledger import FOLDER, Flags, Ledger, entries, hold, seals
from unet_core.ledger.flags import packed, unpacked
from unet_core.volumes import Store

COUNT = 150  # blocks, in segments of 64


@pytest.fixture(autouse=True, scope="module")
def small_segments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seals, "SEGMENT", 64)
        yield


# --- flags -------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 200), data=st.data())
def test_flags_are_an_array_of_bool(count: int, data: st.DataObject) -> None:
    expected = np.zeros(count, bool)
    flags = Flags(count)
    if count:
        for index, flag in data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.booleans()))):
            flags[index] = expected[index] = flag
    assert np.array_equal(np.asarray(flags), expected)
    assert [flags[index] for index in range(count)] == expected.tolist()
    assert list(flags.indices()) == np.flatnonzero(expected).tolist()
    assert list(flags.missing()) == np.flatnonzero(~expected).tolist()
    assert (len(flags), flags.sum()) == (count, expected.sum())
    assert (flags.any(), flags.all()) == (expected.any(), expected.all())
    assert np.array_equal(unpacked(packed(expected), count), expected)
    start = data.draw(st.integers(0, count // 8)) * 8
    assert np.array_equal(flags.part(start, count), expected[start:])
    again = Flags(count)
    again.put(start, packed(expected[start:]))
    assert list(again.indices()) == [i for i in np.flatnonzero(expected) if i >= start]
    for beyond in (-1, count):
        with pytest.raises(IndexError):
            flags[beyond]


def test_missing_blocks_of_a_hundred_million_are_never_listed() -> None:
    """What lies in memory is the flags and a part of the list."""
    import tracemalloc

    flags = Flags(10**8)
    for index in (0, 5, 10**8 - 1):
        flags[index] = True
    tracemalloc.start()
    missing = flags.missing()
    assert [next(missing) for _ in range(5)] == [1, 2, 3, 4, 6]
    assert list(flags.indices()) == [0, 5, 10**8 - 1]
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


# --- seals -------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 64), data=st.data())
def test_a_seal_says_what_it_was_told(size: int, data: st.DataObject) -> None:
    done = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    part = seals.Part.empty(64, size)
    part.done[:] = done
    part.digest[done] = data.draw(st.integers(0, 2**64 - 1))
    absent = data.draw(st.integers(0, seals.EMPTY))
    part.absent[done] = absent
    empty = absent == seals.EMPTY
    bytes_ = seals.encode(part, count=64 + size)
    head, again = seals.decode(bytes_)
    assert (head.start, head.size, head.count) == (64, size, 64 + size)
    assert (head.absent, head.empty) == (0 if empty else absent * done.sum(), done.sum() if empty else 0)
    for name in ("done", "digest", "absent"):
        assert np.array_equal(getattr(part, name), getattr(again, name))
    assert np.array_equal(unpacked(seals.decode_head(bytes_[: head.length]).bits, size), done)
    at = data.draw(st.integers(0, len(bytes_) - 1))
    with pytest.raises(seals.DamagedSealError):
        seals.decode(bytes_[:at] + bytes([bytes_[at] ^ 4]) + bytes_[at + 1 :])
    with pytest.raises(seals.DamagedSealError):
        seals.decode(bytes_[:at])


# --- ledgers -----------------------------------------------------------------------------------------------

BLOCKS = st.sets(st.integers(0, COUNT - 1), max_size=12)


def commit(ledger: Ledger, indices: set[int]) -> None:
    for index in indices:
        ledger.commit(index, f"{index * 7:016x}", absent=index % 3)


def require(store: Store, done: set[int]) -> None:
    ledger = Ledger(store, "predict", COUNT)
    there = ledger.read()
    assert set(there.done.indices()) == done
    assert there.absent == sum(index % 3 for index in done)
    for index in done:
        part = ledger.part(index)
        assert part.done[index - part.start]
        assert int(part.digest[index - part.start]) == index * 7


class KilledError(BaseException):
    pass


@contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """Let so many writes and deletions of a store happen, and no more."""
    write, unlink, left = Store.write, Store._unlink, [steps]

    def step() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KilledError

    def write_or_die(store: Store, *rest: Any, **options: Any) -> None:
        step()
        write(store, *rest, **options)

    def unlink_or_die(store: Store, key: str) -> None:
        step()
        unlink(store, key)

    with pytest.MonkeyPatch.context() as patch, suppress(KilledError):
        patch.setattr(Store, "write", write_or_die)
        patch.setattr(Store, "_unlink", unlink_or_die)
        yield


@settings(max_examples=40)
@given(owners=st.lists(st.tuples(BLOCKS, BLOCKS, st.integers(0, 60)), min_size=1, max_size=4))
def test_a_ledger_that_is_killed_at_any_step_reads_right(
    owners: list[tuple[set[int], set[int], int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each owner seals what he finds, commits, seals, commits, seals; and is killed at some step."""
    store = Store(tmp_path_factory.mktemp("ledger") / "out")
    done: set[int] = set()
    for first, second, steps in owners:
        with hold(store, every=3600) as lease:
            ledger = Ledger(store, "predict", COUNT, lease.epoch)
            with killed_after(steps):
                ledger.seal()
                for blocks in (first, second):
                    for index in blocks:
                        commit(ledger, {index})
                        done.add(index)
                    ledger.seal()
            require(store, done)
    with hold(store, every=3600) as lease:
        Ledger(store, "predict", COUNT, lease.epoch).seal()
        require(store, done)
    assert not list(store.keys(f"{FOLDER}/ledger/predict/blocks"))


@settings(max_examples=30)
@given(done=BLOCKS, opened=BLOCKS, steps=st.integers(0, 30))
def test_reopening_that_is_killed_opens_some_of_them_and_no_others(
    done: set[int], opened: set[int], steps: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("ledger") / "out")
    with hold(store, every=3600) as lease:
        commit(Ledger(store, "predict", COUNT, lease.epoch), done)
    with hold(store, every=3600) as lease:
        ledger = Ledger(store, "predict", COUNT, lease.epoch)
        finished = False
        with killed_after(steps):
            ledger.seal(without=opened)
            finished = True
        left = set(ledger.read().done.indices())
        assert done - opened <= left <= done
        assert not finished or left == done - opened
        require(store, left)


@pytest.mark.parametrize("check", range(8))
def test_a_new_owner_may_come_between_any_two_steps_of_the_old_ones_seal(
    check: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He comes just after the old owner was told, for the `check`th time, that he is the owner."""
    store = Store(tmp_path / "out")
    with hold(store, every=3600) as lease:
        commit(Ledger(store, "predict", COUNT, lease.epoch), {1, 70, 140})
        Ledger(store, "predict", COUNT, lease.epoch).seal()
        late = Ledger(store, "predict", COUNT, lease.epoch)
    done = {1, 2, 70, 71, 140}
    commit(late, {2, 71})
    require_epoch, checks = entries.require_epoch, []

    def slow(store: Store, epoch: int) -> None:
        require_epoch(store, epoch)
        checks.append(1)
        if len(checks) == check + 1:
            monkeypatch.setattr(entries, "require_epoch", require_epoch)
            with hold(store, every=3600) as lease:
                new = Ledger(store, "predict", COUNT, lease.epoch)
                new.seal()
                commit(new, {3, 4, 72})
                new.seal()
                commit(new, {5, 141})

    monkeypatch.setattr(entries, "require_epoch", slow)
    taken_over = True
    try:
        late.seal()
        taken_over = len(checks) > check
    except LostLeaseError:
        pass
    monkeypatch.setattr(entries, "require_epoch", require_epoch)
    done |= {3, 4, 72, 5, 141} if taken_over else set()
    require(store, done)
    with hold(store, every=3600) as lease:
        Ledger(store, "predict", COUNT, lease.epoch).seal()
        require(store, done)


def test_only_touched_segments_are_written_anew(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    with hold(store, every=3600) as lease:
        ledger = Ledger(store, "predict", COUNT, lease.epoch)
        commit(ledger, set(range(COUNT)))
        ledger.seal()
        ledger.seal()
        folder = store.path / FOLDER / "ledger/predict/sealed"
        assert sorted(p.name for p in folder.iterdir()) == ["000000", "000001", "000002"]
        ledger.seal(without=[70])
        commit(ledger, {70})
        ledger.seal()
        assert [sorted(p.name[-1] for p in d.iterdir()) for d in sorted(folder.iterdir())] == [
            ["1"],
            ["2", "3"],
            ["1"],
        ]


def test_whoever_knows_which_blocks_are_done_has_read_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "out")
    with hold(store, every=3600) as lease:
        ledger = Ledger(store, "predict", COUNT, lease.epoch)
        commit(ledger, {1, 100})
        ledger.seal()
    monkeypatch.setattr(seals, "decode", None)
    assert list(ledger.read().done.indices()) == [1, 100]
