"""Block functions that fail, hang, starve or die, for workers in other processes to import.

Every call leaves a file ATTEMPTS/INDEX.N, so that a test can count them. `url` is the output.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from unet_core.errors import DataError, StoreError, UnfitWorkerError
from unet_core.ledger import Done, Ledger
from unet_core.volumes import Store

COUNT = 6
BAD = 3


def attempts(url: str, index: int) -> int:
    """How often a block was begun."""
    return len(list(Path(url).glob(f"attempts/{index}.*")))


def good(url: str, epoch: int, index: int) -> Done:
    """Write the block, commit it."""
    folder = Path(url) / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{index}.{time.time_ns()}").touch()
    store = Store(url)
    store.write(f"blocks/{index}", bytes([index]))
    Ledger(store, "stage", COUNT, epoch).commit(index, f"{index:016x}", absent=index % 2)
    return Done(10, absent=index % 2)


def _count(url: str, index: int) -> int:
    folder = Path(url) / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{index}.{time.time_ns()}").touch()
    return attempts(url, index)


def fails(url: str, epoch: int, index: int) -> Done:
    if index == BAD:
        _count(url, index)
        raise DataError("the chunk is corrupt", where=f"block {index}")
    return good(url, epoch, index)


def fails_twice(url: str, epoch: int, index: int) -> Done:
    if index == BAD and _count(url, index) < 3:
        raise OSError("the network stuttered")
    return good(url, epoch, index)


def fills_the_disk(url: str, epoch: int, index: int) -> Done:
    if index == BAD:
        raise StoreError("the disk is full", where=url)
    return good(url, epoch, index)


def dies(url: str, epoch: int, index: int) -> Done:
    if index == BAD:
        _count(url, index)
        os.kill(os.getpid(), signal.SIGKILL)
    return good(url, epoch, index)


def dies_once(url: str, epoch: int, index: int) -> Done:
    if index == BAD and _count(url, index) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return good(url, epoch, index)


def hangs(url: str, epoch: int, index: int) -> Done:
    if index == BAD:
        _count(url, index)
        time.sleep(3600)
    return good(url, epoch, index)


def hangs_once(url: str, epoch: int, index: int) -> Done:
    if index == BAD and _count(url, index) == 1:
        time.sleep(3600)
    return good(url, epoch, index)


def starves(url: str, epoch: int, index: int) -> Done:
    if index == BAD:
        _count(url, index)
        raise MemoryError("7 TB wanted")
    return good(url, epoch, index)


def starves_once(url: str, epoch: int, index: int) -> Done:
    if index == BAD and _count(url, index) == 1:
        raise MemoryError("a fragmented heap")
    return good(url, epoch, index)


def differs(url: str, epoch: int, index: int) -> Done:
    """The first process to come computes other bits than all that come later."""
    marker = Path(url) / "odd-one"
    try:
        with marker.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        while not (owner := marker.read_text()):
            time.sleep(0.01)
        if owner != str(os.getpid()):
            return good(url, epoch, index)
    raise UnfitWorkerError("this worker would compute other results than the run was begun with")


def always_differs(url: str, epoch: int, index: int) -> Done:
    raise UnfitWorkerError("this worker would compute other results than the run was begun with")


def everything_fails(url: str, epoch: int, index: int) -> Done:
    raise ValueError("whatever the block")


def stops_others(url: str, epoch: int, index: int) -> Done:
    """Another run takes over while this one is at work."""
    if index == BAD:
        Store(url).write(f".unet-flows/lease/{epoch + 1:08d}", b"{}")
    return good(url, epoch, index)


MANY = 400
WORST = 170


def tiny(url: str, epoch: int, index: int) -> Done:
    """One of many: nothing but its entry in the ledger."""
    Ledger(Store(url), "stage", MANY, epoch).commit(index, f"{index:016x}")
    return Done(1)


def tiny_fails(url: str, epoch: int, index: int) -> Done:
    if index == WORST:
        _count(url, index)
        raise DataError("the chunk is corrupt", where=f"block {index}")
    return tiny(url, epoch, index)


def tiny_dies(url: str, epoch: int, index: int) -> Done:
    if index == WORST:
        _count(url, index)
        os.kill(os.getpid(), signal.SIGKILL)
    return tiny(url, epoch, index)


def stream(url: str, epoch: int, indices: Iterator[int]) -> Iterator[tuple[int, Done | Exception]]:
    """Two blocks ahead, as a pipeline that reads ahead is."""
    yield from _ahead(tiny, url, epoch, indices)


def stream_fails(url: str, epoch: int, indices: Iterator[int]) -> Iterator[tuple[int, Done | Exception]]:
    yield from _ahead(tiny_fails, url, epoch, indices)


def stream_dies(url: str, epoch: int, indices: Iterator[int]) -> Iterator[tuple[int, Done | Exception]]:
    yield from _ahead(tiny_dies, url, epoch, indices)


def stream_hangs(url: str, epoch: int, indices: Iterator[int]) -> Iterator[tuple[int, Done | Exception]]:
    """All blocks together take longer than one may; one of them hangs once."""
    for index in indices:
        time.sleep(0.03)
        if index == WORST and _count(url, index) == 1:
            time.sleep(3600)
        yield index, tiny(url, epoch, index)


def stream_breaks(url: str, epoch: int, indices: Iterator[int]) -> Iterator[tuple[int, Done | Exception]]:
    """It raises instead of yielding, with two blocks taken."""
    for index, done in _ahead(tiny, url, epoch, indices):
        if index == WORST:
            raise RuntimeError("the pipeline broke")
        yield index, done


def _ahead(
    function: Callable[[str, int, int], Done], url: str, epoch: int, indices: Iterator[int]
) -> Iterator[tuple[int, Done | Exception]]:
    held: list[int] = []
    for index in indices:
        held.append(index)
        if len(held) > 2:
            yield held[0], _tried(function, url, epoch, held.pop(0))
    for index in held:
        yield index, _tried(function, url, epoch, index)


def _tried(function: Callable[[str, int, int], Done], url: str, epoch: int, index: int) -> Done | Exception:
    try:
        return function(url, epoch, index)
    except DataError as error:
        return error
