"""A volume from Zarr to class Zarr: our `predict` stage against MONAI's sliding_window_inference.

    python tests/benchmarks/sliding_window.py --peers PYTHON [--size 256] [--depth 3] [--repeat 2]

Each run is a process of its own, ours with a worker's environment and in `--dtype`, theirs by the interpreter
that has MONAI; runs take turns. MONAI: BasicUNet with the same widths, windows of 128, one at a time. As
called: float32, contiguous, an overlap of 0.25 with equal weights, and of 0.5 with gaussian ones. Tuned: the
same in our type and in channels_last_3d; with `--worker-environment` also in ours.

Counted on both sides: reading, the network, argmax, writing uint8. Not counted: imports, making or loading
the network, the first window; `speedup_with_seconds_before` counts our planning, probe and loading. What
favours MONAI: it holds the volume and all logits in memory, and need not be resumable. What favours us:
BasicUNet always has five levels (at `--depth 3` ours has four), does not halve the channels of its last
up-convolution, and has instance norm, which cannot be folded away. `network_gflop_per_mvoxel` shows ours and
theirs for one large tile and one window without overlap, `speedup_at_equal_arithmetic` takes their ratio out,
and `gflop_spent_per_mvoxel` is what was really computed, overlap and context included. Small volumes distort
the cost of overlap: 0.25 fits sizes of 128 + 96 n exactly, 0.5 those of 128 + 64 n. Aims: 7 as called, 3
and 4 tuned.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from predicting import build
from side_by_side import in_turns, of_process, print_table

from flows.environment import thread_environment
from unet_core.architecture import UNetSpec
from unet_core.devices import fast_dtype

OVERLAPS = (0.25, 0.5)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default=fast_dtype("cpu") or "float32")
    parser.add_argument("--overlap", type=float, action="append", choices=OVERLAPS)
    parser.add_argument("--peers", metavar="PYTHON", required=True, help="has monai")
    parser.add_argument("--worker-environment", action="store_true", help="for MONAI, too")
    options = parser.parse_args()
    spec = UNetSpec.build(ndim=3, depth=options.depth, base=options.base)
    own = thread_environment(options.threads)
    theirs = own if options.worker_environment else {"OMP_NUM_THREADS": str(options.threads)}
    widths = ",".join(str(options.base * 2**level) for level in range(5))
    mvoxels = options.size**3 / 1e6
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume, model = build(folder, spec, options.size)

        def ours() -> dict[str, Any]:
            shutil.rmtree(folder / "ours.zarr", ignore_errors=True)
            arguments = (volume, model, folder / "ours.zarr", "--dtype", options.dtype)
            return of_process(sys.executable, "predicting.py", *arguments, environment=own)

        def monai(overlap: float, dtype: str) -> dict[str, Any]:
            shutil.rmtree(folder / "monai.zarr", ignore_errors=True)
            arguments = (volume, folder / "monai.zarr", "--widths", widths, "--overlap", overlap)
            return of_process(
                options.peers, "network_peers.py", "monai", *arguments, "--dtype", dtype, environment=theirs
            )

        variants = [("as called", "float32"), ("tuned", options.dtype)]
        for called, dtype in variants:
            for overlap in options.overlap or OVERLAPS:
                here, there = in_turns(options.repeat, ours, lambda o=overlap, d=dtype: monai(o, d))
                rows.append(compared(called, overlap, dtype, here, there, mvoxels, spec))
    print(json.dumps({"size": options.size, "widths": widths, "rows": rows}, indent=1))
    print_table([{key: value for key, value in row.items() if key != "tile"} for row in rows])


def compared(
    called: str,
    overlap: float,
    dtype: str,
    here: dict[str, Any],
    there: dict[str, Any],
    mvoxels: float,
    spec: UNetSpec,
) -> dict[str, Any]:
    own_gflop, their_gflop = 2 * spec.macs_per_voxel() / 1e3, there["network_gflop"] / 128**3 * 1e6
    speedup = there["seconds"] / here["seconds"]
    return {
        "monai": called,
        "overlap": overlap,
        "monai_dtype": dtype,
        "mvoxel_s": round(mvoxels / here["seconds"], 3),
        "monai_mvoxel_s": round(mvoxels / there["seconds"], 4),
        "speedup": round(speedup, 2),
        "speedup_at_equal_arithmetic": round(speedup * own_gflop / their_gflop, 2),
        "speedup_with_seconds_before": round(
            there["seconds"] / (here["seconds"] + here["seconds_before"]), 2
        ),
        "gib": round(here["peak_bytes"] / 2**30, 2),
        "monai_gib": round(there["peak_bytes"] / 2**30, 2),
        "network_gflop_per_mvoxel": [round(own_gflop), round(their_gflop)],
        "gflop_spent_per_mvoxel": [round(here["gflop"] / mvoxels), round(there["gflop"] / mvoxels)],
        "gflop_s": [round(run["gflop"] / run["seconds"]) for run in (here, there)],
        "tile": here["tile"],
        "dtype": here["dtype"],
        "windows": there["windows"],
    }


if __name__ == "__main__":
    main()
