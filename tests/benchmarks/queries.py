"""Queries on a table of 10 million objects, and the making of that table from partial sums.

    python tests/benchmarks/queries.py [--side 215] [--folder FOLDER]

The volume is `side`³ cells of 10³ voxels, each with a box-shaped object of 4 to 9 voxels an edge. Its labels
are written where the queries look. Times are the best of several, warm; raw reads of the same bytes stand
beside them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import numpy as np

from unet_core.geometry import Box, Grid
from unet_core.ledger import RunRecord, begin, set_status
from unet_core.metadata import PyramidLevel
from unet_core.query import Labels
from unet_core.table import Sums, TablePlan, write_sums, write_tables
from unet_core.table.layout import FRAGMENT
from unet_core.volumes import Store, create_multiscale, open_for_writing, write_box

CELL, CHUNK, SHARD = 10, 64, 256
SLAB = 5  # layers of cells in one block of sums


def edges(ids: np.ndarray) -> np.ndarray:
    """The edges z, y, x of objects: 4 to 9 voxels, from their ids."""
    mixed = ids * np.uint64(0x9E3779B97F4A7C15)
    return np.stack([(mixed >> np.uint64(s)) % np.uint64(6) + np.uint64(4) for s in (8, 24, 40)], -1).astype(
        int
    )


def labels_of(box: Box, side: int) -> np.ndarray:
    """The labels of a box, by arithmetic."""
    grids = np.meshgrid(*(np.arange(a, b) for a, b in zip(box.lower, box.upper)), indexing="ij", sparse=True)
    ids = sum((g // CELL) * side**p for g, p in zip(grids, (2, 1, 0))) + 1
    size = edges(ids.astype(np.uint64))
    inside = np.ones(box.shape, bool)
    for axis, g in enumerate(grids):
        inside &= g % CELL < size[..., axis]
    return np.where(inside, ids, 0).astype(np.uint32)


def sums_of(layers: range, side: int, plan: TablePlan) -> Sums:
    """Partial sums of some layers of cells, by arithmetic."""
    first = layers.start * side**2
    ids = np.arange(first + 1, layers.stop * side**2 + 1, dtype=np.uint64)
    size = edges(ids)
    corner = np.stack(np.unravel_index(ids.astype(np.int64) - 1, (side,) * 3), -1) * CELL
    rows = np.zeros(ids.size, plan.layout)
    n = size.prod(1)
    rows["id"], rows["voxels"] = ids, n
    rows["lower"], rows["upper"] = corner, corner + size
    one = corner + (size - 1) / 2
    square = one**2 + (size**2 - 1) / 12
    z, y, x = one.T
    for place, value in enumerate((*one.T, *square.T, z * y, z * x, y * x)):
        rows["moments"][:, place, 1] = np.rint(n * value).astype(np.uint64)
    grey = (ids % np.uint64(200)).astype(np.int64)
    rows["classes"][:, 1] = n
    rows["intensities"][:, 0, 0, 1], rows["intensities"][:, 0, 1, 1] = n * grey, n * (grey**2 + 9)
    rows["extremes"][:, 0, 0], rows["extremes"][:, 0, 1] = grey - 5, grey + 5
    # An object lies in at most two chunks along an axis.
    counts = Grid(plan.extent, plan.chunk).counts
    pieces = []
    for corner_of in np.ndindex(2, 2, 2):
        chunk = [
            (corner[:, a] if not s else corner[:, a] + size[:, a] - 1) // CHUNK
            for a, s in enumerate(corner_of)
        ]
        low = [np.maximum(corner[:, a], c * CHUNK) for a, c in enumerate(chunk)]
        high = [np.minimum(corner[:, a] + size[:, a], (c + 1) * CHUNK) for a, c in enumerate(chunk)]
        piece = np.zeros(ids.size, FRAGMENT)
        piece["id"], piece["chunk"] = ids, np.ravel_multi_index(chunk, counts)
        piece["voxels"] = np.prod([h - low for h, low in zip(high, low)], axis=0)
        new = np.ones(ids.size, bool)
        for a, second in enumerate(corner_of):
            if second:
                new &= chunk[a] != corner[:, a] // CHUNK
        pieces.append(piece[new])
    fragments = np.concatenate(pieces)
    return Sums(rows, fragments[np.lexsort((fragments["chunk"], fragments["id"]))])


def make(store: Store, side: int) -> dict[str, float]:
    """The run, some of its labels, and its tables."""
    shape = (side * CELL,) * 3
    size = {"voxel_size": (2.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "unit": "micrometer"}
    plan = TablePlan(
        volume=shape, extent=Box.of_shape(shape), planar=False, chunk=(CHUNK,) * 3, shard=(SHARD,) * 3,
        channels=(0,), quanta=(1.0,), classes=("background", "cell"), **size,
    )  # fmt: skip
    record = RunRecord(
        "segment", {"benchmark": side}, {"volume": "absent.zarr", "classes": ["background", "cell"]}
    )
    begin(store, record)
    create_multiscale(
        store, kind="labels", axes="zyx", leading=(), levels=[PyramidLevel(0, shape, (1, 1, 1))],
        dtype=np.dtype(np.uint32), chunk=plan.chunk, shard=plan.shard, name="queries", **size,
    )  # fmt: skip
    middle = tuple(n // 2 // SHARD * SHARD for n in shape)
    box = Box(middle, tuple(a + SHARD for a in middle)).intersect(plan.extent)
    write_box(open_for_writing(store, "0"), box, labels_of(box, side))
    starts = range(0, side, SLAB)
    for index, start in enumerate(starts):
        write_sums(store, index, sums_of(range(start, min(start + SLAB, side)), side, plan))
    began, stop = time.perf_counter(), Event()
    peak = [own_memory()]

    def watch() -> None:
        while not stop.wait(0.05):
            peak.append(max(peak.pop(), own_memory()))

    watcher, before = Thread(target=watch), peak[0]
    watcher.start()
    write_tables(store, plan, blocks=len(starts), fingerprint=record.fingerprint)
    stop.set()
    watcher.join()
    seconds = time.perf_counter() - began
    set_status(store, "complete")
    return {
        "table_seconds": round(seconds, 1),
        "table_rows_per_second": round(side**3 / seconds),
        "table_memory_mb": (peak[0] - before) // 2**20,
    }


def own_memory() -> int:
    """Bytes that this process holds, mapped files not counted: the system takes those back when it must."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def best(work: Callable[[], object], times: int = 7) -> tuple[float, float]:
    """Milliseconds that the fastest of several takes, by the clock and of all cores, after one to warm up."""
    work()
    seconds = []
    for _ in range(times):
        began, of_cores = time.perf_counter(), time.process_time()
        work()
        seconds.append((time.perf_counter() - began, time.process_time() - of_cores))
    clock, cores = zip(*seconds)
    return round(1e3 * min(clock), 1), round(1e3 * min(cores), 1)


def ask(url: str, side: int) -> dict[str, float]:
    """Each query's milliseconds, warm, by the clock and of all cores; the first two are not warm."""
    began = time.perf_counter()
    labels = Labels.open(url)
    opened = time.perf_counter()
    middle = side * CELL // 2 // SHARD * SHARD
    identity = labels.at(((middle + 100) // CELL * CELL,) * 3)  # the first voxel of a cell is an object's
    labels.object(identity)
    first = time.perf_counter()
    some = iter(np.random.default_rng(0).integers(1, side**3, 1000).tolist())
    box = Box((middle,) * 3, (middle + 200,) * 3)
    chunks = [part for part, _ in labels.parts(identity, labels.box_of(identity))]
    cold = {"open_ms": opened - began, "first_object_ms": first - opened}
    result = {name: round(1e3 * seconds, 1) for name, seconds in cold.items()}
    for name, work in (
        ("object", lambda: labels.object(next(some))),
        ("box", lambda: labels.box(box)),
        ("filter", lambda: labels.objects("voxels > 700 and touches_border == false", limit=20)),
        ("filter_sorted", lambda: labels.objects("voxels > 700 and class == 1", sort="-mean_0", limit=20)),
        ("mask", lambda: labels.mask(identity)),
        ("chunk_reads", lambda: [labels.volume.read(chunk) for chunk in chunks]),
        ("neighbours", lambda: labels.neighbours(identity)),
    ):
        result[f"{name}_ms"], result[f"{name}_cores_ms"] = best(work)
    result["mask_beyond_reads_ms"] = round(result["mask_ms"] - result["chunk_reads_ms"], 1)
    return result | {"objects_in_box": labels.box(box).num_rows}


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--side", type=int, default=215)
    parser.add_argument("--folder", help="where the table is made, or was: it is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = Store(f"{options.folder or temporary}/queries-{options.side}.zarr")
        document: dict[str, float] = {"objects": options.side**3}
        if not store.exists():
            document |= make(store, options.side)
        document |= ask(store.url, options.side)
    print(json.dumps(document, indent=1))
    for name, value in document.items():
        print(f"{name.replace('_', ' '):<26} {value:>14,}")


if __name__ == "__main__":
    main()
