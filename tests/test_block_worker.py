"""A worker's stream of blocks: the bytes of block by block, each chunk decoded once, absent ones counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pipeline import save_random_model
from strategies import random_voxels, write_array

from unet_core import budget
from unet_core.architecture import UNetSpec
from unet_core.errors import DataError
from unet_core.ledger import Done, Lease, Ledger, hold
from unet_core.segmentation import (
    BlockWorker,
    SegmentPlan,
    SegmentRequest,
    fitting,
    plan_segmentation,
    resolve,
    start,
)
from unet_core.volumes import Store, Volume

SHAPE, CHUNK = (80, 30, 40), (8, 16, 10)
SPEC = UNetSpec.build(ndim=3, depth=1, base=2, classes=3)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume and a model; blocks are 16 voxels a side, of eight tiles."""
    monkeypatch.setattr(fitting, "chunk_and_shard", lambda tile, volume: (tile, (16, 16, 16)))
    save_random_model(tmp_path / "model", SPEC)
    write_array(tmp_path / "volume.zarr", random_voxels((1, *SHAPE), "uint8", 0), chunks=(1, *CHUNK))
    return tmp_path


class Run:
    """One output, begun and held."""

    def __init__(self, root: Path, name: str, lease: Lease, tile: tuple[int, int, int] = (8, 8, 8)) -> None:
        self.to = str(root / name)
        request = SegmentRequest(
            volume=f"{root}/volume.zarr",
            model=f"{root}/model",
            to=self.to,
            tile=tile,
            probabilities=True,
            dtype="float32",
        )
        planned = plan_segmentation(request)
        self.plan: SegmentPlan = resolve(planned.plan, "volume")
        start(planned, self.plan)
        self.lease, self.count = lease, len(self.plan.tiling.blocks)

    def worker(self) -> BlockWorker:
        return BlockWorker(self.to, self.plan, epoch=self.lease.epoch)

    def results(self) -> list[NDArray[np.uint8]]:
        return [
            Volume.open(f"{self.to}/{name}").read(Volume.open(f"{self.to}/{name}").box)
            for name in ("0", "probabilities/0")
        ]

    def done(self) -> NDArray[np.bool_]:
        return Ledger(Store(self.to), "predict", self.count, self.lease.epoch).read().done


@pytest.fixture
def run(root: Path) -> Iterator[Run]:
    with hold(Store(root / "out.zarr")) as lease:
        yield Run(root, "out.zarr", lease)


def test_a_stream_writes_what_blocks_one_by_one_write(run: Run, root: Path) -> None:
    stream = list(run.worker().stream(range(run.count)))
    assert [index for index, _ in stream] == list(range(run.count))
    assert all(isinstance(done, Done) for _, done in stream)
    assert run.done().all()
    with hold(Store(root / "other.zarr")) as lease:
        other = Run(root, "other.zarr", lease)
        workers = [other.worker(), other.worker()]
        for turn, index in enumerate(np.random.default_rng(0).permutation(other.count)):
            workers[turn % 2].predict(int(index))
        for found, expected in zip(run.results(), other.results(), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_each_chunk_is_decoded_once_where_a_slab_is_kept(run: Run) -> None:
    assert budget.kept_chunks(run.plan.tiling, 1, CHUNK) < np.prod(SHAPE), "a slab, not the volume"
    outcomes = dict(run.worker().stream(range(run.count)))
    decoded = sum(done.decoded for done in outcomes.values() if isinstance(done, Done))
    assert decoded == np.prod(SHAPE)


def test_without_room_for_chunks_the_result_is_the_same_and_more_is_decoded(
    run: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(run.worker().stream(range(run.count)))
    monkeypatch.setattr("unet_core.budget.worker.INPUT_KEPT", 0)
    with hold(Store(root / "other.zarr")) as lease:
        other = Run(root, "other.zarr", lease)
        outcomes = dict(other.worker().stream(range(other.count)))
        decoded = sum(done.decoded for done in outcomes.values() if isinstance(done, Done))
        assert decoded > 2 * np.prod(SHAPE)
        for found, expected in zip(run.results(), other.results(), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_absent_chunks_are_counted_once_though_kept_for_other_blocks(run: Run, root: Path) -> None:
    gone = [(0, 0, 0), (1, 1, 1), (2, 0, 3), (9, 0, 2), (3, 1, 0)]
    for index in gone:
        (root / "volume.zarr" / "c" / "/".join(map(str, (0, *index)))).unlink()
    outcomes = dict(run.worker().stream(range(run.count)))
    assert sum(done.absent for done in outcomes.values() if isinstance(done, Done)) == len(gone)


def test_a_block_that_fails_in_a_stream_is_told_and_the_others_are_done(run: Run, root: Path) -> None:
    (root / "volume.zarr" / "c" / "0/0/0/0").write_bytes(b"damaged")
    outcomes = dict(run.worker().stream(range(run.count)))
    failed = [index for index, outcome in outcomes.items() if isinstance(outcome, DataError)]
    assert 0 in failed
    assert failed != list(range(run.count))
    np.testing.assert_array_equal(run.done(), [index not in failed for index in range(run.count)])


def test_chunks_thicker_than_blocks_are_decoded_once(tmp_path: Path) -> None:
    """A 2D network reads a plane at a time of chunks that hold many planes."""
    shape, chunk = (24, 40, 40), (12, 20, 20)
    save_random_model(tmp_path / "model", UNetSpec.build(ndim=2, depth=1, base=2))
    write_array(tmp_path / "volume.zarr", random_voxels((1, *shape), "uint8", 0), chunks=(1, *chunk))
    with hold(Store(tmp_path / "out.zarr")) as lease:
        run = Run(tmp_path, "out.zarr", lease, tile=(1, 40, 40))
        assert run.count == shape[0]
        outcomes = dict(run.worker().stream(range(run.count)))
    assert sum(done.decoded for done in outcomes.values() if isinstance(done, Done)) == np.prod(shape)
