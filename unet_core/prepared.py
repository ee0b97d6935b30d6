"""A trained U-Net made ready for inference: norms folded, channels filled up, the CPU's fused kernels.

What it computes is what `UNet` in eval mode does, up to rounding (`tests/test_prepared.py`). Against
torch's own layers, on two AVX-512 cores in bfloat16, a volume takes three quarters of the time (DESIGN.md,
section 11).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unet_core.geometry import Shape
from unet_core.model import UNet, channels_last

_CONVOLUTION = nn.Conv2d | nn.Conv3d
_Layer = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d
_TRANSPOSED = nn.ConvTranspose2d | nn.ConvTranspose3d


class PreparedUNet(UNet):
    """`UNet` without norms in eval mode, as `prepare` makes it."""

    def empty(self, channels: int, shape: Shape) -> Tensor:
        """(1, channels, *shape) for a layer to read: its type, device and memory format, no values yet."""
        weight = next(self.parameters())
        layout = channels_last(self.spec.ndim)
        return torch.empty(
            (1, channels, *shape), dtype=weight.dtype, device=weight.device, memory_format=layout
        )

    def pool(self, x: Tensor, factors: Shape) -> Tensor:
        """Max pooling, without the positions that torch's own finds too: a third of its time in 16 bits."""
        if x.is_cuda:
            return super().pool(x, factors)
        # Along the fastest axis first: what is left for the others is in order.
        for axis, factor in reversed(list(enumerate(factors, 2))):
            first, *others = (x[(slice(None),) * axis + (slice(n, None, factor),)] for n in range(factor))
            x = first
            for other in others:
                x = torch.maximum(x, other)
        return x


def prepare(model: UNet, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PreparedUNet:
    """A copy on `device`, as `spec.padded()` describes it, that computes the same function.

    Eval-mode batch norm is y = (x - mean) * weight / sqrt(var + eps) + bias: an affine map per
    channel, taken over into the convolution before it. Channels that fill up are zero: zero weights
    and biases make them, ReLU keeps them, and nothing weighs them.

    Takes (N, in_channels, *input) in `dtype` and `channels_last`. Logits are (N, padded classes, *output):
    those beyond the classes are zero.
    """
    result = PreparedUNet(model.spec.padded()).requires_grad_(False)
    empty = dict(result.named_parameters())
    for parameter in empty.values():
        parameter.zero_()
    with torch.no_grad():
        for name, layer in _folded_layers(model):
            halves = 2 if name.startswith("merge") and name.endswith(".0") else 1  # skip and up, concatenated
            # A transposed convolution has its weight as (inputs, outputs, ...), the others the other way.
            inputs = 0 if isinstance(layer, _TRANSPOSED) else 1
            weight = empty[f"{name}.weight"]
            for source, target in zip(layer.weight.chunk(halves, inputs), weight.chunk(halves, inputs)):
                target[tuple(slice(n) for n in source.shape)] = source
            if layer.bias is not None:
                empty[f"{name}.bias"][: len(layer.bias)] = layer.bias
    layout = channels_last(model.spec.ndim)
    result.to(device=device, dtype=dtype).to(memory_format=layout)  # type: ignore[call-overload]
    if device == "cpu" and fused_kernels():
        _fuse(result)
    return result.eval()


def fused_kernels() -> bool:
    """Whether this torch has oneDNN's fused convolutions: what its compiler calls on CPUs."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class _Fused(nn.Module):
    """One convolution with what follows it, in one pass over the output.

    torch's own 3D convolution of one channel takes a slow path, since such a tensor is contiguous and
    channels-last at once (`model._Conv3d` fills channels up for that reason). Here the strides say which.
    """

    def __init__(self, layer: nn.Conv2d | nn.Conv3d, after: str) -> None:
        super().__init__()
        self._weight, self._bias, self._after = layer.weight, layer.bias, after
        self._axes = len(layer.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        ones, none = [1] * self._axes, [0] * self._axes
        if x.shape[1] == 1:
            x = x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, none, ones, ones, 1, self._after, [], ""
        )
        return result


def _fuse(network: PreparedUNet) -> None:
    """Replace all convolutions but the transposed ones; a ReLU that is fused becomes nothing."""
    for block in network.modules():
        if not isinstance(block, nn.Sequential):
            continue
        rectified = any(isinstance(layer, nn.ReLU) for layer in block)
        for position, layer in enumerate(block):
            if isinstance(layer, _CONVOLUTION):
                block[position] = _Fused(layer, "relu" if rectified else "none")
            elif isinstance(layer, nn.ReLU):
                block[position] = nn.Identity()
    network.add_module("head", _Fused(network.head, "none"))


def _folded_layers(
    model: UNet,
) -> Iterator[tuple[str, _Layer]]:
    """Every convolution with its name in a network without batch norm, batch norm folded into it."""
    plain = copy.deepcopy(model).eval()
    for name, block in plain.named_modules():
        if isinstance(block, _TRANSPOSED):
            yield name, block
        if not isinstance(block, nn.Sequential):
            continue
        layers: list[nn.Module] = []
        for layer in block:
            if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
                layers[-1] = nn.utils.fuse_conv_bn_eval(layers[-1], layer)  # type: ignore[type-var]
            else:
                layers.append(layer)
        for position, layer in enumerate(layers):
            if isinstance(layer, _CONVOLUTION):
                yield f"{name}.{position}", layer
    yield "head", plain.head
