"""Blocks that travel together: sizes, outcomes of their own, streams, and deaths that leave bystanders alone.

The block functions stand in `misbehaving`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import misbehaving
import numpy as np
import pytest
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from misbehaving import MANY, WORST, attempts

from flows import attempt
from flows.attempt import Failed, Work, attempt_each, attempt_many
from flows.batching import MOST, Batches
from flows.blocks import StageResult, run_stage
from flows.cluster import open_client
from flows.config import Local
from unet_core.errors import LostLeaseError, UnfitWorkerError
from unet_core.ledger import Done, Ledger, hold
from unet_core.volumes import Store

OTHERS = [index for index in range(MANY) if index != WORST]

# --- sizes -------------------------------------------------------------------------------------------------


@given(
    count=st.integers(0, 3000),
    workers=st.integers(0, 9),
    streamed=st.booleans(),
    costs=st.lists(st.floats(0, 100), min_size=1),
    returned=st.lists(st.integers(0, 5)),
)
def test_every_block_travels_once_whatever_the_times(
    count: int, workers: int, streamed: bool, costs: list[float], returned: list[int]
) -> None:
    batches = Batches(iter(range(count)), count, streamed=streamed)
    times, gives_back = deque(costs), deque(returned)
    done: list[int] = []
    while batch := batches.take(workers):
        assert len(batch) <= MOST
        untried = min(gives_back.popleft(), len(batch) - 1) if gives_back else 0
        tried = batch[: len(batch) - untried]
        done += tried
        batches.put_back(batch[len(tried) :])
        batches.learn(len(tried), len(tried) * times[0])
        times.rotate()
    assert sorted(done) == list(range(count))
    assert returned or done == list(range(count)), "in order"


@given(
    left=st.integers(1, 10**9), workers=st.integers(1, 500), streamed=st.booleans(), cost=st.floats(1e-6, 1e3)
)
def test_the_last_blocks_are_shared_and_slow_ones_travel_alone(
    left: int, workers: int, streamed: bool, cost: float
) -> None:
    batches = Batches(iter(range(left)), left, streamed=streamed)
    batches.learn(1, cost)
    size = len(batches.take(workers))
    assert size <= max(1, -(-left // (4 * workers))), (
        "every worker has two in the window, and as much is left"
    )
    assert size * cost <= batches.limit or size == 1
    if not streamed and cost > 1:
        assert size == 1


def test_the_first_blocks_of_a_stage_travel_alone_but_not_in_a_stream() -> None:
    assert len(Batches(iter(range(1000)), 1000, streamed=False).take(2)) == 1
    assert len(Batches(iter(range(1000)), 1000, streamed=True).take(2)) == 16


# --- outcomes ----------------------------------------------------------------------------------------------


def good(index: int) -> Done:
    return Done(index)


def test_a_batch_gives_every_block_its_own_outcome() -> None:
    def odd_ones_fail(index: int) -> Done:
        if index % 2:
            raise ValueError(index)
        return Done(index)

    tried = attempt_many(Work(function=odd_ones_fail, importable=False), range(6), limit=60)
    assert [index for index, _ in tried.outcomes] == list(range(6))
    for index, outcome in tried.outcomes:
        assert isinstance(outcome, Failed if index % 2 else Done)


@pytest.mark.parametrize("error", [LostLeaseError("taken over"), UnfitWorkerError("other bits")])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_batch_ends_at_what_is_not_its_blocks_fault(error: Exception, streamed: bool) -> None:
    begun: list[int] = []

    def block(index: int) -> Done:
        begun.append(index)
        if index == 2:
            raise error
        return Done(1)

    def stream(indices: Iterator[int]) -> Iterator[tuple[int, Done | Exception]]:
        for index in indices:
            try:
                yield index, block(index)
            except (LostLeaseError, UnfitWorkerError) as caught:
                yield index, caught

    work = Work(function=block, importable=False, stream=stream if streamed else None)
    tried = attempt_many(work, range(6), limit=60)
    assert [index for index, _ in tried.outcomes] == begun == [0, 1, 2]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_batch_ends_when_it_is_overdue_or_unwanted(streamed: bool) -> None:
    def stream(indices: Iterator[int]) -> Iterator[tuple[int, Done | Exception]]:
        for index in indices:
            yield index, Done(1)

    work = Work(function=good, importable=False, stream=stream if streamed else None)
    answers = iter([True, True, False])
    tried = attempt_many(work, range(6), limit=60, wanted=lambda: next(answers))
    assert [index for index, _ in tried.outcomes] == [0, 1]
    assert attempt_many(work, range(6), limit=-1).outcomes == []


def outcomes_of(stream: Callable[..., Any], function: Callable[..., Done] = good) -> dict[int, Any]:
    work = Work(function=function, importable=False, stream=stream)
    answers = list(attempt_each(work, range(6), watched=False))
    assert len(answers) == len(dict(answers)), "one outcome for each block"
    return dict(answers)


def test_what_a_stream_leaves_out_or_breaks_at_is_done_singly() -> None:
    def leaves_out(indices: Iterator[int]) -> Iterator[tuple[int, Done]]:
        for index in indices:
            if index != 3:
                yield index, Done(-1)

    def breaks(indices: Iterator[int]) -> Iterator[tuple[int, Done]]:
        yield next(indices), Done(-1)
        next(indices)
        raise RuntimeError("broken")

    def never_begins(indices: Iterator[int]) -> Iterator[tuple[int, Done]]:
        raise RuntimeError("broken")
        yield 0, Done(0)

    def knows_not_what_it_does(indices: Iterator[int]) -> Iterator[tuple[int, Done]]:
        next(indices)
        yield 5, Done(-1)

    minus = Done(-1)
    assert outcomes_of(leaves_out) == {0: minus, 1: minus, 2: minus, 4: minus, 5: minus, 3: Done(3)}
    assert outcomes_of(breaks) == {0: minus, 1: Done(1)}, "the others are untried"
    assert outcomes_of(never_begins) == {0: Done(0)}, "or it would be begun for ever"
    assert outcomes_of(knows_not_what_it_does) == {0: Done(0)}


def test_a_block_that_finds_too_little_memory_in_a_stream_is_tried_by_itself() -> None:
    def starves(indices: Iterator[int]) -> Iterator[tuple[int, Done | Exception]]:
        for index in indices:
            yield index, MemoryError() if index == 2 else Done(-1)

    assert outcomes_of(starves)[2] == Done(2)


def test_a_stream_is_closed_at_once() -> None:
    closed: list[bool] = []

    def stream(indices: Iterator[int]) -> Iterator[tuple[int, Done | Exception]]:
        try:
            for index in indices:
                yield index, LostLeaseError("taken over")
        finally:
            closed.append(attempt._ONE_AT_A_TIME.locked())

    assert list(outcomes_of(stream)) == [0]
    assert closed == [True], "before another block begins"


# --- stages ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with open_client(Local(workers=2)) as connected:
            yield connected


def run(output: Path, client: Client | None, function: Callable[..., Done], **options: Any) -> StageResult:
    store = Store(output)
    with hold(store) as lease:
        work = Work(function=function, arguments=(store.url, lease.epoch), **options)
        return run_stage(work, Ledger(store, "stage", MANY, lease.epoch), lease=lease, client=client)


def done(output: Path) -> list[int]:
    return np.flatnonzero(Ledger(Store(output), "stage", MANY).read().done).tolist()


@pytest.mark.parametrize("stream", [None, misbehaving.stream, misbehaving.stream_breaks])
def test_many_blocks_travel_in_few_futures(
    stream: Any, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, futures = client.submit, []
    monkeypatch.setattr(client, "submit", lambda *a, **k: futures.append(a) or submit(*a, **k))
    result = run(tmp_path, client, misbehaving.tiny, stream=stream)
    assert result.complete
    assert (result.done, result.voxels) == (MANY, MANY)
    assert len(futures) < MANY / 4
    assert done(tmp_path) == list(range(MANY))


@pytest.mark.parametrize("stream", [None, misbehaving.stream_fails])
@pytest.mark.parametrize("where", ["in process", "on workers"])
def test_a_failing_block_does_not_touch_its_batch(
    where: str, stream: Any, tmp_path: Path, client: Client
) -> None:
    result = run(tmp_path, client if where == "on workers" else None, misbehaving.tiny_fails, stream=stream)
    (failure,) = result.failed
    assert (failure.index, failure.attempts) == (WORST, 3)
    assert "the chunk is corrupt" in failure.error
    assert "misbehaving.py" in failure.traceback
    assert (result.done, done(tmp_path)) == (MANY - 1, OTHERS)


@pytest.mark.parametrize("stream", [None, misbehaving.stream_dies])
def test_a_block_that_kills_its_workers_is_told_from_its_batch(
    stream: Any, tmp_path: Path, client: Client
) -> None:
    result = run(tmp_path, client, misbehaving.tiny_dies, stream=stream)
    assert result.stopped is None
    (failure,) = result.failed
    assert failure.index == WORST
    assert "killed by signal 9" in failure.error
    assert attempts(str(tmp_path), WORST) == 3
    assert (result.done, done(tmp_path)) == (MANY - 1, OTHERS)


def test_the_time_limit_is_a_blocks_not_a_batchs(tmp_path: Path, client: Client) -> None:
    """A batch takes longer than a block may; one that hangs costs its worker, and is done elsewhere."""
    result = run(tmp_path, client, misbehaving.tiny, stream=misbehaving.stream_hangs, timeout=1.0)
    assert result.complete
    assert attempts(str(tmp_path), WORST) == 2
    assert done(tmp_path) == list(range(MANY))
