"""A network over a volume by dask.array.map_overlap and by patchworks: speed, memory, tasks, exactness.

    python tests/benchmarks/map_overlap.py --peers PYTHON [--size 160] [--base 16] [--depth 3] [--repeat 1]

All in float32, Zarr to Zarr, each run a process of its own with the same number of threads. Ours is the
`predict` stage in a worker's environment; a peer runs `UNet` in eval mode, one chunk of 128 at a time with
all threads (`--at-once 2`: two at a time, with one thread each). The truth is one forward pass over the whole
mirrored volume: for ours by the layers that ours uses, for peers by those of `UNet`, so that what differs
does so because of the tiles. Ours may take a small volume as one tile: it is run once more in tiles of half
the volume's edge, not timed (`differ_tiled`). Exit 1 if ours differs at all, by rounding too: another tile
shape may take another order of summation, and then voxels whose logits are nearly equal change.

dask: the context as `depth`, `boundary="reflect"`. What favours it: its author knows that poolings must lie
as in the whole, and cuts each block so (the lower context is 44, the upper 48: with 48 on both sides every
voxel could change); `--size` is a multiple of the stride. Its "reflect" repeats the face voxel, which the
truth's mirror does not: what differs deeper inside than the context is counted apart, too, and what differs
where the whole's two logits are more than 1e-4 apart, which rounding does not explain.
patchworks: tiles of 128, an overlap of 16, its default, and of the context rounded up to whole strides. The
callable gets no place, so it mirrors at faces and beyond its halo alike. What favours us: patchworks labels
and merges objects as well, which ours does in later stages; the callable must give as many voxels as it gets.
What favours it: an overlap of whole strides, which nobody would choose by chance.
Tasks: those that Dask ran; ours would submit one per block. Neither imports nor the first call of the network
are counted; ours without planning and probe.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from predicting import build
from side_by_side import in_turns, of_process, print_table

from flows.environment import thread_environment
from unet_core.architecture import UNetSpec
from unet_core.checkpoint import load_model
from unet_core.geometry import Box, round_up
from unet_core.prepared import prepare
from unet_core.volumes import Volume

ROUNDING = 1e-4


@torch.inference_mode()
def whole(volume: str, model: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Classes in one pass: by the layers that ours uses, by those of `UNet`, and how clearly the latter."""
    stored, source = load_model(model), Volume.open(volume)
    lower, upper = stored.card.spec.context
    data = source.read(Box.of_shape(source.shape).grow(lower, upper))
    x = torch.from_numpy(stored.card.scale.apply(data))[None]
    network = stored.network().eval()
    found = []
    for layers, layout in ((prepare(network), torch.channels_last_3d), (network, torch.contiguous_format)):
        logits = layers(x.contiguous(memory_format=layout))[0, : stored.card.spec.classes]
        kept = (slice(None), *map(slice, source.shape))  # the rest is surplus: 388 -> 384
        found.append(logits[kept].argmax(0).to(torch.uint8).numpy())
    margin: NDArray[np.float32] = (logits[kept][1] - logits[kept][0]).abs().numpy()
    return found[0], found[1], margin


def differing(
    found: NDArray[Any], truth: NDArray[Any], context: int, margin: NDArray[np.float32]
) -> dict[str, int]:
    other = found != truth
    inner = (slice(context, -context),) * 3
    return {
        "differ": int(other.sum()),
        "differ_inside": int(other[inner].sum()),
        "differ_beyond_rounding": int((other & (margin > ROUNDING)).sum()),
    }


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--peers", metavar="PYTHON", required=True, help="has dask, patchworks and cc3d")
    options = parser.parse_args()
    spec = UNetSpec.build(ndim=3, depth=options.depth, base=options.base)
    stride, context = spec.stride[0], max(*spec.context[0], *spec.context[1])
    if options.size % stride or options.size <= 2 * context:
        parser.error(f"--size must be a multiple of {stride} above {2 * context}")
    own = thread_environment(options.threads)
    theirs = {"OMP_NUM_THREADS": str(max(1, options.threads // options.at_once))}
    overlap = round_up(context, stride)
    peers = {"dask map_overlap": ("dask", context)}
    peers |= {f"patchworks, overlap {n}": ("patchworks", n) for n in (16, overlap)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume, model = build(folder, spec, options.size)
        for_ours, for_peers, margin = whole(volume, model)

        def ours(*tile: object) -> dict[str, Any]:
            shutil.rmtree(folder / "ours.zarr", ignore_errors=True)
            arguments = (volume, model, folder / "ours.zarr", "--dtype", "float32", *tile)
            return of_process(sys.executable, "predicting.py", *arguments, environment=own)

        def ours_differs() -> dict[str, int]:
            found = zarr.open_array(folder / "ours.zarr" / "0", mode="r")[:]
            return differing(found, for_ours, context, margin)

        def peer(kind: str, overlap: int) -> dict[str, Any]:
            shutil.rmtree(folder / "peer.zarr", ignore_errors=True)
            arguments = (kind, volume, folder / "peer.zarr", "--model", model, "--overlap", overlap)
            return of_process(
                options.peers,
                "network_peers.py",
                *arguments,
                "--workers",
                options.at_once,
                environment=theirs,
            )

        rows, wrong = [], 0
        for title, (kind, depth) in peers.items():
            here, there = in_turns(options.repeat, ours, lambda k=kind, d=depth: peer(k, d))
            differ = ours_differs()["differ"]
            wrong += differ
            array = folder / "peer.zarr" / ("labels" if kind == "patchworks" else "")
            labels = zarr.open_array(array, mode="r")[:]
            found = labels > 0 if kind == "patchworks" else labels
            rows.append(
                {
                    "peer": title,
                    "seconds": round(here["seconds"], 2),
                    "peer_seconds": round(there["seconds"], 2),
                    "speedup": round(there["seconds"] / here["seconds"], 2),
                    "gib": round(here["peak_bytes"] / 2**30, 2),
                    "peer_gib": round(there["peak_bytes"] / 2**30, 2),
                    "tasks": here["blocks"],
                    "peer_tasks": there["dask_tasks"],
                    "differ": differ,
                    **{f"peer_{key}": n for key, n in differing(found, for_peers, context, margin).items()},
                    "peer_objects": len(np.unique(labels[labels > 0])) if kind == "patchworks" else "",
                }
            )
        tiled = ours("--tile", round_up(options.size // 2, stride))
        tiled_differs = ours_differs()
        wrong += tiled_differs["differ"]
        objects = int(cc3d.connected_components(for_peers, connectivity=6, out_dtype=np.uint32).max())
    document = {
        "size": options.size,
        "tile": here["tile"],
        "tile_of_half": tiled["tile"],
        **{f"{key}_tiled": n for key, n in tiled_differs.items()},
        "foreground": round(float(for_peers.mean()), 3),
        "objects_of_the_whole": objects,
        "whole_differs_between_layers": int((for_ours != for_peers).sum()),
        "rows": rows,
    }
    print(json.dumps(document, indent=1))
    print_table(rows)
    if wrong:
        clear = tiled_differs["differ_beyond_rounding"]
        raise SystemExit(f"ours differs from the whole in {wrong} voxels; in tiles, {clear} beyond rounding")


if __name__ == "__main__":
    main()
