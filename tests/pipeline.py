"""A segmentation without flows: a random model, and the stages of a run in this process."""

from __future__ import annotations

import os
from typing import Any

from strategies import random_network

from unet_core.architecture import UNetSpec
from unet_core.checkpoint import ModelCard, save_model
from unet_core.geometry import Box, Shape
from unet_core.ledger import Ledger, hold, set_status
from unet_core.normalisation import NormalisationRule, Scale
from unet_core.segmentation import (
    BlockWorker,
    SegmentRequest,
    plan_segmentation,
    pyramid_block,
    resolve,
    start,
)
from unet_core.volumes import Store


def save_random_model(folder: str | os.PathLike[str], spec: UNetSpec, *, seed: int = 0, **card: Any) -> None:
    """A model folder with random weights for 8-bit intensities; `card` overrides what it says."""
    described = {
        "class_names": tuple(f"class {i}" for i in range(spec.classes)),
        "target": "semantic",
        "normalisation": NormalisationRule(),
        "scale": Scale((0.0,) * spec.in_channels, (255.0,) * spec.in_channels),
        **card,
    }
    save_model(Store(folder), ModelCard(spec=spec, **described), random_network(spec, seed))


def complete(
    root: str | os.PathLike[str],
    to: str,
    *,
    tile: Shape,
    probabilities: bool = False,
    roi: Box | None = None,
) -> None:
    """Whatever is missing of the segmentation of `root`/volume.zarr by `root`/model."""
    planned = plan_segmentation(
        SegmentRequest(
            volume=f"{root}/volume.zarr",
            model=f"{root}/model",
            to=to,
            tile=tile,
            probabilities=probabilities,
            roi=roi,
        )
    )
    with hold(Store(to)) as lease:
        plan = planned.plan if planned.resumed else resolve(planned.plan, "volume")
        start(planned, plan)
        worker: BlockWorker | None = None
        for level, stage in enumerate(plan.stages):
            done = Ledger(Store(to), stage.name, stage.count, lease.epoch).read().done
            for index in done.missing():
                if level == 0:
                    worker = worker or BlockWorker(to, plan, epoch=lease.epoch)
                    worker.predict(index)
                else:
                    pyramid_block(to, plan.pyramid, level, index, epoch=lease.epoch)
        set_status(Store(to), "complete")
