"""Validation by exact tiling on regions that the network never saw, shared out among the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_core.evaluation import Scores, Thresholds, confusion_of
from unet_core.geometry import Box
from unet_core.inference import Predictor, predict_block
from unet_core.model import UNet
from unet_core.training.plan import Plan
from unet_core.training.ranks import Ranks

_PREVIEW = 512  # voxels of a preview per axis


@dataclass(frozen=True, eq=False)
class Validation:
    """What a network scored: classes by argmax, and for two classes every threshold on the second one."""

    scores: Scores
    thresholds: Thresholds | None

    @property
    def foreground_iou(self) -> float:
        """Mean IoU over the classes above 0: what the best weights are chosen by."""
        known = [value for value in self.scores.iou[1:] if value is not None]
        return sum(known) / len(known) if known else 0.0

    def to_dict(self) -> dict[str, Any]:
        best = None if self.thresholds is None else self.thresholds.best()
        found = {"foreground_iou": self.foreground_iou, "threshold": None if best is None else best.to_dict()}
        return {**self.scores.to_dict(), **found}


@dataclass(frozen=True)
class Preview:
    """One plane of a validation region for eyes: image (channel, y, x), truth and found classes (y, x)."""

    image: NDArray[Any]
    truth: NDArray[np.uint8]
    found: NDArray[np.uint8]
    where: str


def network_of(plan: Plan, weights: Mapping[str, Tensor]) -> UNet:
    """A network on the CPU, in eval mode, with copies of these weights."""
    with torch.device("meta"):
        network = UNet(plan.spec)
    copies = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    network.load_state_dict(copies, assign=True)
    return network.eval()


def validate(plan: Plan, network: UNet, ranks: Ranks | None = None) -> Validation:
    """Score a network on the validation regions; every rank does a part and gets the whole's scores."""
    ranks = ranks or Ranks()
    classes = plan.spec.classes
    confusion = np.zeros((classes, classes), np.int64)
    histogram = np.zeros((2, 256), np.int64)
    number = 0
    for region, scale in zip(plan.validation, plan.validation_scales):
        tiling = plan.validation_tiling(region)
        predictor = Predictor(network, scale=scale, device=plan.settings.device, dtype=plan.settings.dtype)
        for index in range(len(tiling.blocks)):
            number += 1
            if number % ranks.world != ranks.rank:
                continue
            result = predict_block(region.image, tiling, index, predictor, probabilities=classes == 2)
            truth = plan.sampler.labelling.read(region, result.box)
            confusion += confusion_of(truth, result.classes, classes)
            if result.probabilities is not None:
                histogram += Thresholds.of(truth, result.probabilities[1]).histogram
    total = torch.from_numpy(np.concatenate([confusion.ravel(), histogram.ravel()]))
    summed = ranks.add_up(total.to(plan.settings.device)).cpu().numpy()
    confusion, histogram = summed[: classes**2].reshape(confusion.shape), summed[classes**2 :]
    return Validation(
        Scores(confusion, plan.class_names),
        Thresholds(histogram.reshape(2, 256)) if classes == 2 else None,
    )


def preview(plan: Plan, network: UNet) -> Preview:
    """The middle plane of the first validation region, or of the first training region without one."""
    if plan.validation:
        region, scale = plan.validation[0], plan.validation_scales[0]
    else:
        region, scale = plan.sampler.sources[0], plan.sampler.scales[0]
    middle = (region.region.lower[0] + region.region.upper[0]) // 2
    lower = [
        max(a, (a + b - _PREVIEW) // 2) for a, b in zip(region.region.lower[1:], region.region.upper[1:])
    ]
    upper = [min(a + _PREVIEW, b) for a, b in zip(lower, region.region.upper[1:])]
    shown = Box((middle, *lower), (middle + 1, *upper))
    tiling = plan.validation_tiling(region, roi=shown)
    predictor = Predictor(network, scale=scale, device=plan.settings.device, dtype=plan.settings.dtype)
    found = np.zeros(shown.shape, np.uint8)
    for index in range(len(tiling.blocks)):
        result = predict_block(region.image, tiling, index, predictor)
        found[result.box.relative_to(shown.lower).slices] = result.classes
    truth = plan.sampler.labelling.read(region, shown)
    return Preview(region.image.read(shown)[:, 0], truth[0], found[0], f"{region.image.where} in {shown}")
