"""The network in torch: one function for training and inference, one result on any number of threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from strategies import random_network
from torch import nn

from unet_core.architecture import UNetSpec
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.inference import Predictor
from unet_core.model import UNet
from unet_core.normalisation import Scale
from unet_core.prepared import prepare
from unet_core.tiling import Tile


def noise(spec: UNetSpec, seed: int = 0) -> torch.Tensor:
    shape = (1, spec.in_channels, *spec.read_shape(tuple(2 * s for s in spec.stride)))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("upsampling", ["nearest", "transpose"])
@pytest.mark.parametrize(
    ("ndim", "depth", "base", "in_channels", "top"),
    [
        (2, 3, 16, 1, (3, 3)),
        (2, 2, 3, 3, (3, 3)),
        (2, 2, 24, 1, (3, 3)),
        (3, 2, 2, 1, (3, 3, 3)),
        (3, 2, 3, 3, (3, 3, 3)),
        (3, 2, 16, 1, (3, 3, 3)),
        (3, 1, 16, 2, (1, 3, 3)),
        # Kernels that torch hands to another library where it has one thread, unless they look dilated.
        (3, 1, 32, 1, (3, 1, 1)),
    ],
)
def test_bits_do_not_depend_on_the_number_of_threads(ndim, depth, base, in_channels, top, upsampling):
    """Of any width: inference fills them up to multiples of 16, without which most of these would fail."""
    spec = UNetSpec.build(
        ndim=ndim,
        depth=depth,
        base=base,
        in_channels=in_channels,
        classes=3,
        upsampling=upsampling,
        norm="batch",
    )
    spec = replace(spec, kernels=(top, *spec.kernels[1:]))
    scale = Scale((0.0,) * in_channels, (1.0,) * in_channels)
    predictor = Predictor(random_network(spec, 1), scale=scale, device="cpu")
    write = Box.of_shape((16, 16, 16) if ndim == 3 else (1, 64, 64))
    shape = spec.read_shape(write.shape[3 - ndim :])
    x = np.random.default_rng(0).normal(size=(in_channels, *(1,) * (3 - ndim), *shape)).astype(np.float32)
    before = torch.get_num_threads()
    bits = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            bits.append(predictor.logits(x, Tile(write, write, write)).contiguous().numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(set(bits)) == 1


def test_names_and_shapes_of_the_weights():
    """What model folders store. The 3D helper that adds empty channels must not show."""
    network = UNet(UNetSpec.build(ndim=3, depth=1, base=2, in_channels=1, classes=3, norm="batch"))
    batch_norm = ("weight", "bias", "running_mean", "running_var")

    def double(name: str, inputs: int, width: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for place, channels in ((0, inputs), (3, width)):
            shapes[f"{name}.{place}.weight"] = (width, channels, 3, 3, 3)
            shapes[f"{name}.{place}.bias"] = (width,)
            shapes |= {f"{name}.{place + 1}.{part}": (width,) for part in batch_norm}
            shapes[f"{name}.{place + 1}.num_batches_tracked"] = ()
        return shapes

    assert {name: tuple(t.shape) for name, t in network.state_dict().items()} == {
        **double("down.0", 1, 2),
        **double("down.1", 2, 4),
        "up.0.weight": (4, 2, 2, 2, 2),  # torch stores transposed convolutions as (in, out)
        "up.0.bias": (2,),
        **double("merge.0", 4, 2),
        "head.weight": (3, 2, 1, 1, 1),
        "head.bias": (3,),
    }


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 5])
def test_empty_channels_change_nothing_but_speed(in_channels):
    """`_Conv3d` against torch's own convolution, forwards and backwards."""
    spec = UNetSpec.build(ndim=3, depth=0, base=3, in_channels=in_channels)
    ours = UNet(spec).double().down[0][0]
    plain = nn.Conv3d(in_channels, 3, 3).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, in_channels, 5, 6, 7, dtype=torch.float64)
    for convolution in (ours, plain):
        convolution(x).square().sum().backward()
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
    torch.testing.assert_close(ours.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("upsampling", ["nearest", "transpose"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_initial_weights_are_gaussian_with_he_s_deviation(ndim, upsampling):
    torch.manual_seed(0)
    network = UNet(UNetSpec.build(ndim=ndim, depth=2, base=24, upsampling=upsampling))
    checked = 0
    for name, module in network.named_modules():
        if not hasattr(module, "weight") or module.weight.numel() < 2000:
            continue
        weight = module.weight.detach()
        transposed = isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d)
        # Each voxel of a transposed convolution with kernel = stride sees one voxel of every input channel.
        incoming = module.in_channels if transposed else weight[0].numel()
        error = 5 / (2 * weight.numel()) ** 0.5  # five standard errors
        assert weight.std().item() == pytest.approx((2 / incoming) ** 0.5, rel=error), name
        assert abs(weight.mean().item()) < 5 * weight.std().item() / weight.numel() ** 0.5, name
        kurtosis = ((weight - weight.mean()) / weight.std()).pow(4).mean().item()
        assert kurtosis == pytest.approx(3, abs=0.5), f"{name} is not Gaussian"
        assert not module.bias.any(), name
        checked += 1
    assert checked >= 10


def test_activations_keep_their_size_through_the_network():
    """What He's deviation is for: "each feature map in the network has approximately unit variance"."""
    torch.manual_seed(0)
    spec = UNetSpec.build(ndim=2, depth=3, base=16)
    with torch.inference_mode():
        logits = UNet(spec).eval()(noise(spec))
    assert 0.1 < logits.std().item() < 10


def test_dropout_works_at_the_bottom_and_in_training_only():
    spec = UNetSpec.build(ndim=2, depth=2, base=8, dropout=0.5)
    network = UNet(spec)
    x = noise(spec)
    with torch.no_grad():
        assert not torch.equal(network.train()(x), network(x))
        assert torch.equal(network.eval()(x), network(x))
        fast = prepare(network.train())
        assert torch.equal(fast(x), fast(x))
    dropped = []
    network.dropout.register_forward_hook(lambda module, x, y: dropped.append((x[0].shape, y == 0)))
    with torch.no_grad():
        network.train()(x)
    ((shape, zeros),) = dropped
    assert tuple(shape) == (1, 32, *spec.levels(x.shape[2:])[-1].output)
    assert zeros.float().mean() > 0.5  # half of them, and what ReLU left at 0


def test_an_illegal_input_is_refused_before_any_work():
    network = UNet(UNetSpec.build(ndim=2, depth=2, base=2))
    with pytest.raises(InputError, match="not legal") as refused:
        network(torch.zeros(1, 1, 63, 64))
    assert refused.value.found == "(63, 64)"
