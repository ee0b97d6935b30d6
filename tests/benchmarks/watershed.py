"""The watershed block by block, against skimage's on the whole array; and its merge of many edges.

    python tests/benchmarks/watershed.py [--size 256] [--block 128,128,128] [--edges 100000000]

`objects`: from the probability of touching nuclei to ids: heights, label, seams and merge on arrays, on one
core, against scipy's distance transform, `peak_local_max` (min_distance 5) and `watershed`, on one core, too.
`alone`: from heights to ids, against `watershed` of the same heights from its own markers. `noise`: the
same of heights that are noise, the worst there is. Blocks must equal one block. `merge`: random edges between
half as many nodes, through the spill, in a process of its own, with the memory that it took.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from components import timed

from unet_core.geometry import Box, Grid, Shape
from unet_core.instances.evidence import InMemory
from unet_core.instances.kinds import SEAMS
from unet_core.instances.watershed import Criterion, HeightMap, plan_watershed
from unet_core.instances.watershed.in_memory import label_basins
from unet_core.instances.watershed.merging import Merging
from unet_core.instances.watershed.spill import Batch, EdgeSpill

MIN_DISTANCE = 5


def nuclei(shape: Shape) -> np.ndarray:
    """Probability times 255 of being inside: blobs of some thousand voxels, many of them touching."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.standard_normal(shape, np.float32), 6.0)
    logit = 4 * (noise / noise.std() - 0.3) + 0.5 * gaussian_filter(
        rng.standard_normal(shape, np.float32), 1.0
    )
    return np.rint(255 / (1 + np.exp(-logit))).astype(np.uint8)


def by_blocks(inside: np.ndarray, heights: HeightMap, block: Shape, criterion: Criterion) -> np.ndarray:
    """From probability to ids; heights block by block, each with its halo, as on stores."""
    whole = Box.of_shape(inside.shape)
    found = np.empty(inside.shape, np.uint16)
    for cell in Grid(whole, block):
        box = cell.intersect(whole)
        read = box.grow(heights.reach, heights.reach).intersect(whole)
        p = inside[read.slices]
        found[box.slices] = heights.of(p, p >= 128, box.relative_to(read.lower))
    return label_basins(found, criterion, block=block)


def by_skimage(inside: np.ndarray) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt
    from skimage.feature import peak_local_max
    from skimage.measure import label
    from skimage.segmentation import watershed

    mask = inside >= 128
    distance = distance_transform_edt(mask)
    peaks = peak_local_max(distance, min_distance=MIN_DISTANCE, labels=label(mask), exclude_border=False)
    markers = np.zeros(inside.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-distance, markers, mask=mask)


def alone(heights: np.ndarray, block: Shape, criterion: Criterion) -> dict[str, Any]:
    from skimage.segmentation import watershed

    evidence = InMemory()
    wall, cpu, found = timed(lambda: label_basins(heights, criterion, block=block, evidence=evidence))
    if not np.array_equal(found, label_basins(heights, criterion)):
        raise SystemExit("blocks make a difference")
    skimage_wall, skimage_cpu, _ = timed(lambda: watershed(-heights.astype(np.int32), mask=heights > 0))
    left = sum(int(a["staying"][0]) for (kind, _), a in evidence.kept.items() if kind == SEAMS)
    return {
        "objects": int(found.max()),
        "basins_left_to_merge": left,
        "mvoxels_per_second": round(heights.size / wall / 1e6, 2),
        "over_skimage": round(skimage_wall / wall, 2),
        "over_skimage_by_cores": round(skimage_cpu / cpu, 2),
    }


def merge_of(edges: int, folder: str) -> dict[str, Any]:
    """Random edges through spill and merge; the peak is of this process, what it began with included."""
    nodes, most = max(edges // 2, 2), 2**22
    rng = np.random.default_rng(0)
    peak = rng.integers(1, 2**16, nodes, dtype=np.uint16)
    began = time.perf_counter()
    spill = EdgeSpill(Path(folder), memory=2**30)
    for start in range(0, edges, most):
        n = min(most, edges - start)
        a = rng.integers(0, nodes - 1, n, dtype=np.uint32)
        b = a + rng.integers(1, 100, n, dtype=np.uint32)
        np.minimum(b, np.uint32(nodes - 1), out=b)
        height = np.minimum(peak[a], peak[b]).astype(np.uint64) * rng.integers(0, 256, n, np.uint64) >> 8
        saddle = height << np.uint64(48) | np.arange(start, start + n, dtype=np.uint64)
        spill.append(Batch(saddle, a, b, np.zeros(n, np.uint8)))
    filled = time.perf_counter()
    criterion = Criterion(persistence=0.4, prominence=0.1)
    merging = Merging(peak)
    merging.merge(spill, criterion)
    merging.merge_small(spill, np.ones(nodes, np.uint32), 4)
    roots = merging.roots()
    return {
        "edges": edges,
        "nodes": nodes,
        "components": int(np.count_nonzero(roots == np.arange(nodes, dtype=np.uint32))),
        "seconds_to_spill": round(filled - began, 1),
        "seconds_to_merge": round(time.perf_counter() - filled, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--block", default="128,128,128")
    parser.add_argument("--edges", type=int, default=10**8)
    options = parser.parse_args()
    shape, block = (options.size,) * 3, tuple(map(int, options.block.split(",")))
    plan = plan_watershed(boundary=(), voxel_size=(1.0,) * 3, planar=False)
    inside = nuclei(shape)
    warm = inside[:24, :24, :24]
    by_blocks(warm, plan.heights, (12, 24, 24), Criterion(persistence=0.001))  # compiles
    wall, cpu, found = timed(lambda: by_blocks(inside, plan.heights, block, plan.criterion))
    skimage_wall, skimage_cpu, other = timed(lambda: by_skimage(inside))
    heights = plan.heights.of(inside, inside >= 128)
    noise = np.random.default_rng(0).integers(1000, 2000, (min(options.size, 192),) * 3).astype(np.uint16)
    document: dict[str, Any] = {
        "shape": list(shape),
        "block": list(block),
        "objects": {
            "ours": int(found.max()),
            "skimage": int(other.max()),
            "mvoxels_per_second": round(inside.size / wall / 1e6, 2),
            "over_skimage": round(skimage_wall / wall, 2),
            "over_skimage_by_cores": round(skimage_cpu / cpu, 2),
        },
        "alone": alone(heights, block, plan.criterion),
        "noise": alone(noise, (96, 96, 96), Criterion(persistence=0.05)),
    }
    if options.edges:
        context = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=context) as pool:
            document["merge"] = pool.submit(merge_of, options.edges, folder).result()
    print(json.dumps(document, indent=1))
    for name, value in document.items():
        print(f"{name:<10} {value}")


if __name__ == "__main__":
    main()
