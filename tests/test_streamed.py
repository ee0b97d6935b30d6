"""A forward pass in slabs of planes: what the whole pass computes, in memory that one axis leaves alone."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, network_specs, random_network

from unet_core import budget, inference
from unet_core.architecture import UNetSpec
from unet_core.budget.forward import _Slabs
from unet_core.geometry import Box
from unet_core.inference import Predictor
from unet_core.model import UNet, channels_last
from unet_core.normalisation import Scale
from unet_core.prepared import PreparedUNet, prepare
from unet_core.streamed import _Level, streamed
from unet_core.tiling import Footprint, Tile

ISOTROPIC = UNetSpec.build(ndim=3, depth=3, base=16)


@pytest.mark.usefixtures("one_thread")
@settings(max_examples=60)
@given(spec=network_specs(cost=1e7), seed=SEEDS, data=st.data())
def test_slabs_of_any_planes_give_the_whole_pass(spec: UNetSpec, seed: int, data: st.DataObject) -> None:
    write = tuple(s * data.draw(st.integers(1, 3 if axis == 0 else 1)) for axis, s in enumerate(spec.stride))
    shape = spec.read_shape(write)
    planes = data.draw(st.integers(1, shape[0]))
    parts = [planes] if planes == shape[0] else []
    while sum(parts) < shape[0]:  # not all slabs need to be alike
        parts.append(min(data.draw(st.integers(1, planes)), shape[0] - sum(parts)))
    x = torch.randn(1, spec.in_channels, *shape, generator=torch.Generator().manual_seed(seed))
    x = x.to(memory_format=channels_last(spec.ndim))
    network = prepare(random_network(spec, seed))
    with torch.inference_mode():
        expected = network(x)
        found = torch.cat(list(streamed(network, x.split(parts, dim=2), shape, planes)), dim=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("spec", [ISOTROPIC, UNetSpec.build(ndim=2, depth=2, base=16, classes=3)])
@pytest.mark.parametrize("planes", [1, 10, 16, 10_000])
def test_a_tile_is_put_together_of_its_slabs(
    spec: UNetSpec, planes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random_network(spec, 3)
    predictor = Predictor(network, scale=Scale((0.0,), (255.0,)), device="cpu")
    flat = (1,) * (3 - spec.ndim)
    write = Box.of_shape((*flat, *(3 * s for s in spec.stride)))
    foot = Footprint.of(spec)
    data = np.random.default_rng(0).integers(0, 255, (1, *write.grow(foot.lower, foot.upper).shape))
    tile = Tile(write, write, write)
    expected = network(
        torch.from_numpy(data.astype(np.float32) / 255).reshape(1, 1, *data.shape[-spec.ndim :])
    )
    expected = expected[(0, slice(None), *(slice(n) for n in write.shape[len(flat) :]))].detach()
    expected = expected.reshape(spec.classes, *write.shape)
    monkeypatch.setattr(inference, "slab_planes", lambda *_: planes)
    logits = predictor.logits(data.astype(np.uint8), tile)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    classes, chances = predictor.start(data.astype(np.uint8), tile, probabilities=True).take()
    assert np.array_equal(classes, predictor.classes(logits))
    assert chances is not None
    assert np.array_equal(chances, (torch.softmax(logits, 0) * 255).round().to(torch.uint8).numpy())


@settings(max_examples=40)
@given(spec=network_specs(cost=float("inf")), data=st.data())
def test_memory_does_not_grow_with_the_planes(spec: UNetSpec, data: st.DataObject) -> None:
    plane = tuple(s * data.draw(st.integers(1, 40)) for s in spec.stride[1:])
    sizes = [
        budget.forward_bytes(spec, spec.read_shape((spec.stride[0] * n, *plane)), "float32", "cpu")
        for n in (1, 10**6, 10**7)
    ]
    assert sizes[0] <= sizes[1] == sizes[2]
    at_once = budget.forward_bytes(spec, spec.read_shape((spec.stride[0] * 10**7, *plane)), "float32", "cuda")
    assert at_once > sizes[2]


def test_slabs_are_whole_strides_or_the_whole_input() -> None:
    for side in (64, 256, 1024):
        shape = ISOTROPIC.read_shape((512, side, side))
        planes = budget.slab_planes(ISOTROPIC, shape, "bfloat16", "cpu")
        assert planes % 8 == 0
        assert budget.slab_planes(ISOTROPIC, (8, *shape[1:]), "bfloat16", "cpu") == 8
        on_gpu = budget.slab_planes(ISOTROPIC, shape, "bfloat16", "cuda")
        elements = 2 * ISOTROPIC.widths[0] * side * side * on_gpu
        assert (
            on_gpu == shape[0]
            if elements < 2**31 and on_gpu == shape[0]
            else on_gpu % 8 == 0 and elements < 2**31
        )


@pytest.mark.parametrize("once", [True, False])
@settings(max_examples=40)
@given(spec=network_specs(cost=1e7), data=st.data())
def test_what_is_kept_is_what_is_counted(once: bool, spec: UNetSpec, data: st.DataObject) -> None:
    shape = spec.read_shape(tuple(s * data.draw(st.integers(1, 3)) for s in spec.stride))
    planes = shape[0] if once else data.draw(st.integers(1, max(1, shape[0] - 1)))
    made: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        empty = PreparedUNet.empty
        patch.setattr(
            PreparedUNet, "empty", lambda self, *of: (made.append(of[0] * prod(of[1])), empty(self, *of))[1]
        )
        network = prepare(UNet(spec))
        _Level(network, 0, network.spec.levels(shape), planes, once=planes >= shape[0])
    assert sum(made) == sum(_Slabs(spec.padded(), shape, planes).kept())


def test_nothing_that_a_slab_does_not_need_is_alive() -> None:
    """All planes at once hold what a plain pass holds; in slabs of the same input a fraction is enough."""
    shape = ISOTROPIC.read_shape((256, 128, 128))
    at_once = budget.forward_bytes(ISOTROPIC, shape, "bfloat16", "cuda")
    assert budget.forward_bytes(ISOTROPIC, shape, "bfloat16", "cpu") < at_once / 4


def test_a_network_that_waits_for_planes_says_nothing_yet() -> None:
    network = prepare(UNet(UNetSpec.build(ndim=2, depth=1, base=2)))
    shape = network.spec.read_shape((8, 8))
    x = torch.zeros(1, 1, *shape).to(memory_format=channels_last(2))
    with torch.inference_mode():
        slabs = list(streamed(network, x.split(2, dim=2), shape, 2))
    assert sum(slab.shape[2] for slab in slabs) == network.spec.output_shape(shape)[0]
    assert len(slabs) < len(x.split(2, dim=2))
