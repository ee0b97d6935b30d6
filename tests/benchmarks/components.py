"""Connected components block by block, against cc3d and skimage on the whole array, in one run.

    python tests/benchmarks/components.py [--size 512 | --shape 1024,512,512] [--peers PYTHON]

`memory`: label, seams, merge and relabel on arrays, on one core. `store`: the same stages from class Zarr to
id Zarr through the ledger, by two processes; objects are measured on the way, writing their table is not
counted. All results must be equal, ids included. Ratios "by cores" count the seconds that cores worked, which
other work on the machine changes less. `--peers`: patchworks and dask-image, from Zarr to Zarr in an
interpreter of their own (`component_peers.py`), with two threads; dask-image takes minutes at 512.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from side_by_side import peak_bytes

from unet_core.geometry import Box, Shape
from unet_core.instances import (
    InstancePlan,
    InstanceRequest,
    begin_instances,
    create_final,
    only_level,
    plan_instances,
)
from unet_core.ledger import hold
from unet_core.pyramid import PyramidPlan
from unet_core.table import TablePlan
from unet_core.tiling import chunk_and_shard
from unet_core.volumes import Store, Volume, open_for_reading, open_for_writing, read_box, write_box


def mask_of(shape: Shape, *, sigma: float = 4.0, share: float = 0.25) -> np.ndarray:
    """Blobs of some hundred to some ten thousand voxels, a quarter of the volume, many of them touching."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    noise = np.empty(shape, np.float32)
    for start in range(0, shape[0], 128):  # filtered in slabs: the whole would need 10 times the memory
        stop = min(start + 128, shape[0])
        noise[start:stop] = gaussian_filter(
            rng.standard_normal((stop - start, *shape[1:]), np.float32), sigma
        )
    return (noise > np.quantile(noise[::7, ::7, ::7], 1 - share)).astype(np.uint8)


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock and of this process's cores, and the result."""
    began, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - began, time.process_time() - cpu, result


def begin(url: str, shape: Shape, mask: np.ndarray, block: Shape) -> tuple[InstancePlan, Shape, Shape]:
    store = Store(url)
    chunk, shard = chunk_and_shard((64, 64, 64), shape)
    begin_instances(
        store,
        axes="zyx",
        levels=only_level(shape),
        chunk=chunk,
        shard=shard,
        voxel_size=(1.0,) * 3,
        origin=(0.0,) * 3,
        unit=None,
    )
    array = open_for_writing(store, "classes/0")
    for start in range(0, shape[0], shard[0]):
        box = Box((start, 0, 0), (min(start + shard[0], shape[0]), *shape[1:]))
        write_box(array, box, mask[box.slices])
    plan = plan_instances(
        InstanceRequest(),
        classes=("background", "object"),
        target="semantic",
        volume=shape,
        roi=Box.of_shape(shape),
        shard=shard,
        block=block,
    )
    table = TablePlan(
        volume=shape,
        extent=plan.roi,
        planar=False,
        voxel_size=(1.0,) * 3,
        origin=(0.0,) * 3,
        unit=None,
        chunk=chunk,
        shard=shard,
        channels=(0,),
        quanta=(1.0,),
        classes=("background", "object"),
    )
    return replace(plan, table=table), chunk, shard


def warm_up() -> None:
    """Compile: that costs each process some seconds, once."""
    from unet_core.instances.in_memory import label_components

    label_components(np.ones((8, 8, 8), np.uint8), block=(4, 4, 4))


_worker: Any = None


def set_up(url: str, plan: dict[str, Any], epoch: int) -> None:
    """A worker process that is ready."""
    global _worker
    from unet_core.instances.blocks import InstanceWorker

    warm_up()
    image = Volume.open(f"{url}/classes")
    found = InstancePlan.from_dict(plan)
    one = np.ones((1, 1, 1), np.uint32)
    if found.table is not None:
        classes = one.astype(np.uint8)
        found.table.measure(one, Box.of_shape(one.shape), image=classes[None], classes=classes)
    _worker = InstanceWorker(url, found, image=image, fingerprint="benchmark", epoch=epoch)


def do(stage: str, index: int) -> tuple[int, float]:
    began = time.process_time()
    _worker.do(stage, index)
    return peak_bytes(), time.process_time() - began


def through_store(
    url: str, mask: np.ndarray, block: Shape, workers: int
) -> tuple[float, int, dict[str, float]]:
    """Seconds of all stages, the largest worker's bytes, seconds of cores by stage."""
    plan, chunk, shard = begin(url, mask.shape, mask, block)
    store = Store(url)
    peak, wall, cores = 0, 0.0, {}
    spawn = multiprocessing.get_context("spawn")
    with (
        hold(store) as lease,
        ProcessPoolExecutor(workers, spawn, set_up, (url, plan.to_dict(), lease.epoch)) as pool,
    ):
        list(pool.map(os.getpgid, [0] * (4 * workers)))  # until all are there
        time.sleep(5)
        for stage in plan.stages:
            began = time.perf_counter()
            if stage.name == "relabel":
                pyramid = PyramidPlan(
                    levels=tuple(only_level(mask.shape)), shard=shard, method="mode", extent=plan.roi
                )
                create_final(
                    store, template=f"{url}/local", pyramid=pyramid, chunk=chunk, shard=shard, source=None
                )
            done = list(pool.map(do, [stage.name] * stage.count, range(stage.count)))
            if stage.name != "table":
                wall += time.perf_counter() - began
            peak = max(peak, *(bytes_ for bytes_, _ in done))
            cores[stage.name] = round(sum(seconds for _, seconds in done), 3)
    return wall, peak, cores


def equal_to(url: str, expected: np.ndarray) -> bool:
    array = open_for_reading(Store(url), "0")
    return all(
        np.array_equal(read_box(array, box)[0], expected[box.slices])
        for start in range(0, expected.shape[0], 64)
        for box in [Box((start, 0, 0), (min(start + 64, expected.shape[0]), *expected.shape[1:]))]
    )


def by_peer(python: str, peer: str, mask: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """From Zarr to Zarr by another interpreter; the same objects, whatever their ids."""
    script = Path(__file__).with_name("component_peers.py")
    with tempfile.TemporaryDirectory() as folder:
        zarr.create_array(f"{folder}/mask.zarr", data=mask, chunks=(128, 128, 128))
        command = [python, str(script), peer, f"{folder}/mask.zarr", f"{folder}/labels.zarr"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        labels = zarr.open_array(f"{folder}/labels.zarr/labels", mode="r")
        theirs = np.zeros(int(expected.max()) + 1, np.int64)
        for start in range(0, len(mask), 64):
            ours, part = expected[start : start + 64], labels[start : start + 64]
            theirs[ours] = part
        for start in range(0, len(mask), 64):
            if not np.array_equal(theirs[expected[start : start + 64]], labels[start : start + 64]):
                raise SystemExit(f"{peer} found other objects")
    if len(np.unique(theirs)) != len(theirs):
        raise SystemExit(f"{peer} joined objects")
    return dict(told)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--shape", help="z,y,x instead of a cube")
    parser.add_argument("--block", default="256,256,256", help="of the store: whole shards of 256")
    parser.add_argument("--memory-block", default="128,128,128")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has them")
    parser.add_argument("--peer", action="append", choices=("patchworks", "dask-image"))
    options = parser.parse_args()
    shape = tuple(map(int, options.shape.split(","))) if options.shape else (options.size,) * 3
    block = tuple(map(int, options.block.split(",")))
    memory_block = tuple(map(int, options.memory_block.split(",")))
    import cc3d
    from skimage.measure import label

    from unet_core.instances.in_memory import label_components

    mask = mask_of(shape)
    warm_up()
    cc3d_wall, cc3d_cpu, expected = timed(
        lambda: cc3d.connected_components(mask, connectivity=6, out_dtype=np.uint32)
    )
    memory_wall, memory_cpu, found = timed(lambda: label_components(mask, block=memory_block))
    same = np.array_equal(found, expected)
    del found
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder) / "labels.zarr")
        store_wall, peak, by_stage = through_store(url, mask, block, options.workers)
        store_cores = sum(seconds for name, seconds in by_stage.items() if name != "table")
        same = same and equal_to(url, expected)
    skimage_wall, skimage_cpu, other = timed(lambda: label(mask, connectivity=1))
    same = same and np.array_equal(other, expected)
    if not same:
        raise SystemExit("the results differ")
    voxels = prod(shape) / 1e6
    document = {
        "shape": list(shape),
        "block": list(block),
        "objects": int(expected.max()),
        "mvoxels_per_second": {
            "cc3d": round(voxels / cc3d_wall, 1),
            "skimage": round(voxels / skimage_wall, 1),
            "memory": round(voxels / memory_wall, 1),
            "store": round(voxels / store_wall, 1),
        },
        "memory_over_cc3d_per_core": round(cc3d_cpu / memory_cpu, 3),
        "memory_over_skimage_per_core": round(skimage_cpu / memory_cpu, 2),
        "store_over_skimage": round(skimage_wall / store_wall, 2),
        "store_over_cc3d": round(cc3d_wall / store_wall, 3),
        "store_over_skimage_by_cores": round(skimage_cpu * options.workers / store_cores, 2),
        "workers": options.workers,
        "core_seconds_by_stage": by_stage,
        "core_seconds_cc3d_skimage_memory": [round(s, 3) for s in (cc3d_cpu, skimage_cpu, memory_cpu)],
        "peak_bytes_of_a_worker": peak,
    }
    for peer in (options.peer or ["patchworks", "dask-image"]) if options.peers else []:
        told = by_peer(options.peers, peer, mask, expected)
        document[peer] = told | {"store_over_it": round(told["seconds"] / store_wall, 2)}
    print(json.dumps(document, indent=1))
    for name, value in document.items():
        print(f"{name.replace('_', ' '):<32} {value}")


if __name__ == "__main__":
    main()
