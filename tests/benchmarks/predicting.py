"""The `predict` stage of a segmentation without flows, as the benchmarks run it.

    PYTHON predicting.py VOLUME.zarr MODEL LABELS.zarr [--dtype bfloat16]

Run so, it segments a volume in a process of its own and prints what that took: `seconds` of the blocks, Zarr
to Zarr, `seconds_before` of planning, the probe and loading the network, and the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import zarr
from scipy.ndimage import gaussian_filter
from side_by_side import peak_bytes

from unet_core.architecture import UNetSpec
from unet_core.checkpoint import ModelCard, save_model
from unet_core.ledger import hold
from unet_core.model import UNet
from unet_core.normalisation import NormalisationRule, Scale
from unet_core.segmentation import (
    BlockWorker,
    Planned,
    SegmentPlan,
    SegmentRequest,
    plan_segmentation,
    resolve,
    start,
)
from unet_core.volumes import Store

CHUNK = (128, 128, 128)


def build(folder: Path, spec: UNetSpec, size: int) -> tuple[str, str]:
    """Paths of a volume of blobs, uint8, and of a model with random weights that gives each class half."""
    noise = np.random.default_rng(0).standard_normal((size,) * 3, np.float32)
    smooth = gaussian_filter(noise, 3.0)
    image = np.clip(127.5 + 50 * smooth / smooth.std() + 5 * noise, 0, 255).astype(np.uint8)
    zarr.create_array(folder / "volume.zarr", data=image, chunks=CHUNK)
    torch.manual_seed(0)
    network = UNet(spec).eval()
    some = np.ix_(*(np.arange(n) % size for n in spec.read_shape((32,) * 3)))
    with torch.inference_mode():
        logits = network(torch.from_numpy(image[some].astype(np.float32) / 255)[None, None])[0]
        network.head.bias[1] -= (logits[1] - logits[0]).median()
    card = ModelCard(
        spec=spec,
        class_names=("background", "foreground"),
        target="foreground",
        normalisation=NormalisationRule(),
        scale=Scale((0.0,), (255.0,)),
    )
    save_model(Store(folder / "model"), card, network)
    return str(folder / "volume.zarr"), str(folder / "model")


@contextmanager
def opened(
    volume: str, model: str, to: str, *, dtype: str = "auto"
) -> Iterator[tuple[Planned, SegmentPlan, BlockWorker]]:
    """A run of one worker that is ready for its first block."""
    planned = plan_segmentation(
        SegmentRequest(volume=volume, model=model, to=to, dtype=dtype, normalisation="model")  # type: ignore[arg-type]
    )
    with hold(Store(to)) as lease:
        plan = resolve(planned.plan, "model")
        start(planned, plan)
        yield planned, plan, BlockWorker(to, plan, epoch=lease.epoch)


def all_blocks(worker: BlockWorker, plan: SegmentPlan) -> None:
    """As a Dask future does them: as a stream."""
    for _, outcome in worker.stream(range(len(plan.tiling.blocks))):
        if isinstance(outcome, Exception):
            raise outcome


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("volume")
    parser.add_argument("model")
    parser.add_argument("to")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    began = time.perf_counter()
    with opened(options.volume, options.model, options.to, dtype=options.dtype) as (planned, plan, worker):
        ready = time.perf_counter()
        all_blocks(worker, plan)
        ended = time.perf_counter()
    told = {
        "seconds": ended - ready,
        "seconds_before": ready - began,
        "peak_bytes": peak_bytes(),
        "dtype": plan.dtype,
        "tile": plan.tiling.tile,
        "blocks": len(plan.tiling.blocks),
        "gflop": 2 * planned.macs / 1e9,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
