"""One policy for all engines: retries, quarantine, deaths, hangs, memory, stops; in process and on Dask.

What each block function does stands in `misbehaving`; workers really die of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import misbehaving
import numpy as np
import pytest
from distributed import Client
from misbehaving import BAD, COUNT, attempts

from flows import blocks
from flows.attempt import Work
from flows.blocks import StageResult, run_stage
from flows.cluster import open_client
from flows.config import Local
from flows.outcome import Run
from unet_core.errors import LostLeaseError
from unet_core.ledger import Done, Ledger, Quarantine, hold, read_status
from unet_core.volumes import Store

OTHERS = [index for index in range(COUNT) if index != BAD]


@pytest.fixture(scope="module")
def imports() -> Iterator[None]:
    """Fresh processes can import the tests' modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield


@pytest.fixture
def workers_of_its_own(imports: None) -> Iterator[Callable[[int], Client]]:
    with pytest.MonkeyPatch.context():
        stack: list[Any] = []

        def make(count: int) -> Client:
            context = open_client(Local(workers=count))
            stack.append(context)
            return context.__enter__()

        yield make
        for context in reversed(stack):
            context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def two_workers(imports: None) -> Iterator[Client]:
    """For all tests that leave two behind: a worker that died is replaced."""
    with open_client(Local(workers=2)) as connected:
        yield connected


@pytest.fixture(params=["in process", "on workers"])
def client(request: pytest.FixtureRequest) -> Client | None:
    return None if request.param == "in process" else request.getfixturevalue("two_workers")


@contextmanager
def stage_of(output: Path) -> Iterator[Callable[..., StageResult]]:
    """Run a stage of `COUNT` blocks on an output, as its owner."""
    store = Store(output)
    with hold(store) as lease:

        def run(
            function: Callable[..., Done],
            client: Client | None,
            timeout: float | None = None,
            **options: Any,
        ) -> StageResult:
            return run_stage(
                Work(function=function, arguments=(store.url, lease.epoch), timeout=timeout),
                Ledger(store, "stage", COUNT, lease.epoch),
                lease=lease,
                client=client,
                **options,
            )

        yield run


def run(output: Path, function: Callable[..., Done], client: Client | None, **options: Any) -> StageResult:
    with stage_of(output) as stage:
        return stage(function, client, **options)


def done(output: Path) -> list[int]:
    return np.flatnonzero(Ledger(Store(output), "stage", COUNT).read().done).tolist()


def test_all_blocks_are_done_once(tmp_path: Path, client: Client | None) -> None:
    seen: list[int] = []
    result = run(tmp_path, misbehaving.good, client, on_progress=lambda r: seen.append(r.done))
    assert result.complete
    assert (result.done, result.skipped, result.voxels, result.absent) == (COUNT, 0, 10 * COUNT, COUNT // 2)
    assert seen == list(range(1, COUNT + 1))
    assert [attempts(str(tmp_path), index) for index in range(COUNT)] == [1] * COUNT
    again = run(tmp_path, misbehaving.good, client)
    assert (again.done, again.skipped, again.complete, again.absent) == (0, COUNT, True, COUNT // 2)


def test_a_failing_block_is_tried_three_times_and_set_aside(tmp_path: Path, client: Client | None) -> None:
    result = run(tmp_path, misbehaving.fails, client)
    assert (result.done, result.quarantined, result.stopped, result.complete) == (COUNT - 1, 1, None, False)
    (failure,) = result.failed
    assert (failure.index, failure.attempts, failure.stage) == (BAD, 3, "stage")
    assert "the chunk is corrupt" in failure.error
    assert "misbehaving.py" in failure.traceback
    assert "process" in failure.worker
    assert attempts(str(tmp_path), BAD) == 3
    assert done(tmp_path) == OTHERS


def test_a_block_that_fails_twice_is_done(tmp_path: Path, client: Client | None) -> None:
    result = run(tmp_path, misbehaving.fails_twice, client)
    assert result.complete
    assert not Quarantine(Store(tmp_path), "stage").indices()


def test_only_failed_takes_just_those(tmp_path: Path, client: Client | None) -> None:
    run(tmp_path, misbehaving.fails, client)
    with stage_of(tmp_path) as stage:
        Ledger(Store(tmp_path), "stage", COUNT, 2).seal(without=[0])  # another block is missing, too
        result = stage(misbehaving.good, client, only_failed=True)
        assert done(tmp_path) == [1, 2, 3, 4, 5]
        assert (result.done, result.quarantined, result.failed, result.complete) == (1, 0, [], False)
        result = stage(misbehaving.good, client)
        assert result.complete
    assert attempts(str(tmp_path), 1) == 1


def test_the_same_again_takes_failed_blocks_last(tmp_path: Path) -> None:
    run(tmp_path, misbehaving.fails, None)
    with stage_of(tmp_path) as stage:
        Ledger(Store(tmp_path), "stage", COUNT, 2).seal(without=[5])
        order: list[int] = []

        def block(url: str, epoch: int, index: int) -> Done:
            order.append(index)
            return misbehaving.good(url, epoch, index)

        assert stage(block, None).complete
    assert order == [5, BAD]
    assert not Quarantine(Store(tmp_path), "stage").indices()


def test_what_no_other_block_could_do_better_stops_the_run(tmp_path: Path, client: Client | None) -> None:
    result = run(tmp_path, misbehaving.fills_the_disk, client)
    assert result.stopped is not None
    assert "the disk is full" in result.stopped
    assert (result.failed, result.complete) == ([], False)
    assert run(tmp_path, misbehaving.good, client).complete


def test_a_run_that_lost_its_lease_stops(tmp_path: Path, client: Client | None) -> None:
    """Its late commits do not count, even those that reached the store."""
    store = Store(tmp_path)
    with hold(store) as lease:
        work = Work(function=misbehaving.stops_others, arguments=(store.url, lease.epoch))
        result = run_stage(work, Ledger(store, "stage", COUNT, lease.epoch), lease=lease, client=client)
        assert "taken over" in str(result.stopped)
        assert not result.failed
        with pytest.raises(LostLeaseError, match="taken over"):
            Run("segment", store, lease, stages=[result]).finish(total=1)
    assert read_status(store) is None, "it no longer speaks for this output"
    assert BAD not in done(tmp_path)
    Store(tmp_path).write(f".unet-flows/ledger/stage/blocks/00000001/000000/{BAD}-{0:016x}", b"")
    Store(tmp_path).write(".unet-flows/lease/00000002", b'{"released": true}')
    with hold(Store(tmp_path)) as lease:
        ledger = Ledger(Store(tmp_path), "stage", COUNT, lease.epoch)
        ledger.seal()
        Store(tmp_path).write(f".unet-flows/ledger/stage/blocks/00000001/000000/5-{0:016x}", b"")
        assert not ledger.read().done[5]


def test_a_cause_that_is_not_in_the_blocks_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MOST_FAILURES", 4)
    result = run(tmp_path, misbehaving.everything_fails, None)
    assert result.stopped == "4 blocks failed and 0 were done"
    assert [failure.index for failure in result.failed] == [0, 1, 2, 3]


def test_too_little_memory_is_tried_in_a_fresh_process(
    tmp_path: Path, client: Client | None, imports: None
) -> None:
    result = run(tmp_path, misbehaving.starves_once, client)
    assert result.complete
    assert attempts(str(tmp_path), BAD) == 3, "the failing one, the fresh one, and its own mark"


def test_too_little_memory_in_a_fresh_process_is_set_aside_with_advice(
    tmp_path: Path, client: Client | None, imports: None
) -> None:
    result = run(tmp_path, misbehaving.starves, client)
    (failure,) = result.failed
    assert "7 TB wanted" in failure.error
    assert "smaller --tile" in failure.error
    assert attempts(str(tmp_path), BAD) == 2
    assert done(tmp_path) == OTHERS


def test_a_worker_that_dies_of_a_block_is_replaced(tmp_path: Path, two_workers: Client) -> None:
    assert run(tmp_path, misbehaving.dies_once, two_workers).complete


def test_a_block_that_kills_its_worker_three_times_is_set_aside(tmp_path: Path, two_workers: Client) -> None:
    result = run(tmp_path, misbehaving.dies, two_workers)
    assert result.stopped is None
    (failure,) = result.failed
    assert failure.index == BAD
    assert "killed by signal 9" in failure.error
    assert attempts(str(tmp_path), BAD) == 3
    assert done(tmp_path) == OTHERS, "bystanders are not blamed"


def test_a_block_that_hangs_once_is_done(tmp_path: Path, workers_of_its_own: Callable[[int], Client]) -> None:
    """Also where it holds up the only worker."""
    assert run(tmp_path, misbehaving.hangs_once, workers_of_its_own(1), timeout=1.0).complete


def test_a_block_that_hangs_is_set_aside(tmp_path: Path, two_workers: Client) -> None:
    result = run(tmp_path, misbehaving.hangs, two_workers, timeout=1.0)
    (failure,) = result.failed
    assert "did not end within 1 s" in failure.error
    assert attempts(str(tmp_path), BAD) == 3
    assert done(tmp_path) == OTHERS


def test_a_worker_with_other_bits_gets_no_more_blocks(
    tmp_path: Path, workers_of_its_own: Callable[[int], Client]
) -> None:
    result = run(tmp_path, misbehaving.differs, workers_of_its_own(2))
    assert result.complete
    assert not result.failed


@pytest.mark.parametrize("count", [0, 2])
def test_without_a_worker_that_fits_the_run_stops(
    count: int, tmp_path: Path, workers_of_its_own: Callable[[int], Client]
) -> None:
    result = run(tmp_path, misbehaving.always_differs, workers_of_its_own(count) if count else None)
    assert result.stopped is not None
    assert not result.failed
    assert done(tmp_path) == []


def test_a_long_ledger_is_sealed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SEAL_EVERY", 2)
    loose: list[int] = []

    def count(_: StageResult) -> None:
        loose.append(sum("/blocks/0" in key for key in Store(tmp_path).keys(".unet-flows/ledger")))

    assert run(tmp_path, misbehaving.good, None, on_progress=count).complete
    assert max(loose) == 2
    assert done(tmp_path) == list(range(COUNT))
