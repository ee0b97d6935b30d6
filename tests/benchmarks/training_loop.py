"""The training loop against the bare loop, and two ranks of one core against one, in one run.

    python tests/benchmarks/training_loop.py [--ndim 2] [--base 16] [--steps 40] [--dtype auto]

Bare: forward, backward and optimiser step on batches that are in memory, nothing else. Ours reads, augments,
weighs, checks and reports. Aims: bare / ours >= 0.95; two ranks of one core >= 0.85 of twice one such rank.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import zarr
from scipy import ndimage

from flows.cluster import open_client
from flows.config import Local
from flows.ranks import RankedTraining
from unet_core import training
from unet_core.architecture import UNetSpec
from unet_core.devices import DTYPES, fast_dtype
from unet_core.labelling import LabelledRegion
from unet_core.ledger import RunRecord, begin, hold
from unet_core.model import UNet, channels_last
from unet_core.sampling import generator
from unet_core.training.batches import collate
from unet_core.volumes import Store, Volume

_WARM = 5  # steps that are not counted
_ROUNDS = 3


def make_plan(folder: Path, ndim: int, base: int, steps: int, dtype: str, batch: int) -> training.Plan:
    """A synthetic volume of blobs, large enough that patches differ."""
    rng = np.random.default_rng(0)
    shape = (8, 1024, 1024) if ndim == 2 else (128, 192, 192)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), (0 if ndim == 2 else 6, 6, 6))
    labels = ndimage.label(smooth > 0)[0].astype(np.uint32)
    image = (100 + 50 * (labels > 0) + rng.normal(0, 20, shape)).clip(0, 255).astype(np.uint8)
    for name, data in (("image", image), ("labels", labels)):
        chunks = (1, 256, 256) if ndim == 2 else (64, 64, 64)
        zarr.create_array(folder / f"{name}.zarr", data=data, chunks=chunks, dimension_names=list("zyx"))
    region = LabelledRegion.whole(*(Volume.open(str(folder / f"{n}.zarr")) for n in ("image", "labels")))
    spec = UNetSpec.build(ndim=ndim, depth=4 if ndim == 2 else 2, base=base, norm="batch", dropout=0.0)
    settings = training.TrainSettings(
        target="foreground",
        patch=(1, 256, 256) if ndim == 2 else (48, 48, 48),
        steps=steps,
        batch=batch,
        dtype=(fast_dtype("cpu") or "float32") if dtype == "auto" else dtype,
        validate_every=10**6,
        checkpoint_every=10**6,
    )
    return training.prepare([region], [], spec, settings)


def bare_seconds(plan: training.Plan) -> float:
    """Median seconds of a step on batches in memory."""
    settings = plan.settings
    patches = [plan.sampler.draw(generator(0, step, 0)) for step in range(4)]
    batches = [collate(plan, [patch] * settings.batch) for patch in patches]
    layout = channels_last(plan.spec.ndim)
    network = UNet(plan.spec).train().to(memory_format=layout)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    dtype = DTYPES[settings.dtype]
    seconds = []
    for step in range(settings.steps):
        batch = batches[step % len(batches)]
        began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = network(batch.image.contiguous(memory_format=layout))
        inside: tuple[Any, ...] = (..., *(slice(n) for n in batch.classes.shape[1:]))
        loss = F.cross_entropy(logits[inside].float(), batch.classes.long(), ignore_index=255)
        loss.backward()
        optimiser.step()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return median(seconds[_WARM:])


def our_seconds(plan: training.Plan) -> float:
    """Median seconds between two steps of the whole loop."""
    ends: list[float] = []
    training.run(plan, on_progress=lambda _: ends.append(time.perf_counter()))
    return median(np.diff(ends)[_WARM:])


def ranks_seconds(plan: training.Plan, folder: Path, ranks: int) -> float:
    """Mean seconds between two steps of the second half on so many ranks of one thread each."""
    ends: list[tuple[int, float]] = []
    store = Store(folder)
    record = RunRecord(training.KIND, {"ranks": ranks}, plan.to_dict())
    config = Local(workers=ranks, threads=1)
    with open_client(config) as client, hold(store) as lease:
        client.wait_for_workers(ranks)
        begin(store, record, arrays=False)
        job = {"output": store.url, "fingerprint": record.fingerprint, "epoch": lease.epoch, "loaders": 1}
        RankedTraining(
            client=client,
            job=job,
            most=ranks,
            max_restarts=0,
            on_progress=lambda now: ends.append((now["step"], time.perf_counter())),
            on_restart=print,
        ).run()
    # Compiling kernels and starting up lie in the first half.
    (first, began), (last, ended) = next(m for m in ends if m[0] >= plan.settings.steps // 2), ends[-1]
    return (ended - began) / (last - first)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--ndim", type=int, default=2, choices=(2, 3))
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = make_plan(folder, options.ndim, options.base, options.steps, options.dtype, batch=1)
        rounds = [(bare_seconds(plan), our_seconds(plan)) for _ in range(_ROUNDS)]
        bare, ours = (median(column) for column in zip(*rounds))
        shared = replace(plan, settings=replace(plan.settings, batch=2))
        one, two = (ranks_seconds(shared, folder / f"ranks-{n}", n) for n in (1, 2))
        document = {
            "ndim": options.ndim,
            "base": options.base,
            "dtype": plan.settings.dtype,
            "threads": torch.get_num_threads(),
            "bare_seconds_per_step": round(bare, 4),
            "our_seconds_per_step": round(ours, 4),
            "bare_over_ours": round(median(b / o for b, o in rounds), 3),
            "one_rank_seconds_per_step": round(one, 4),
            "two_ranks_seconds_per_step": round(two, 4),
            "share_of_ideal_of_two_ranks": round(one / two / 2, 3),
        }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
