"""Softmax cross-entropy with class weights and an ignored class (Ronneberger 2015, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unet_core.targets import IGNORE


def cross_entropy(logits: Tensor, classes: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of -log softmax over the voxels that are not `IGNORE`; 0 where all are.

    Parameters
    ----------
    logits
        (batch, class, *spatial), any floating type; summed in float32.
    classes
        (batch, *spatial) integers.
    weights
        One per class. The sum is divided by the weights of the voxels it is over, so that a uniform
        factor changes nothing.

    Returns
    -------
    A float32 scalar.
    """
    target = classes.long()
    total = F.cross_entropy(logits.float(), target, weight=weights, ignore_index=IGNORE, reduction="sum")
    return total / weight_sum(target, weights=weights).clamp_min(torch.finfo(torch.float32).tiny)


def weight_sum(classes: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """What `cross_entropy` divides by; several ranks divide by its sum over all of them."""
    known = classes != IGNORE
    if weights is None:
        return known.sum().float()
    return weights[torch.where(known, classes, 0).long()].mul(known).sum()


def balanced_weights(counts: Sequence[int] | NDArray[np.int64]) -> tuple[float, ...]:
    """Weights proportional to 1 / sqrt(share), with mean 1 over the voxels counted.

    The square root, because the full inverse makes a rare class so cheap to claim that its
    boundaries grow; a class that was not met gets the weight of the rarest one that was.
    """
    shares = np.asarray(counts, np.float64)
    shares = np.maximum(shares, shares[shares > 0].min()) / shares.sum()
    inverse = 1 / np.sqrt(shares)
    weights = inverse / (inverse * shares).sum()
    return tuple(float(w) for w in weights)
