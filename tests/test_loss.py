"""The losses equal references that nobody optimised, and those of a batch's parts add up to the batch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import SEEDS

from unet_core.errors import InputError
from unet_core.loss import LossSettings, balanced_weights, denominators, loss_of
from unet_core.targets import IGNORE

KINDS = ("cross_entropy", "dice", "cross_entropy+dice")


@st.composite
def batches(draw: st.DrawFn):
    """logits, classes with unlabelled voxels and absent classes, border or None, class weights or None."""
    seed, items, ndim = draw(SEEDS), draw(st.integers(1, 5)), draw(st.sampled_from([2, 3]))
    count = draw(st.integers(2, 4))
    shape = (items, *draw(st.tuples(*[st.integers(1, 5)] * ndim)))
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, draw(st.integers(1, count)), shape)
    classes[rng.random(shape) < draw(st.sampled_from([0, 0.3, 1]))] = IGNORE
    logits = torch.tensor(3 * rng.normal(size=(items, count, *shape[1:])), dtype=torch.float32)
    border = torch.tensor(rng.exponential(3, shape), dtype=torch.float32) if draw(st.booleans()) else None
    weights = torch.tensor(rng.uniform(0.1, 3, count), dtype=torch.float32) if draw(st.booleans()) else None
    return logits, torch.tensor(classes, dtype=torch.uint8), border, weights


def whole_loss(logits, classes, border, weights, kind) -> torch.Tensor:
    common = {"settings": LossSettings(kind=kind), "class_weights": weights}
    total = denominators(classes, border, **common)
    return loss_of(logits, classes, border, denominators=total, **common)


def by_hand(logits, classes, border, weights, kind) -> float:
    """Voxel by voxel, in float64."""
    logits, classes = logits.numpy().astype(np.float64), classes.numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    missed, weight, dices = 0.0, 0.0, []
    for place in np.argwhere(classes != IGNORE):
        item, *voxel = place
        k = classes[tuple(place)]
        w = 1 if weights is None else weights[k].item()
        w += 0 if border is None else border[tuple(place)].item()
        missed -= w * np.log(p[(item, k, *voxel)])
        weight += w
    for item in range(len(classes)):
        known = classes[item] != IGNORE
        for k in range(1, logits.shape[1]):
            t = classes[item] == k
            if t.any():
                both = p[item, k][t].sum()
                dices.append(2 * both / (p[item, k][known].sum() + t.sum()))
    loss = 0.0
    if "cross_entropy" in kind and weight:
        loss += missed / weight
    if "dice" in kind and dices:
        loss += 1 - np.mean(dices)
    return loss


@given(batch=batches(), kind=st.sampled_from(KINDS))
def test_the_loss_is_the_one_by_hand(batch, kind):
    loss = whole_loss(*batch, kind)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert loss.item() == pytest.approx(by_hand(*batch, kind), rel=1e-5, abs=1e-6)


@given(batch=batches())
def test_cross_entropy_and_its_gradient_are_torchs(batch):
    logits, classes, _, weights = batch
    known = (classes != IGNORE).any()  # torch's is NaN without
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = whole_loss(ours, classes, None, weights, "cross_entropy")
    loss.backward()
    if known:
        expected = F.cross_entropy(theirs, classes.long(), weight=weights, ignore_index=IGNORE)
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(ours.grad, theirs.grad)
    else:
        assert loss.item() == 0
        assert not ours.grad.any()


@given(batch=batches(), kind=st.sampled_from(KINDS), data=st.data())
def test_parts_of_a_batch_add_up_to_it(batch, kind, data):
    """Any split over ranks and micro-batches: the same value, the same gradient."""
    logits, classes, border, weights = batch
    items = len(classes)
    owner = data.draw(st.lists(st.integers(0, 2), min_size=items, max_size=items), label="part of each item")
    whole, split = (logits.clone().requires_grad_() for _ in range(2))
    loss = whole_loss(whole, classes, border, weights, kind)
    loss.backward()

    common = {"settings": LossSettings(kind=kind), "class_weights": weights}
    chosen = [[i for i in range(items) if owner[i] == part] for part in sorted(set(owner))]
    parts = [(split[c], classes[c], None if border is None else border[c]) for c in chosen]
    total = sum(denominators(c, b, **common) for _, c, b in parts)
    torch.testing.assert_close(total, denominators(classes, border, **common), rtol=1e-12, atol=0)
    added = 0.0
    for some_logits, some_classes, some_border in parts:
        share = loss_of(some_logits, some_classes, some_border, denominators=total, **common)
        share.backward(retain_graph=True)
        added += share.item()
    assert added == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_at_unlabelled_voxels_does_not_matter(kind):
    rng = np.random.default_rng(0)
    classes = torch.tensor(rng.integers(0, 3, (2, 6, 7)), dtype=torch.uint8)
    classes[:, :3] = IGNORE
    border = torch.ones(classes.shape)
    logits = torch.tensor(rng.normal(size=(2, 3, 6, 7)), dtype=torch.float32)
    other, more = logits.clone(), border.clone()
    other[:, :, :3] = 9.0
    more[:, :3] = 50.0
    assert whole_loss(logits, classes, border, None, kind) == whole_loss(other, classes, more, None, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(kind, dtype):
    """A sum of 2^16 terms near 1 would stop growing at 256 in bfloat16."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(1, 2, 256, 256)), dtype=dtype)
    classes = torch.tensor(rng.integers(0, 2, (1, 256, 256)), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = whole_loss(logits, classes, None, None, kind)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, whole_loss(logits.float(), classes, None, None, kind))


def test_a_perfect_prediction_loses_nothing_and_a_wrong_one_all():
    classes = torch.zeros((2, 1, 4, 4), dtype=torch.uint8)
    classes[0, 0, :2] = 1
    sure = 50.0 * F.one_hot(classes.long(), 2).movedim(-1, 1).float()
    assert whole_loss(sure, classes, None, None, "cross_entropy+dice").item() == pytest.approx(0, abs=1e-6)
    assert whole_loss(-sure, classes, None, None, "dice").item() == pytest.approx(1, abs=1e-6)


def test_an_unknown_loss_is_refused():
    with pytest.raises(InputError, match="not known"):
        LossSettings(kind="focal")


@given(counts=st.lists(st.integers(0, 10**12), min_size=2, max_size=6).filter(any))
def test_balanced_weights_have_mean_one_and_rise_with_rarity(counts):
    weights = np.array(balanced_weights(counts))
    shares = np.array(counts) / sum(counts)
    present = shares > 0
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    order = np.argsort(shares[present])
    assert (np.diff(weights[present][order]) <= 1e-9 * weights.max()).all()
    assert (weights * shares).sum() == pytest.approx(1)
    np.testing.assert_allclose(weights[~present], weights[present].max())
    if present.all():
        np.testing.assert_allclose(weights**2 * shares, weights[0] ** 2 * shares[0])
