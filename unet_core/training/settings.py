"""How to train: one frozen object, checked when built."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, Literal, get_args

from unet_core.augment import AugmentSettings
from unet_core.errors import InputError
from unet_core.geometry import Shape
from unet_core.loss import LossSettings
from unet_core.normalisation import NormalisationRule
from unet_core.sampling import Balance
from unet_core.targets import Target, require_target
from unet_core.training.optimisation import Optimisation
from unet_core.weight_map import BorderWeight

Arithmetic = Literal["auto", "float32", "bfloat16", "float16"]


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
        Optimiser steps, and patches per step over all ranks together.
    accumulate
        Parts that a rank computes its patches of a step in, one after the other: less memory.
    dtype
        Arithmetic of the network in training. The weights stay float32.
    compile
        Let torch.compile write kernels for this network: pays off in long trainings on GPUs.
    validate_every, checkpoint_every
        Steps between validations (there is always one after the last step) and between checkpoints (there
        is always one with a validation).
    early_stop
        End after so many validations in a row without a better one; 0 never does.
    foreground
        Share of the patches that are placed on a voxel of a class above 0.
    balance
        Whether these are drawn evenly among classes or among objects.
    class_weights
        One per class for the loss; "balanced": by one over the square root of their shares.
    border
        The paper's border weight map, for targets made of instance ids.
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
    accumulate: int = 1
    optimisation: Optimisation = field(default_factory=Optimisation)
    dtype: Arithmetic = "float32"
    compile: bool = False
    validate_every: int = 100
    checkpoint_every: int = 100
    early_stop: int = 0
    seed: int = 0
    foreground: float = 0.5
    balance: Balance = "class"
    loss: LossSettings = field(default_factory=LossSettings)
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    border: BorderWeight | None = None
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    normalisation: NormalisationRule = field(default_factory=NormalisationRule)
    device: str = "cpu"
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require_target(self.target)
        weights = self.class_weights
        bad_weights = weights not in (None, "balanced") and (
            isinstance(weights, str) or not all(0 <= w < inf for w in weights) or not any(weights)
        )
        positive = ("steps", "batch", "accumulate", "validate_every", "checkpoint_every")
        problems = [
            *((getattr(self, name) < 1, name, "at least 1", getattr(self, name)) for name in positive),
            (self.accumulate > self.batch, "accumulate", f"at most the batch, {self.batch}", self.accumulate),
            (len(self.patch) != 3 or min(self.patch) < 1, "patch", "three sizes, z, y, x", self.patch),
            (self.early_stop < 0, "early_stop", "at least 0", self.early_stop),
            (self.seed < 0, "seed", "at least 0", self.seed),
            (not 0 <= self.foreground <= 1, "foreground", "a share from 0 to 1", self.foreground),
            (self.balance not in get_args(Balance), "balance", get_args(Balance), self.balance),
            (self.dtype not in get_args(Arithmetic), "dtype", get_args(Arithmetic), self.dtype),
            (bad_weights, "class_weights", '"balanced", or finite numbers of at least 0, not all 0', weights),
            (
                self.border is not None and self.target == "semantic",
                "border",
                "a target made of instance ids: classes have no touching objects",
                self.target,
            ),
            (self.device not in ("cpu", "cuda"), "device", '"cpu" or "cuda"', self.device),
        ]
        for wrong, where, expected, found in problems:
            if wrong:
                raise InputError(
                    "this training setting is not possible", where=where, expected=expected, found=repr(found)
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` gives the same settings."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainSettings:
        parts = {
            "optimisation": Optimisation,
            "loss": LossSettings,
            "augment": AugmentSettings,
            "normalisation": NormalisationRule,
            "border": BorderWeight,
        }
        built = {name: kind(**data[name]) for name, kind in parts.items() if data[name] is not None}
        lists = {k: tuple(v) for k, v in data.items() if isinstance(v, list)}  # JSON knows no tuples
        return cls(**{**data, **lists, **built})
