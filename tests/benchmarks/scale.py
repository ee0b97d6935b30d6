"""What a block costs beside its work, and what grows with the number of blocks: to 10^5 really, more by sum.

    python tests/benchmarks/scale.py [--blocks 1000 10000 100000] [--singly 1000]

Blocks of a virtual volume only commit, through `run_stage`, the real ledger and a Dask cluster of two
processes. `singly`: batches of one. What is said of 10^6 and 10^8 blocks follows from counted bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import zarr

from flows import batching
from flows.attempt import Work
from flows.blocks import SEAL_EVERY, run_stage
from flows.cluster import open_client
from flows.config import Local, SegmentConfig
from flows.segment import plan
from flows.summary.plan import plan_document
from unet_core.architecture import UNetSpec
from unet_core.ledger import Done, Ledger, hold, seals
from unet_core.ledger.flags import packed_size
from unet_core.volumes import Store

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline import save_random_model

LARGE = (10**6, 10**8)


def block(url: str, count: int, epoch: int, index: int) -> Done:
    """Constant voxels in, none out: an entry in the ledger."""
    Ledger(Store(url), "predict", count, epoch).commit(index, f"{index:016x}")
    return Done(1)


def measure(folder: Path, count: int, client: Any, most: int) -> dict[str, Any]:
    store, process = Store(folder / f"{count}-{most}"), psutil.Process()
    before, peak = process.memory_info().rss, 0

    def look(_: object) -> None:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)

    with hold(store) as lease, mock.patch.object(batching, "MOST", most):
        work = Work(function=block, arguments=(store.url, count, lease.epoch))
        began = time.perf_counter()
        result = run_stage(
            work, Ledger(store, "predict", count, lease.epoch), lease=lease, client=client, on_progress=look
        )
        seconds = time.perf_counter() - began
    if not result.complete:
        raise SystemExit(f"the stage is not complete: {result}")
    ledger = Path(store.url) / ".unet-flows/ledger"
    return {
        "blocks": count,
        "at_most_in_a_batch": most,
        "seconds": round(seconds, 2),
        "ms_per_block": round(1e3 * seconds / count, 3),
        "mb_grown": round((peak - before) / 1e6, 1),
        "ledger_bytes": sum(path.stat().st_size for path in ledger.rglob("*") if path.is_file()),
    }


def by_sum(count: int) -> dict[str, Any]:
    """Of a run in ascending order without interruption: no measurement."""
    item, head = 12, seals.head_size() + 16
    segments = math.ceil(count / seals.SEGMENT)
    of_segment = math.ceil(seals.SEGMENT / SEAL_EVERY)
    full = head + item * seals.SEGMENT
    return {
        "blocks": count,
        "segments": segments,
        "bytes_in_the_flow_process": packed_size(count),
        "newest_seals_bytes": segments * head + item * count,
        "on_disk_at_most_bytes": 2 * (segments * head + item * count),
        "seals_written_bytes": int(segments * (of_segment * head + item * SEAL_EVERY * of_segment**2 / 2)),
        "one_file_for_all_would_have_written_bytes": int(13 * count * count / SEAL_EVERY),
        "bytes_of_a_full_segment": full,
    }


def plan_of_100_tb(folder: Path) -> dict[str, Any]:
    """What `segment --plan` takes without and with its forward passes. No disk here has the room."""
    zarr.create_array(
        folder / "volume.zarr",
        shape=(46_416,) * 3,
        dtype="u1",
        chunks=(64,) * 3,
        shards=(1024,) * 3,
        dimension_names=list("zyx"),
    )
    save_random_model(folder / "model", UNetSpec.build(ndim=3, depth=3, base=16))
    config = SegmentConfig(
        volume=str(folder / "volume.zarr"), model=str(folder / "model"), to=str(folder / "labels.zarr")
    )
    with mock.patch.object(Store, "check_writable"):
        began = time.perf_counter()
        planned = plan(config)
        planned_after = time.perf_counter() - began
        began = time.perf_counter()
        plan_document(planned, workers=1)
        described_after = time.perf_counter() - began
    return {
        "blocks": len(planned.plan.tiling.blocks),
        "seconds_to_plan": round(planned_after, 3),
        "seconds_to_describe_with_its_speed": round(described_after, 3),
    }


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--blocks", type=int, nargs="+", default=[10**3, 10**4, 10**5])
    parser.add_argument("--singly", type=int, default=10**3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_client(Local(workers=2)) as client:
        measure(Path(folder), 100, client, 2)  # imports, first connections
        measured = [measure(Path(folder), options.singly, client, 1)]
        measured += [measure(Path(folder), count, client, batching.MOST) for count in options.blocks]
        plan_measured = plan_of_100_tb(Path(folder))
    document = {"measured": measured, "plan": plan_measured, "by_sum": [by_sum(count) for count in LARGE]}
    print(json.dumps(document, indent=1))
    for row in (*measured, plan_measured, *document["by_sum"]):
        print("  ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in row.items()))


if __name__ == "__main__":
    main()
