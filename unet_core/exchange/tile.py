"""The network as other software tiles: as many voxels out as in, a halo on both sides to crop.

bioimage.io knows one halo per axis, the same on both sides, and blocks whose inner parts lie side by side
from the volume's first voxel on. Our context may differ between the sides, and an exact tile has no other
size than a multiple of the stride plus the context (unet_core/DESIGN.md, section 1). Both fit together
when the tile crops its own input and fills its output up again:

    input   |<--- halo --->|<---- k * stride ---->|<--- halo --->|
            |   |<- lower -|----------------------|- upper ->|   |    what the network reads
    output  |   zeros      |   the exact logits   |    zeros     |

So a program that pads the volume's faces by reflection, tiles and crops the halo gets our own
segmentation's numbers, wherever its inner parts begin at multiples of the stride.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_core.architecture import UNetSpec
from unet_core.geometry import Shape
from unet_core.model import UNet


@dataclass(frozen=True)
class TileShape:
    """Sizes of a tile per axis: `minimum + n * step` in and out, of which `halo` on each side is cropped."""

    halo: Shape
    step: Shape
    crop: tuple[Shape, Shape]  # of the input, lower and upper, before the network
    surplus: Shape  # of the network's output, at the upper end

    @classmethod
    def of(cls, spec: UNetSpec) -> TileShape:
        lower, upper = spec.context
        halo = tuple(max(a, b) for a, b in zip(lower, upper))
        crop = tuple(h - a for h, a in zip(halo, lower)), tuple(h - b for h, b in zip(halo, upper))
        output = spec.output_shape(spec.read_shape(spec.stride))
        return cls(halo, spec.stride, crop, tuple(n - s for n, s in zip(output, spec.stride)))

    @property
    def minimum(self) -> Shape:
        return tuple(2 * h + s for h, s in zip(self.halo, self.step))

    def near(self, size: int) -> Shape:
        """The smallest tile whose inner part has at least `size` voxels along each axis."""
        return tuple(2 * h + -(-size // s) * s for h, s in zip(self.halo, self.step))


class TileNetwork(nn.Module):
    """(N, in_channels, *tile) to logits (N, classes, *tile), zero in the halo."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        self.shape = TileShape.of(network.spec)

    def forward(self, x: Tensor) -> Tensor:
        tile = self.shape
        logits = self.network(_inside(x, *tile.crop))
        logits = _inside(logits, (0,) * len(tile.halo), tile.surplus)
        return F.pad(logits, [h for h in reversed(tile.halo) for _ in range(2)])

    @torch.inference_mode()
    def probabilities(self, x: Tensor) -> Tensor:
        """Softmax over the classes, as bioimage.io's postprocessing computes it; 1 / classes in the halo."""
        return torch.softmax(self(x), dim=1)


def _inside(x: Tensor, lower: Shape, upper: Shape) -> Tensor:
    inner = (slice(a, n - b) for a, b, n in zip(lower, upper, x.shape[2:]))
    return x[(slice(None), slice(None), *inner)]
