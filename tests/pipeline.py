"""A segmentation without flows: a random model, and the stages of a run in this process."""

from __future__ import annotations

import os
from typing import Any

from strategies import random_network

from unet_core.architecture import UNetSpec
from unet_core.checkpoint import ModelCard, save_model
from unet_core.geometry import Shape
from unet_core.instances.blocks import InstanceWorker
from unet_core.instances.plan import RELABEL
from unet_core.ledger import Ledger, hold, read_record, set_status
from unet_core.normalisation import NormalisationRule, Scale
from unet_core.pyramid import STAGE
from unet_core.segmentation import (
    BlockWorker,
    SegmentPlan,
    SegmentRequest,
    plan_segmentation,
    prepare_final,
    pyramid_block,
    resolve,
    start,
)
from unet_core.volumes import Store, Volume


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
    root: str | os.PathLike[str], to: str, *, tile: Shape, most: int = 10**9, **options: Any
) -> SegmentPlan:
    """Whatever is missing of the segmentation of `root`/volume.zarr by `root`/model, at most so many blocks.

    `options` are those of a `SegmentRequest`, also of another volume or model.
    """
    request = {"volume": f"{root}/volume.zarr", "model": f"{root}/model", **options}
    planned = plan_segmentation(SegmentRequest(to=to, tile=tile, **request))
    with hold(Store(to)) as lease:
        plan = planned.plan if planned.resumed else resolve(planned.plan, "volume")
        start(planned, plan)
        record = read_record(Store(to))
        assert record is not None
        worker: BlockWorker | None = None
        for stage in plan.stages:
            done = Ledger(Store(to), stage.name, stage.count, lease.epoch).read().done
            if stage.name == RELABEL:
                prepare_final(Store(to), plan)
            for index in done.missing():
                if most == 0:
                    return plan
                most -= 1
                if stage.name == plan.stages[0].name:
                    worker = worker or BlockWorker(to, plan, epoch=lease.epoch)
                    worker.predict(index)
                elif stage.name.startswith(STAGE):
                    level = int(stage.name.removeprefix(STAGE))
                    pyramid_block(to, plan.pyramid, level, index, epoch=lease.epoch)
                else:
                    assert plan.instances is not None
                    image = Volume.reopen(record.plan)
                    fingerprint, epoch = record.fingerprint, lease.epoch
                    instances = InstanceWorker(
                        to, plan.instances, image=image, fingerprint=fingerprint, epoch=epoch
                    )
                    instances.do(stage.name, index)
        set_status(Store(to), "complete")
    return plan
