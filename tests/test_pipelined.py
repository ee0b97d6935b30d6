"""Three steps at once give what one after the other gives, errors included, and hold few items."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_core.pipelined import pipelined

STEPS = ("fetch", "work", "put")


class StepError(Exception):
    pass


@given(st.lists(st.sampled_from([None, *STEPS]), max_size=8))
def test_as_one_after_the_other(fails: list[str | None]) -> None:
    def step(name: str, index: int) -> int:
        if fails[index] == name:
            raise StepError(f"{name} {index}")
        return index

    found = pipelined(
        range(len(fails)),
        fetch=lambda i: step("fetch", i),
        work=lambda i: step("work", i),
        put=lambda i, worked: (step("put", i), worked),
    )
    told = [(i, str(r) if isinstance(r, StepError) else r) for i, r in found]
    assert told == [(i, (i, i) if f is None else f"{f} {i}") for i, f in enumerate(fails)]


def test_the_next_is_fetched_and_the_last_is_put_while_one_is_worked_on() -> None:
    fetched, put = (threading.Event() for _ in range(2))

    def fetch(item: int) -> int:
        if item == 2:
            fetched.set()
        return item

    def work(item: int) -> int:
        if item == 1:  # hangs unless both happen meanwhile
            assert fetched.wait(20)
            assert put.wait(20)
        return item

    def putting(item: int, worked: int) -> int:
        if item == 0:
            put.set()
        return worked

    assert list(pipelined(range(4), fetch=fetch, work=work, put=putting)) == [(i, i) for i in range(4)]


def test_no_more_items_are_held_than_it_says() -> None:
    alive, most, lock = 0, 0, threading.Lock()

    def count(change: int) -> None:
        nonlocal alive, most
        with lock:
            alive += change
            most = max(most, alive)

    def fetch(item: int) -> int:
        count(1)
        return item

    def put(item: int, worked: int) -> None:
        count(-1)

    list(pipelined(range(50), fetch=fetch, work=lambda i: i, put=put))
    assert alive == 0
    assert most <= 3  # one fetched, one worked on, one being put


def test_who_stops_iterating_leaves_no_thread_and_takes_no_more_items() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    stream = pipelined(items(), fetch=lambda i: i, work=lambda i: i, put=lambda i, w: w)
    assert next(stream) == (0, 0)
    stream.close()
    assert len(taken) <= 4
    assert not [t for t in threading.enumerate() if t.name.startswith(("fetch", "put"))]


def test_an_interrupt_is_no_outcome() -> None:
    def work(item: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(pipelined(range(3), fetch=lambda i: i, work=work, put=lambda i, w: w))
