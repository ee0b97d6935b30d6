"""Connected components of a Zarr array by what others wrote, into another: run by `components.py --peers`.

    PYTHON component_peers.py patchworks|dask-image MASK.zarr TO.zarr [--workers 2]

For an interpreter that has patchworks, dask-image, zarr and cc3d, and need not have this project: patchworks
is under the GPL, and asks for versions of its own. Prints seconds and the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

TILE = (128, 128, 128)


def of_tile(tile: np.ndarray) -> np.ndarray:
    import cc3d

    return cc3d.connected_components(np.ascontiguousarray(tile), connectivity=6, out_dtype=np.uint32)


def patchworks(mask: str, to: str, workers: int) -> None:
    import dask.array as da
    from patchworks import tile_process

    image = da.from_zarr(mask)
    tile_process(image, of_tile, tile_shape=TILE, overlap=2, max_workers=workers, progress=False, write_to=to)


def dask_image(mask: str, to: str, workers: int) -> None:
    import dask
    import dask.array as da
    from dask_image.ndmeasure import label

    labels, _ = label(da.from_zarr(mask, chunks=TILE))
    with dask.config.set(scheduler="threads", num_workers=workers):
        da.to_zarr(labels, to, component="labels")


PEERS: dict[str, Callable[[str, str, int], None]] = {"patchworks": patchworks, "dask-image": dask_image}


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("mask")
    parser.add_argument("to")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    small = f"{options.to}-warm.zarr"  # what is imported or compiled at the first call is not counted
    zarr.create_array(small, data=np.ones((8, 8, 8), np.uint8), chunks=(8, 8, 8))
    PEERS[options.peer](small, f"{options.to}-warm-labels.zarr", options.workers)
    began = time.perf_counter()
    PEERS[options.peer](options.mask, options.to, options.workers)
    seconds = time.perf_counter() - began
    # getrusage would count what the parent had when it made this process.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"seconds": round(seconds, 2), "peak_bytes": peak * 1024}))


if __name__ == "__main__":
    main()
