"""Memory does not grow with the number of blocks: a worker's while it computes, the flow's as it drives."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from itertools import count
from pathlib import Path

import numpy as np
import zarr
from pipeline import save_random_model

from flows.attempt import Work
from flows.blocks import run_stage
from flows.environment import thread_environment
from unet_core.architecture import UNetSpec
from unet_core.ledger import Done, Ledger, hold
from unet_core.volumes import Store

# In a process of its own, with a worker's environment: what a test before it left would blur the picture.
_WORKER = """
import sys
import psutil
from unet_core.ledger import hold
from unet_core.segmentation import BlockWorker, SegmentRequest, plan_segmentation, resolve, start
from unet_core.volumes import Store

root = sys.argv[1]
request = SegmentRequest(
    volume=f"{root}/volume.zarr", model=f"{root}/model", to=f"{root}/labels.zarr", tile=(1, 32, 32)
)
planned = plan_segmentation(request)
with hold(Store(request.to)) as lease:
    plan = resolve(planned.plan, "volume")
    start(planned, plan)
    worker = BlockWorker(request.to, plan, epoch=lease.epoch)
    for index in range(500):
        worker.predict(index)
        if index in (49, 499):
            print(psutil.Process().memory_info().rss)
"""


def test_a_worker_is_as_large_after_500_blocks_as_after_50(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (500, 32, 32), dtype="u1")
    zarr.create_array(tmp_path / "volume.zarr", data=image, chunks=(50, 32, 32), dimension_names=list("zyx"))
    save_random_model(tmp_path / "model", UNetSpec.build(ndim=2, depth=1, base=2))
    ran = subprocess.run(
        [sys.executable, "-c", _WORKER, str(tmp_path)],
        env={**os.environ, **thread_environment(1)},
        capture_output=True,
        text=True,
        check=True,
    )
    after_50, after_500 = map(int, ran.stdout.split())
    assert after_500 <= 1.05 * after_50


def test_the_flow_process_holds_nothing_per_block(tmp_path: Path) -> None:
    """Four times as many blocks take as much memory, but for their bits."""

    folders = count()

    def peak(blocks: int) -> int:
        store = Store(tmp_path / str(next(folders)))
        with hold(store) as lease:
            ledger = Ledger(store, "stage", blocks, lease.epoch)

            def block(index: int) -> Done:
                return Done(1)

            ledger.read()
            tracemalloc.start()
            result = run_stage(Work(function=block, importable=False), ledger, lease=lease)
            now = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert result.done == blocks
        return now

    peak(100)  # what is imported and remembered
    # The less of two: what waits for the garbage collector depends on when it last came.
    small, large = (min(peak(blocks), peak(blocks)) for blocks in (2**13, 2**15))
    assert large - small < 40_000, "bytes; a list of so many more integers would be 200 kB"
