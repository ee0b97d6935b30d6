"""A network over a whole Zarr volume by what others wrote: run by `sliding_window.py` and `map_overlap.py`.

    PYTHON network_peers.py monai VOLUME TO --widths 16,32,64,128,256 [--overlap 0.5] [--dtype bfloat16]
    PYTHON network_peers.py dask|patchworks VOLUME TO --model MODEL [--overlap 16]

For an interpreter that has them, with this project on its path. Prints seconds and the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from side_by_side import peak_bytes

TILE = (128, 128, 128)


def monai(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """As its users write it. With a 16-bit `--dtype` in `channels_last_3d`, too."""
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import BasicUNet
    from torch.utils.flop_counter import FlopCounterMode

    widths = [int(width) for width in options.widths.split(",")]
    torch.manual_seed(0)
    network = BasicUNet(3, 1, 2, features=(*widths, widths[0])).eval()
    with FlopCounterMode(display=False) as counted, torch.device("meta"):
        BasicUNet(3, 1, 2, features=(*widths, widths[0]))(torch.empty(1, 1, *TILE))
    dtype = getattr(torch, options.dtype)
    layout = torch.contiguous_format if dtype == torch.float32 else torch.channels_last_3d
    network = network.to(dtype=dtype).to(memory_format=layout)
    windows = 0

    def predictor(x: torch.Tensor) -> torch.Tensor:
        nonlocal windows
        windows += 1
        result: torch.Tensor = network(x.contiguous(memory_format=layout))
        return result

    def run() -> dict[str, Any]:
        nonlocal windows
        windows = 0
        image = zarr.open_array(options.volume, mode="r")[:]
        x = torch.from_numpy(np.asarray(image, np.float32) / 255)[None, None].to(dtype)
        mode = "constant" if options.overlap < 0.5 else "gaussian"
        logits = sliding_window_inference(x, TILE, 1, predictor, overlap=options.overlap, mode=mode)
        classes = logits[0].argmax(0).to(torch.uint8).numpy()
        zarr.create_array(options.to, data=classes, chunks=TILE)
        gflop = counted.get_total_flops() / 1e9
        return {"windows": windows, "gflop": windows * gflop, "network_gflop": gflop}

    network(torch.rand(1, 1, *TILE).to(dtype=dtype).contiguous(memory_format=layout))  # kernels are made once
    return run


def classes_of(model: str) -> tuple[Callable[[NDArray[Any]], NDArray[np.uint8]], Any]:
    """(z, y, x) intensities of a legal shape to classes of the valid part, in float32; and the spec."""
    from unet_core.checkpoint import load_model

    stored = load_model(model)
    network = stored.network().eval()

    @torch.inference_mode()
    def classes(block: NDArray[Any]) -> NDArray[np.uint8]:
        x = torch.from_numpy(stored.card.scale.apply(block[None]))[None]
        result: NDArray[np.uint8] = network(x)[0].argmax(0).to(torch.uint8).numpy()
        return result

    classes(np.zeros(stored.card.spec.read_shape((8,) * 3), np.uint8))
    return classes, stored.card.spec


def dask(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """The context on both sides, cut so that poolings lie as in one pass from the volume's origin."""
    import dask.array as da

    classes, spec = classes_of(options.model)
    lower, upper = spec.context
    depth = [max(a, b) for a, b in zip(lower, upper)]

    def of_block(block: NDArray[Any]) -> NDArray[np.uint8]:
        inner = [slice(d - a, n - d + b) for d, a, b, n in zip(depth, lower, upper, block.shape)]
        valid = [slice(n - 2 * d) for d, n in zip(depth, block.shape)]
        found = classes(block[tuple(inner)])[tuple(valid)]
        return np.pad(found, [(d, d) for d in depth])  # which map_overlap trims

    def run() -> dict[str, Any]:
        labels = da.from_zarr(options.volume, chunks=TILE).map_overlap(
            of_block,
            depth=dict(enumerate(depth)),
            boundary="reflect",
            dtype=np.uint8,
            meta=np.empty((0,) * 3, np.uint8),
        )
        da.to_zarr(labels.rechunk(TILE), options.to)
        return {}

    return run


def patchworks(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """A callable gives labels of its tile's own shape, and mirrors: it does not know where it lies."""
    import cc3d
    import dask.array as da
    from patchworks import tile_process

    classes, spec = classes_of(options.model)

    def of_tile(tile: NDArray[Any]) -> NDArray[np.int32]:
        read = spec.read_shape(tile.shape)
        lower = spec.context[0]
        padding = [(a, r - n - a) for a, r, n in zip(lower, read, tile.shape)]
        found = classes(np.pad(tile, padding, mode="reflect"))[tuple(slice(n) for n in tile.shape)]
        labels = cc3d.connected_components(np.ascontiguousarray(found), connectivity=6, out_dtype=np.uint32)
        return np.asarray(labels, np.int32)

    def run() -> dict[str, Any]:
        tile_process(
            da.from_zarr(options.volume),
            of_tile,
            tile_shape=TILE,
            overlap=int(options.overlap),
            progress=False,
            write_to=options.to,
        )
        return {}

    return run


PEERS = {"monai": monai, "dask": dask, "patchworks": patchworks}


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("volume")
    parser.add_argument("to")
    parser.add_argument("--widths")
    parser.add_argument("--model")
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    import dask
    from dask.callbacks import Callback

    tasks = 0

    def count(*_: object) -> None:
        nonlocal tasks
        tasks += 1

    with torch.inference_mode():
        run = PEERS[options.peer](options)
        with Callback(posttask=count), dask.config.set(scheduler="threads", num_workers=options.workers):
            began = time.perf_counter()
            told = run()
            told["seconds"] = time.perf_counter() - began
    print(json.dumps({**told, "dask_tasks": tasks, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
