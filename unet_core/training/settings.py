"""How to train, as plain data that checks itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, pi
from typing import Literal

from unet_core.augment import AugmentSettings
from unet_core.errors import InputError
from unet_core.geometry import Shape
from unet_core.normalisation import NormalisationRule
from unet_core.targets import Target, require_target

_WARM_UP = 0.1  # share of the steps in which the learning rate rises


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train. Shapes are z, y, x.

    Parameters
    ----------
    target
        What the network learns of the labels (`unet_core.targets`).
    patch
        Output shape of one patch: multiples of the network's stride, 1 along z for a 2D network.
    steps, batch
        Optimiser steps, and patches per step.
    learning_rate
        The highest one (`learning_rate`). With batch norm 1e-2 suits: fib25 boundaries, 3D, depth 2,
        100 to 120 steps gave IoU 0.40 at 2e-3, 0.43 at 8e-3, and 0.46 at both 1e-2 and 2e-2 with a
        larger patch. Without norm, 1e-2 had learnt nothing after 50 steps.
    gradient_clip
        Largest norm of the gradient.
    validate_every
        Steps between validations; there is always one after the last step.
    foreground
        Share of the patches that must hold a voxel of a class above 0, drawn evenly among these.
    class_weights
        One per class for the loss; "balanced": by one over the square root of their shares.
    device
        "cpu" or "cuda". There is no silent fallback.
    class_names
        Background first; by default those of the target.

    Raises
    ------
    InputError
        A value out of its range, named.
    """

    target: Target
    patch: Shape
    steps: int = 400
    batch: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    validate_every: int = 100
    seed: int = 0
    foreground: float = 0.5
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    normalisation: NormalisationRule = field(default_factory=NormalisationRule)
    device: str = "cpu"
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require_target(self.target)
        weights = self.class_weights
        bad_weights = weights not in (None, "balanced") and (
            isinstance(weights, str) or any(w < 0 for w in weights) or not any(weights)
        )
        problems = [
            (self.steps < 1, "steps", "at least 1", self.steps),
            (self.batch < 1, "batch", "at least 1", self.batch),
            (len(self.patch) != 3 or min(self.patch) < 1, "patch", "three sizes, z, y, x", self.patch),
            (not 0 < self.learning_rate < 1, "learning_rate", "between 0 and 1", self.learning_rate),
            (not 0 <= self.weight_decay < 1, "weight_decay", "0 <= x < 1", self.weight_decay),
            (not self.gradient_clip > 0, "gradient_clip", "above 0", self.gradient_clip),
            (self.validate_every < 1, "validate_every", "at least 1", self.validate_every),
            (self.seed < 0, "seed", "at least 0", self.seed),
            (not 0 <= self.foreground <= 1, "foreground", "a share from 0 to 1", self.foreground),
            (bad_weights, "class_weights", '"balanced", or numbers of at least 0, not all 0', weights),
            (self.device not in ("cpu", "cuda"), "device", '"cpu" or "cuda"', self.device),
        ]
        for wrong, where, expected, found in problems:
            if wrong:
                raise InputError(
                    "this training setting is not possible", where=where, expected=expected, found=repr(found)
                )


def learning_rate(step: int, settings: TrainSettings) -> float:
    """That of step 1, 2, ..., `steps`: a linear rise over a tenth of them, then a cosine to near 0."""
    rise = max(1, round(_WARM_UP * settings.steps))
    if step <= rise:
        return settings.learning_rate * step / rise
    return settings.learning_rate * (1 + cos(pi * (step - rise) / (settings.steps - rise + 1))) / 2
