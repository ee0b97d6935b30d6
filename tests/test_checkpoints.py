"""Checkpoints: whole or not there, a damaged one passed over, only what is needed kept, no code inside."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_core.errors import LostLeaseError
from unet_core.ledger import hold
from unet_core.training import Checkpoint, Checkpoints
from unet_core.volumes import Store


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "network.a": torch.randn(3, 4, generator=generator),
        "optimiser.0.step": torch.tensor(float(seed)),
        "b": torch.randn(2, 2, generator=generator).T,  # not contiguous
    }


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "model")


def test_what_was_saved_comes_back(store):
    with hold(store) as lease:
        checkpoints = Checkpoints(store, lease.epoch)
        assert checkpoints.latest() is None
        checkpoints.save_best(7, {"w": torch.arange(3.0)})
        checkpoints.save(Checkpoint(7, tensors(7), {"history": [1.5, None]}, best_step=7))
    found = Checkpoints(store).latest()
    assert (found.step, found.best_step, found.facts) == (7, 7, {"history": [1.5, None]})
    assert same(found.tensors, tensors(7))
    assert same(Checkpoints(store).best(7), {"w": torch.arange(3.0)})


@settings(max_examples=20)
@given(best=st.lists(st.booleans(), min_size=1, max_size=6))
def test_two_are_kept_with_the_best_weights_they_name(tmp_path_factory, best):
    store = Store(tmp_path_factory.mktemp("model"))
    best_steps, last = [], 0
    with hold(store, every=60) as lease:
        checkpoints = Checkpoints(store, lease.epoch)
        for step, better in enumerate(best, 1):
            if better:
                last = step
                checkpoints.save_best(step, {"w": torch.tensor([float(step)])})
            checkpoints.save(Checkpoint(step, tensors(step), {}, best_step=last))
            best_steps.append(last)
    assert checkpoints.steps() == list(range(1, len(best) + 1))[-2:]
    named = {step for step in best_steps[-2:] if step}
    files = list(store.keys(".unet-flows/checkpoints"))
    assert len(files) == len(checkpoints.steps()) + len(named)
    for step in named:
        assert float(checkpoints.best(step)["w"]) == step


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_one_is_known_and_the_one_before_serves(store, damage):
    with hold(store) as lease:
        checkpoints = Checkpoints(store, lease.epoch)
        for step in (1, 2):
            checkpoints.save(Checkpoint(step, tensors(step), {}))
        newest = max(store.keys(".unet-flows/checkpoints"))
        store.write(newest, damage(store.read(newest)))
        assert checkpoints.latest().step == 1
        assert checkpoints.damaged() == [newest]


def test_damaged_ones_of_later_steps_make_way(store):
    with hold(store) as lease:
        checkpoints = Checkpoints(store, lease.epoch)
        for step in (9, 10):
            checkpoints.save(Checkpoint(step, tensors(step), {}))
        for key in list(store.keys(".unet-flows/checkpoints")):
            store.write(key, store.read(key)[:-1])
        assert checkpoints.latest() is None
        checkpoints.save(Checkpoint(2, tensors(2), {}))
        assert checkpoints.latest().step == 2
        assert checkpoints.steps() == [2]


def test_one_whose_best_weights_are_gone_does_not_count(store):
    with hold(store) as lease:
        checkpoints = Checkpoints(store, lease.epoch)
        checkpoints.save(Checkpoint(1, tensors(1), {}))
        checkpoints.save_best(2, {"w": torch.zeros(1)})
        checkpoints.save(Checkpoint(2, tensors(2), {}, best_step=2))
        store.delete([key for key in store.keys(".unet-flows/checkpoints") if "best" in key])
        assert checkpoints.latest().step == 1


def test_a_late_owner_writes_nothing(store):
    with hold(store) as first:
        late = Checkpoints(store, first.epoch)
    with hold(store), pytest.raises(LostLeaseError):
        late.save(Checkpoint(1, tensors(1), {}))
    assert late.latest() is None


def test_the_same_step_by_other_ranks_replaces_its_best_weights(store):
    with hold(store) as lease:
        checkpoints = Checkpoints(store, lease.epoch)
        checkpoints.save_best(3, {"w": torch.tensor([1.0])})
        checkpoints.save_best(3, {"w": torch.tensor([1.5])})
        assert float(checkpoints.best(3)["w"]) == 1.5
