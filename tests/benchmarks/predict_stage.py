"""How much of the `predict` stage is the network: Zarr to Zarr against the bare forward loop, in one run.

python tests/benchmarks/predict_stage.py [--size 256] [--base 16] [--depth 3] [--repeat 3] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from predicting import all_blocks, build, opened
from side_by_side import as_a_worker

from unet_core.architecture import UNetSpec
from unet_core.devices import fast_dtype
from unet_core.inference import Predictor
from unet_core.volumes import Volume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", default=fast_dtype("cpu") or "float32")
    options = parser.parse_args()
    as_a_worker()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options), indent=1))


def measure(root: Path, options: argparse.Namespace) -> dict[str, object]:
    spec = UNetSpec.build(ndim=3, depth=options.depth, base=options.base)
    path, model = build(root, spec, options.size)
    with opened(path, model, str(root / "labels.zarr"), dtype=options.dtype) as (planned, plan, worker):
        tiling, volume = plan.tiling, Volume.open(path)
        assert plan.scale is not None
        predictor = Predictor(planned.model.network(), scale=plan.scale, device=plan.device, dtype=plan.dtype)
        tiles = [tile for index in range(len(tiling.blocks)) for tile in tiling.tiles(index)]
        held = [volume.read(tile.read) for tile in tiles]
        predictor.start(held[0], tiles[0]).take()
        stage, bare = [], []
        for _ in range(options.repeat):
            began = time.perf_counter()
            all_blocks(worker, plan)
            stage.append(time.perf_counter() - began)
            began = time.perf_counter()
            for data, tile in zip(held, tiles):
                predictor.start(data, tile).take()
            bare.append(time.perf_counter() - began)
    seconds = float(np.median(stage))
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "volume": volume.shape,
        "dtype": plan.dtype,
        "tile": tiling.tile,
        "tiles": len(tiles),
        "seconds_stage": seconds,
        "seconds_bare_forward": float(np.median(bare)),
        "ratio_bare_to_stage": float(np.median([b / s for b, s in zip(bare, stage)])),
        "mvoxel_per_second": options.size**3 / seconds / 1e6,
        "gflop_per_second": 2 * planned.macs / seconds / 1e9,
        "useful_share_of_arithmetic": planned.useful,
    }


if __name__ == "__main__":
    main()
