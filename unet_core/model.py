"""The paper's U-Net in torch, built from a `UNetSpec`; two or three dimensions, one file.

Tensors are (N, C, *spatial) with spatial = z, y, x or y, x. Source: Ronneberger, Fischer, Brox 2015,
figure 1. Shapes in comments are those of the paper's network on a 572x572 input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_core.architecture import FEWEST_CHANNELS_3D, UNetSpec
from unet_core.geometry import Shape


class UNet(nn.Module):
    """Valid convolutions, max pooling, cropped and concatenated skips, 1x1 head.

    `forward` maps (N, in_channels, *input) to logits (N, classes, *output); any legal input shape
    (`UNetSpec.levels`). Output voxel j lies on input voxel j + `spec.context[0]`.
    """

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        widths = spec.widths
        self.down = nn.ModuleList(
            _double_conv(spec, level, widths[level - 1] if level else spec.in_channels)
            for level in range(spec.depth + 1)
        )
        self.up = nn.ModuleList(_up_conv(spec, level) for level in range(spec.depth))
        self.merge = nn.ModuleList(
            _double_conv(spec, level, 2 * widths[level]) for level in range(spec.depth)
        )
        self.dropout = nn.Dropout(spec.dropout)
        self.head = _conv(spec.ndim, widths[0], spec.classes, (1,) * spec.ndim)
        self.apply(_he_initialise)

    def forward(self, x: Tensor) -> Tensor:
        spec = self.spec
        expected = [shapes.expand_in for shapes in spec.levels(x.shape[2:])]
        skips: list[Tensor] = []
        for level in range(spec.depth):
            x = self.down[level](x)  # 568, 280, 136, 64
            # Only the middle of the skip is used: cropping now frees the rest of a large tensor.
            skips.append(_crop(x, spec.crop_lower(level), expected[level]))  # 392, 200, 104, 56
            x = self.pool(x, spec.pools[level])  # 284, 140, 68, 32
        x = self.dropout(self.down[spec.depth](x))  # 28
        for level in reversed(range(spec.depth)):
            x = self.up[level](x)  # 56, 104, 200, 392
            x = torch.cat([skips.pop(), x], dim=1)
            x = self.merge[level](x)  # 52, 100, 196, 388
        logits: Tensor = self.head(x)
        return logits

    def pool(self, x: Tensor, factors: Shape) -> Tensor:
        """Max pooling; legal inputs divide evenly."""
        return F.max_pool2d(x, factors) if self.spec.ndim == 2 else F.max_pool3d(x, factors)


def channels_last(ndim: int) -> torch.memory_format:
    """The memory format in which convolutions are fastest, on CPUs and on GPUs."""
    return torch.channels_last if ndim == 2 else torch.channels_last_3d


def _crop(x: Tensor, lower: Sequence[int], shape: Shape) -> Tensor:
    """The middle of a skip as a tensor of its own, in x's memory format."""
    middle = x
    for axis, (start, length) in enumerate(zip(lower, shape), 2):
        middle = middle.narrow(axis, start, length)
    return middle if middle.shape == x.shape else middle.clone(memory_format=torch.preserve_format)


def _conv(ndim: int, inputs: int, outputs: int, kernel: Shape) -> nn.Conv2d | nn.Conv3d:
    # torch hands a CPU convolution whose last two kernel sizes are 1 to another library when it runs
    # on one thread, with another order of summation: one thread and two would differ in the last
    # bit. Dilation means nothing to a kernel size of 1, but keeps the choice independent of threads.
    dilation = tuple(2 if k == 1 else 1 for k in kernel)
    kind = nn.Conv2d if ndim == 2 else _Conv3d
    return kind(inputs, outputs, kernel, dilation=dilation)  # type: ignore[arg-type]


class _Conv3d(nn.Conv3d):
    """A 3D convolution that adds empty channels to an input with fewer than four.

    A volume with one channel is contiguous and channels-last at once; torch then takes its slow path
    (2.4 times the time, 3 times the memory, measured) and loses the memory format. Zeros change no sum.
    """

    def forward(self, x: Tensor) -> Tensor:
        missing = FEWEST_CHANNELS_3D - self.in_channels
        if missing <= 0:
            return super().forward(x)
        x = torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], dim=1)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, 0, 0, missing))
        return F.conv3d(x, weight, self.bias, self.stride, self.padding, self.dilation)


def _double_conv(spec: UNetSpec, level: int, inputs: int) -> nn.Sequential:
    """(valid convolution, optional batch norm, ReLU) twice."""
    layers: list[nn.Module] = []
    width = spec.widths[level]
    for channels in (inputs, width):
        layers.append(_conv(spec.ndim, channels, width, spec.kernels[level]))
        if spec.norm == "batch":
            layers.append(nn.BatchNorm2d(width) if spec.ndim == 2 else nn.BatchNorm3d(width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _up_conv(spec: UNetSpec, level: int) -> nn.Module:
    """Level + 1 to level: halve the channels, multiply the shape by the pooling factors."""
    below, width, pool = spec.widths[level + 1], spec.widths[level], spec.pools[level]
    if spec.upsampling == "transpose":
        kind = nn.ConvTranspose2d if spec.ndim == 2 else nn.ConvTranspose3d
        return kind(below, width, pool, stride=pool)  # type: ignore[arg-type]
    # Kept valid: the last voxel per axis is lost, and `UNetSpec.context` says so. Padding it back
    # would make it wrong, with every tile wrong at another place.
    factors = tuple(float(p) for p in pool)
    return nn.Sequential(
        nn.Upsample(scale_factor=factors, mode="nearest"), _conv(spec.ndim, below, width, pool)
    )


def _he_initialise(module: nn.Module) -> None:
    """Gaussian weights with standard deviation sqrt(2 / N), N incoming nodes (paper, section 3)."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.is_meta:  # only shapes are wanted; torch would take seconds over it
        return
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        # Kernel = stride: each output voxel sees one input voxel, so N is the input channels.
        nn.init.normal_(module.weight, std=(2.0 / module.in_channels) ** 0.5)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
