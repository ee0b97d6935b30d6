"""How weights move: optimiser, learning-rate schedule, clipping and the average of weights.

Sources: Ronneberger 2015, section 3 (SGD with momentum 0.99); AdamW, Loshchilov & Hutter 2019; the
one-cycle schedule, Smith & Topin 2018; polynomial decay with power 0.9, as nnU-Net has it (Isensee 2021).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, pi
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unet_core.errors import InputError

Optimiser = Literal["adamw", "sgd"]
Schedule = Literal["one-cycle", "cosine", "polynomial", "constant"]
_ONE_CYCLE_RISE, _ONE_CYCLE_START, _ONE_CYCLE_END = 0.3, 1 / 25, 1e-4
_POWER = 0.9


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Parameters of the optimiser.

    Parameters
    ----------
    optimiser
        "adamw", or "sgd": the paper's, with `momentum`.
    learning_rate
        The highest one of the schedule.
    schedule
        After `warm_up`, a share of the steps in which the rate rises linearly: "cosine" to near 0,
        "polynomial" with power 0.9, or "constant". "one-cycle" has a rise of its own (0.3 of the steps,
        from 1/25 of the highest rate, by a cosine) and ends at 1e-4 of the highest.
    gradient_clip
        Largest norm of the gradient; 0 clips nothing.
    ema
        Decay of the average of weights per step; that average is then validated and kept. 0 averages
        nothing.
    freeze_norm
        Share of the steps after which batch norm scales by its running statistics, as in inference. Until
        then it scales every batch by its own, and so takes away what brightness and contrast augmentation
        did: a network that saw nothing else fails on the next image that is a little brighter. The training
        goes on from the average of weights, with an optimiser that begins anew. 1 never does so.
    """

    optimiser: Optimiser = "adamw"
    learning_rate: float = 2e-3
    momentum: float = 0.99
    weight_decay: float = 1e-2
    schedule: Schedule = "one-cycle"
    warm_up: float = 0.1
    gradient_clip: float = 1.0
    ema: float = 0.99
    freeze_norm: float = 0.75

    def __post_init__(self) -> None:
        problems = [
            (self.optimiser not in get_args(Optimiser), "optimiser", get_args(Optimiser), self.optimiser),
            (not 0 < self.learning_rate < 1, "learning_rate", "between 0 and 1", self.learning_rate),
            (not 0 <= self.momentum < 1, "momentum", "0 <= x < 1", self.momentum),
            (not 0 <= self.weight_decay < 1, "weight_decay", "0 <= x < 1", self.weight_decay),
            (self.schedule not in get_args(Schedule), "schedule", get_args(Schedule), self.schedule),
            (not 0 <= self.warm_up < 1, "warm_up", "a share of the steps, 0 <= x < 1", self.warm_up),
            (not self.gradient_clip >= 0, "gradient_clip", "at least 0", self.gradient_clip),
            (not 0 <= self.ema < 1, "ema", "0 <= x < 1", self.ema),
            (not 0 < self.freeze_norm <= 1, "freeze_norm", "a share of the steps", self.freeze_norm),
        ]
        for wrong, where, expected, found in problems:
            if wrong:
                raise InputError(
                    "this training setting is not possible", where=where, expected=expected, found=repr(found)
                )

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser for a network's parameters."""
        if self.optimiser == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)


def learning_rate(step: int, steps: int, settings: Optimisation) -> float:
    """That of step 1, 2, ..., `steps`."""
    highest = settings.learning_rate
    if settings.schedule == "one-cycle":
        rise = max(1, round(_ONE_CYCLE_RISE * steps))
        if step <= rise:
            return highest * _between(_ONE_CYCLE_START, 1.0, step / rise)
        return highest * _between(1.0, _ONE_CYCLE_END, (step - rise) / max(1, steps - rise))
    rise = round(settings.warm_up * steps)
    if step <= rise:
        return highest * step / rise
    # From just below 1 at the first step after the rise, never 0 at the last.
    gone = (step - rise) / (steps - rise + 1)
    if settings.schedule == "cosine":
        return highest * _between(1.0, 0.0, gone)
    return highest * ((1 - gone) ** _POWER if settings.schedule == "polynomial" else 1.0)


def _between(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * (1 + cos(pi * share)) / 2


class WeightAverage:
    """The exponential moving average of a network's weights, and of batch norm's statistics with them.

    These belong to the weights that they were measured with; of single patches they are noisy, too. The
    decay of the first steps is lower, (1 + step) / (10 + step), so that the random weights at the start
    are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: t.detach().clone() for name, t in _floats(network).items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        current = _floats(network)
        torch._foreach_lerp_([self.weights[name] for name in current], list(current.values()), 1 - decay)

    def state_of(self, network: nn.Module) -> dict[str, Tensor]:
        """The averaged network as a state dict."""
        return {**network.state_dict(), **self.weights}


def _floats(network: nn.Module) -> dict[str, Tensor]:
    """Everything but counters."""
    return {name: t.detach() for name, t in network.state_dict().items() if t.is_floating_point()}
