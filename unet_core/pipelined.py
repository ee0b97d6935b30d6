"""Three steps at once: the next item is fetched and the last one put away while this one is worked on.

    fetch    item 3   item 4   item 5   ...         one thread
    work     item 2   item 3   item 4               the caller's
    put      item 1   item 2   item 3               one thread

At most one item waits before the work and one behind it, so memory is that of three items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Fetched = TypeVar("Fetched")
Worked = TypeVar("Worked")
Result = TypeVar("Result")


def pipelined(
    items: Iterable[Item],
    *,
    fetch: Callable[[Item], Fetched],
    work: Callable[[Fetched], Worked],
    put: Callable[[Item, Worked], Result],
) -> Iterator[tuple[Item, Result | Exception]]:
    """Each item with `put(item, work(fetch(item)))`, or with the error that one of them raised; in order.

    `fetch` runs in one thread and `put` in another, each one item at a time. Who stops iterating waits for
    what is under way.
    """
    rest = iter(items)
    with ThreadPoolExecutor(1, "fetch") as ahead, ThreadPoolExecutor(1, "put") as behind:

        def begin() -> tuple[Item, Future[Fetched]] | None:
            for item in rest:
                return item, ahead.submit(fetch, item)
            return None

        coming = begin()
        going: tuple[Item, Future[Result]] | None = None
        while coming is not None:
            item, fetched = coming
            wait([fetched])
            coming = begin()  # only now: one item waits, not two
            try:
                outcome = behind.submit(put, item, work(fetched.result()))
            except Exception as error:
                outcome = Future()
                outcome.set_exception(error)
            del fetched
            if going is not None:
                last = _settled(going[1])
                yield going[0], last
            going = item, outcome
        if going is not None:
            last = _settled(going[1])
            yield going[0], last


def _settled(outcome: Future[Result]) -> Result | Exception:
    try:
        return outcome.result()
    except Exception as error:
        return error
