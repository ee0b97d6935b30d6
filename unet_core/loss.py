"""The losses: softmax cross-entropy weighted voxel by voxel, soft Dice, and their sum.

Sources: Ronneberger 2015, section 3, w(x) = wc(class of x) + border(x); Milletari 2016 for Dice.

Both are a sum over voxels or items divided by a number that needs no network. So a batch may be cut into
parts, on one device after the other or on many: `denominators` of the parts add up, and then so do their
losses, to the value and the gradient of the whole batch.

    cross-entropy   sum of w(x) * -log p(x)      over the sum of w(x)                 x: voxels not `IGNORE`
    Dice            sum of 1 - 2|p t|/(|p|+|t|)  over the number of pairs (item, class)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unet_core.errors import InputError
from unet_core.targets import IGNORE

LossKind = Literal["cross_entropy", "dice", "cross_entropy+dice"]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Which loss.

    "dice" alone counts classes above 0 in the items that hold them: it learns nothing from an item
    without any, and neither class weights nor the border weight change it.
    """

    kind: LossKind = "cross_entropy"

    def __post_init__(self) -> None:
        if self.kind not in get_args(LossKind):
            raise InputError("this loss is not known", expected=get_args(LossKind), found=repr(self.kind))


def denominators(
    classes: Tensor, border: Tensor | None, *, settings: LossSettings, class_weights: Tensor | None
) -> Tensor:
    """What the losses of a batch are divided by; of several parts, on any ranks, it is the sum.

    Parameters
    ----------
    classes
        (item, *spatial) uint8, with `IGNORE`.
    border
        (item, *spatial) float32, added to the weight of the class; None: no border weight.
    class_weights
        One per class; None: 1 each.

    Returns
    -------
    float64 (2,): the summed weight of the voxels, and the number of pairs of an item and a class above 0
    that it holds; 0 for a loss that is not asked for.
    """
    zero = torch.zeros((), dtype=torch.float64, device=classes.device)
    weight, pairs = zero, zero
    if "cross_entropy" in settings.kind:
        weight = _weights(classes, border, class_weights).sum(dtype=torch.float64)
    if "dice" in settings.kind:
        pairs = (_voxels_per_class(classes)[:, 1:] > 0).sum().double()
    return torch.stack([weight, pairs])


def loss_of(
    logits: Tensor,
    classes: Tensor,
    border: Tensor | None,
    *,
    settings: LossSettings,
    class_weights: Tensor | None,
    denominators: Tensor,
) -> Tensor:
    """The share of these items in the loss of a step.

    Parameters
    ----------
    logits
        (item, class, *spatial), any floating type; everything from here on is float32, in autocast too.
    classes, border, settings, class_weights
        As in `denominators`.
    denominators
        The sum over all parts of the step. Where it is 0 (no voxel is labelled, no item holds an object)
        the loss is 0.

    Returns
    -------
    A float32 scalar. The shares of all parts add up to the loss, and their gradients to its gradient.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_p = F.log_softmax(logits.float(), dim=1)
        known = classes != IGNORE
        truth = torch.where(known, classes, 0).long()
        log_p_true = log_p.gather(1, truth[:, None])[:, 0]  # (item, *spatial)
        weight, pairs = denominators.to(log_p.device).clamp_min(torch.finfo(torch.float32).tiny).float()
        loss = torch.zeros((), device=log_p.device)
        if "cross_entropy" in settings.kind:
            loss = loss - (log_p_true * _weights(classes, border, class_weights)).sum() / weight
        if "dice" in settings.kind:
            loss = loss + _missed(log_p, log_p_true, classes, known) / pairs
        return loss


def _missed(log_p: Tensor, log_p_true: Tensor, classes: Tensor, known: Tensor) -> Tensor:
    """1 - Dice, summed over the pairs of an item and a class above 0 that it holds.

    2 * sum(p t) / (sum(p) + sum(t)) over the labelled voxels of one item. No smoothing term: the truth
    holds at least one voxel, so the quotient is defined.
    """
    spatial = tuple(range(1, classes.ndim))
    predicted = (log_p.exp() * known[:, None]).flatten(2).sum(2)  # (item, class)
    p_true = log_p_true.exp()
    both = torch.stack([(p_true * (classes == k)).sum(spatial) for k in range(1, log_p.shape[1])], dim=1)
    true = _voxels_per_class(classes)[:, 1 : log_p.shape[1]]
    dice = 2 * both / (predicted[:, 1:] + true).clamp_min(1)
    return ((1 - dice) * (true > 0)).sum()


def _weights(classes: Tensor, border: Tensor | None, class_weights: Tensor | None) -> Tensor:
    """w(x), float32 (item, *spatial), 0 at `IGNORE`."""
    table = torch.zeros(IGNORE + 1, device=classes.device)
    if class_weights is None:
        table[:IGNORE] = 1
    else:
        table[: len(class_weights)] = class_weights.float()
    weights = table[classes.long()]
    return weights if border is None else weights + torch.where(classes == IGNORE, 0, border)


def _voxels_per_class(classes: Tensor) -> Tensor:
    """(item, IGNORE) float32 counts."""
    items = len(classes)
    offset = torch.arange(items, device=classes.device)[:, None] * (IGNORE + 1)
    counts = torch.bincount((classes.flatten(1).long() + offset).flatten(), minlength=items * (IGNORE + 1))
    return counts.view(items, IGNORE + 1)[:, :IGNORE].float()


def balanced_weights(counts: Sequence[int] | NDArray[np.int64]) -> tuple[float, ...]:
    """Weights proportional to 1 / sqrt(share), with mean 1 over the voxels counted.

    The square root, because the full inverse makes a rare class so cheap to claim that its
    boundaries grow; a class that was not met gets the weight of the rarest one that was.
    """
    shares = np.asarray(counts, np.float64) / np.sum(counts)
    inverse = 1 / np.sqrt(np.maximum(shares, shares[shares > 0].min()))
    weights = inverse / (inverse * shares).sum()
    return tuple(float(w) for w in weights)
