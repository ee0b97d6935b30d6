"""Schedules, optimisers and the average of weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unet_core.errors import InputError
from unet_core.training import Optimisation, learning_rate
from unet_core.training.optimisation import WeightAverage

SCHEDULES = ("one-cycle", "cosine", "polynomial", "constant")


@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(1, 3000), warm_up=st.floats(0, 0.9))
def test_rates_are_positive_and_never_above_the_highest(schedule, steps, warm_up):
    settings = Optimisation(schedule=schedule, learning_rate=0.01, warm_up=warm_up)
    rates = [learning_rate(step, steps, settings) for step in range(1, steps + 1)]
    assert min(rates) > 0
    assert max(rates) <= 0.01 * (1 + 1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_rise_once_then_never_again(schedule):
    settings = Optimisation(schedule=schedule, learning_rate=0.01)
    rates = np.array([learning_rate(step, 100, settings) for step in range(1, 101)])
    top = int(rates.argmax())
    assert rates.max() == pytest.approx(0.01)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) <= 0).all()
    assert top == {"one-cycle": 29}.get(schedule, 9)
    assert (rates[-1] == 0.01) == (schedule == "constant")


def test_one_cycle_is_that_of_torch():
    """torch's step k is ours of a schedule that has a step 0, too: 101 steps, the highest rate at step 30."""
    settings = Optimisation(schedule="one-cycle", learning_rate=0.01)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=0.01, total_steps=101, pct_start=31 / 101, div_factor=25, final_div_factor=400
    )
    rates = []
    for _ in range(101):
        rates.append(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()
    ours = [learning_rate(step, 100, settings) for step in range(1, 101)]
    np.testing.assert_allclose(ours, rates[1:], rtol=1e-6)


def test_the_papers_optimiser_is_sgd_with_momentum():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    paper = Optimisation(optimiser="sgd", learning_rate=0.1, momentum=0.99, weight_decay=0.0)
    optimiser = paper.build([weight])
    for _ in range(2):
        optimiser.zero_grad()
        weight.sum().backward()
        optimiser.step()
    assert weight.item() == pytest.approx(1.0 - 0.1 - 0.1 * 1.99)


def test_the_average_follows_the_weights():
    network = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    average = WeightAverage(network, 0.9)
    expected = network[0].weight.item()
    for step in range(1, 30):
        with torch.no_grad():
            network[0].weight.fill_(step)
            network[1].running_mean.fill_(-step)
        average.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert float(average.weights["0.weight"]) == pytest.approx(expected, rel=1e-5)
    state = average.state_of(network)
    assert state.keys() == network.state_dict().keys()
    assert -29 < float(state["1.running_mean"]) < -20
    assert state["1.num_batches_tracked"] == network[1].num_batches_tracked


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimiser": "adam"},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"schedule": "linear"},
        {"ema": 1.0},
        {"warm_up": 1.0},
        {"gradient_clip": float("nan")},
        {"weight_decay": -0.1},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Optimisation(**wrong)
