"""The network made ready for inference: the same function by other kernels, one result on any threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, network_specs, random_network
from torch import nn

from unet_core import prepared
from unet_core.architecture import UNetSpec
from unet_core.model import UNet, channels_last
from unet_core.prepared import PreparedUNet, fused_kernels, prepare


def noise(spec: UNetSpec, seed: int = 0) -> torch.Tensor:
    shape = (1, spec.in_channels, *spec.read_shape(tuple(2 * s for s in spec.stride)))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("one_thread")
@settings(max_examples=50)
@given(spec=network_specs(cost=1e7), seed=SEEDS)
def test_the_network_for_inference_computes_the_same_function(spec, seed):
    network = random_network(spec, seed)
    x = noise(spec, seed)
    fast = prepare(network)
    assert fast.spec == spec.padded()
    assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d) for m in fast.modules())
    with torch.inference_mode():
        expected = network(x)
        found = fast(x.to(memory_format=channels_last(spec.ndim)))
    assert not found[:, spec.classes :].any(), "what fills up the classes is zero"
    found = found[:, : spec.classes]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_preparing_for_inference_leaves_the_model_as_it_was():
    spec = UNetSpec.build(ndim=2, depth=1, base=4, norm="batch")
    network = random_network(spec, 0).train()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    fast = prepare(network)
    assert network.training
    assert not any(module.training for module in fast.modules())
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


@pytest.mark.parametrize("base", [1, 3, 5, 10, 24])
@pytest.mark.parametrize("upsampling", ["nearest", "transpose"])
def test_odd_widths_do_not_make_bits_depend_on_threads(base: int, upsampling: str) -> None:
    spec = UNetSpec.build(ndim=3, depth=1, base=base, upsampling=upsampling, classes=3)  # type: ignore[arg-type]
    torch.manual_seed(base)
    network = UNet(spec).eval()
    ready = prepare(network)
    x = torch.randn(1, 1, *spec.read_shape((16, 16, 16))).to(memory_format=channels_last(3))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                results.append(ready(x)[:, : spec.classes])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
    with torch.inference_mode():
        torch.testing.assert_close(results[0], network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("one_thread")
@settings(max_examples=25)
@given(spec=network_specs(cost=1e7), seed=SEEDS, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_fused_kernels_are_torchs_up_to_rounding(spec, seed, dtype):
    assert fused_kernels(), "this version of torch has none: inference is slower"
    network = random_network(spec, seed)
    x = noise(spec, seed).to(dtype=dtype, memory_format=channels_last(spec.ndim))
    fused = prepare(network, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "fused_kernels", lambda: False)
        plain = prepare(network, dtype=dtype)
    assert not any(isinstance(module, nn.ReLU) for module in fused.modules())
    with torch.inference_mode():
        found, expected = fused(x).float(), plain(x).float()
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding * expected.abs().max().item())


@given(st.data(), st.sampled_from([2, 3]), st.sampled_from([torch.float32, torch.bfloat16]), SEEDS)
@settings(max_examples=40)
def test_pooling_is_torchs_to_the_bit(data, ndim, dtype, seed):
    factors = data.draw(st.tuples(*[st.integers(1, 3)] * ndim))
    shape = tuple(f * data.draw(st.integers(1, 4)) for f in factors)
    x = torch.randn(1, 16, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    x.view(-1)[:: data.draw(st.integers(3, 50))] = float("nan")
    x = x.contiguous(memory_format=channels_last(ndim))
    network = PreparedUNet(UNetSpec.build(ndim=ndim, depth=0, base=16))
    with torch.inference_mode():
        expected = (F.max_pool2d if ndim == 2 else F.max_pool3d)(x, factors)
        assert torch.equal(network.pool(x, factors).isnan(), expected.isnan())
        assert torch.equal(network.pool(x, factors).nan_to_num(), expected.nan_to_num())


def test_tensors_are_in_huge_pages_unless_the_user_says_otherwise():
    code = "import os, unet_core; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    for given_value, expected in ((None, "1"), ("0", "0")):
        environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
        if given_value is not None:
            environment["THP_MEM_ALLOC_ENABLE"] = given_value
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
