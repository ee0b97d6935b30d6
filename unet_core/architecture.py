"""The U-Net as arithmetic: shapes, context, stride and cost, without torch (standard library only).

Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation" (MICCAI 2015), figure 1 and section 2.

    level 0   conv conv ---------------- crop, concatenate --------- conv conv  1x1 head
                       \\ pool                                  up /
    level 1             conv conv ------- crop, concat. -- conv conv
                                 \\ pool                up /
    level 2                       conv conv -------------

Every convolution is valid: it loses (kernel - 1) / 2 voxels per side. Positions line up by their
lower ends: output voxel j of the network lies on input voxel j + context.lower. Two facts make
tiles exact (DESIGN.md proves them, tests/test_architecture.py perturbs voxels to check them):

* pooling is equivariant only to shifts by the total stride, so tiles start at its multiples;
* an output box [a, b) whose corners are multiples of the stride depends on the input box
  [a - lower, b + upper) and on nothing else, and that input box is always legal: every pooling
  divides evenly. `upper` may exceed `lower`: poolings need a slack there, and "nearest" up-sampling
  followed by its 2x2 convolution, kept valid instead of padded, loses one voxel per level there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Literal, get_args

from unet_core.errors import InputError
from unet_core.geometry import Shape, ceil_div, round_up

Upsampling = Literal["nearest", "transpose"]
Norm = Literal["none", "batch"]
# Inputs with fewer channels get empty ones in 3D: `unet_core.model` says why.
FEWEST_CHANNELS_3D = 4
CHANNEL_MULTIPLE = 16


@dataclass(frozen=True, kw_only=True)
class LevelShapes:
    """Spatial shapes at one level for one input shape.

    `expand_in` is the shape after cropping and concatenation; at the bottom level, which has no
    expanding part, it and `output` are those of the contracting path.
    """

    input: Shape
    contracted: Shape
    expand_in: Shape
    output: Shape


@dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """A U-Net, whole: what `unet_core.model.UNet` builds and what a model folder stores.

    Parameters
    ----------
    in_channels
        Image channels: one, three for RGB, or as many as the microscope has.
    classes
        Output channels of the 1x1 head, background included; at least two.
    widths
        Feature channels per level from top to bottom; the paper has (64, 128, 256, 512, 1024).
    kernels
        Per level one odd kernel size per axis, used by all convolutions of that level. Anisotropic
        volumes want (1, 3, 3) at first.
    pools
        Between levels one pooling factor per axis, such as (1, 2, 2); one entry less than levels.
    upsampling
        "transpose": transposed convolution with kernel = stride = pool. "nearest": nearest-neighbour
        up-sampling, then a convolution with kernel = pool ("up-convolution 2x2").
    dropout
        Probability of the dropout at the end of the contracting path (paper, section 3.1); training only.
    norm
        "batch": batch norm after each convolution, folded into the convolutions for inference. Group,
        instance and layer norm are refused: they look at statistics of the tile, so that every tile
        would be computed by another function and seams would show that no context can remove.

    Raises
    ------
    InputError
        Any value that cannot make a network, named.
    """

    in_channels: int
    classes: int
    widths: tuple[int, ...]
    kernels: tuple[Shape, ...]
    pools: tuple[Shape, ...]
    upsampling: Upsampling = "transpose"
    dropout: float = 0.5
    norm: Norm = "none"

    def __post_init__(self) -> None:
        for name in ("kernels", "pools"):  # JSON brings lists
            object.__setattr__(self, name, tuple(tuple(entry) for entry in getattr(self, name)))
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.norm not in get_args(Norm):
            raise InputError(
                "this norm layer cannot be tiled: it looks at statistics of the tile, so tiles would not fit"
                if self.norm in ("group", "instance", "layer")
                else "this network cannot be built",
                where="norm",
                expected='"none", or "batch" (folded into the convolutions for inference)',
                found=repr(self.norm),
            )
        levels = len(self.widths)
        problems = [
            (self.in_channels < 1, "in_channels", "at least 1", self.in_channels),
            (self.classes < 2, "classes", "at least 2, background included", self.classes),
            (levels < 1 or any(w < 1 for w in self.widths), "widths", "positive, one per level", self.widths),
            (len(self.kernels) != levels, "kernels", f"{levels} entries, one per level", self.kernels),
            (len(self.pools) != levels - 1, "pools", f"{levels - 1} entries, between levels", self.pools),
            (
                len({len(axes) for axes in (*self.kernels, *self.pools)}) != 1
                or len(self.kernels[0]) not in (2, 3),
                "kernels and pools",
                "two or three axes each, all alike",
                f"{self.kernels} and {self.pools}",
            ),
            (
                any(k < 1 or k % 2 == 0 for ks in self.kernels for k in ks),
                "kernels",
                "odd sizes",
                self.kernels,
            ),
            (any(p < 1 for ps in self.pools for p in ps), "pools", "factors of at least 1", self.pools),
            (
                self.upsampling not in get_args(Upsampling),
                "upsampling",
                get_args(Upsampling),
                self.upsampling,
            ),
            (not 0 <= self.dropout < 1, "dropout", "0 <= dropout < 1", self.dropout),
        ]
        for wrong, where, expected, found in problems:
            if wrong:
                raise InputError("this network cannot be built", where=where, expected=expected, found=found)

    @classmethod
    def build(
        cls,
        *,
        ndim: int,
        depth: int,
        base: int = 64,
        in_channels: int = 1,
        classes: int = 2,
        anisotropic_levels: int = 0,
        upsampling: Upsampling = "transpose",
        dropout: float = 0.5,
        norm: Norm = "none",
    ) -> UNetSpec:
        """The regular family: `base` channels doubling per level over `depth` poolings.

        `anisotropic_levels` levels from the top neither pool nor convolve along z.
        """
        if ndim not in (2, 3) or depth < 0 or not 0 <= anisotropic_levels <= depth:
            raise InputError(
                "this network cannot be built",
                expected="ndim 2 or 3, depth >= 0, 0 <= anisotropic_levels <= depth",
                found=f"ndim {ndim}, depth {depth}, anisotropic_levels {anisotropic_levels}",
            )
        if ndim == 2 and anisotropic_levels:
            raise InputError("a 2D network has no z axis to leave out", where="anisotropic_levels")
        flat = range(anisotropic_levels)
        return cls(
            in_channels=in_channels,
            classes=classes,
            widths=tuple(base * 2**level for level in range(depth + 1)),
            kernels=tuple((1, 3, 3) if level in flat else (3,) * ndim for level in range(depth + 1)),
            pools=tuple((1, 2, 2) if level in flat else (2,) * ndim for level in range(depth)),
            upsampling=upsampling,
            dropout=dropout,
            norm=norm,
        )

    @classmethod
    def paper(cls) -> UNetSpec:
        """Figure 1 of the paper: 572x572 grey values in, 388x388x2 logits out."""
        return cls.build(ndim=2, depth=4, base=64)

    @property
    def ndim(self) -> int:
        return len(self.kernels[0])

    @property
    def depth(self) -> int:
        """Number of poolings."""
        return len(self.pools)

    @property
    def stride(self) -> Shape:
        """Total down-sampling per axis: tile outputs start at its multiples."""
        return tuple(prod(pool[axis] for pool in self.pools) for axis in range(self.ndim))

    @property
    def context(self) -> tuple[Shape, Shape]:
        """(lower, upper): input voxels beyond an output box whose corners are multiples of the stride."""
        axes = [self._axis(axis) for axis in range(self.ndim)]
        return tuple(axis.lower for axis in axes), tuple(
            axis.reach(stride) - stride - axis.lower for axis, stride in zip(axes, self.stride)
        )

    def read_shape(self, write_shape: Sequence[int]) -> Shape:
        """The legal input shape for an output box whose corners are multiples of the stride."""
        lower, upper = self.context
        return tuple(round_up(w, s) + a + b for w, s, a, b in zip(write_shape, self.stride, lower, upper))

    def levels(self, input_shape: Sequence[int]) -> tuple[LevelShapes, ...]:
        """Shapes at every level, top to bottom.

        Raises
        ------
        InputError
            An input that a pooling would not divide evenly, or too small to leave any output.
        """
        if len(input_shape) != self.ndim:
            raise InputError(
                "wrong number of axes for this network", expected=self.ndim, found=len(input_shape)
            )
        axes = [self._axis(axis).sizes(n) for axis, n in enumerate(input_shape)]
        if any(axis is None for axis in axes):
            legal = self.read_shape(self.legal_write_shape(input_shape))
            raise InputError(
                "this input shape is not legal for the network",
                expected=f"a shape that every pooling divides evenly, such as {legal}",
                found=tuple(input_shape),
            )
        per_axis = [axis for axis in axes if axis is not None]
        return tuple(
            LevelShapes(
                input=tuple(axis[level][0] for axis in per_axis),
                contracted=tuple(axis[level][1] for axis in per_axis),
                expand_in=tuple(axis[level][2] for axis in per_axis),
                output=tuple(axis[level][3] for axis in per_axis),
            )
            for level in range(self.depth + 1)
        )

    def legal_write_shape(self, input_shape: Sequence[int]) -> Shape:
        """The largest stride-multiple output that fits into an input of this shape; at least one stride."""
        lower, upper = self.context
        return tuple(
            max((n - a - b) // s, 1) * s for n, s, a, b in zip(input_shape, self.stride, lower, upper)
        )

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Spatial shape of the logits, surplus beyond the last whole stride included (572 -> 388)."""
        return self.levels(input_shape)[0].output

    def dependence(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """Input interval that the outputs [start, stop) of one axis can depend on, in input positions.

        Output j lies on input j + context.lower; position 0 is the input's first voxel.
        """
        return self._axis(axis).dependence(start, stop)

    def crop_lower(self, level: int) -> Shape:
        """Voxels cropped from the lower side of the skip connection at `level`, per axis."""
        return tuple(self._axis(axis).crops[level] for axis in range(self.ndim))

    def macs(self, input_shape: Sequence[int]) -> int:
        """Multiply-accumulates of one forward pass over one input of this spatial shape."""
        total = 0
        for level, shapes in enumerate(self.levels(input_shape)):
            kernel = self.kernels[level]
            width = self.widths[level]
            above = self.widths[level - 1] if level else self.in_channels
            taps = prod(kernel)
            middle = tuple(n - k + 1 for n, k in zip(shapes.input, kernel))
            total += taps * width * (above * prod(middle) + width * prod(shapes.contracted))
            if level < self.depth:
                pool = self.pools[level]
                below = self.widths[level + 1]
                middle = tuple(n - k + 1 for n, k in zip(shapes.expand_in, kernel))
                # A transposed convolution with kernel = stride spends one tap per output voxel.
                up_taps = prod(pool) if self.upsampling == "nearest" else 1
                total += up_taps * below * width * prod(shapes.expand_in)
                total += taps * width * (2 * width * prod(middle) + width * prod(shapes.output))
        return total + self.widths[0] * self.classes * prod(self.levels(input_shape)[0].output)

    def macs_per_voxel(self) -> float:
        """Multiply-accumulates per output voxel of an endless tile: the arithmetic that is useful."""
        reach = tuple(s * 4096 for s in self.stride)
        return self.macs(self.read_shape(reach)) / prod(reach)

    def padded(self) -> UNetSpec:
        """The network as inference computes it: channels filled up with empty ones to multiples of 16.

        CPU kernels for other numbers of channels split their sums by the number of threads, and are slower.
        """
        widths = tuple(round_up(width, CHANNEL_MULTIPLE) for width in self.widths)
        return replace(self, widths=widths, classes=round_up(self.classes, CHANNEL_MULTIPLE), norm="none")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `UNetSpec(**spec.to_dict())` gives the same spec."""
        return asdict(self)

    def _axis(self, axis: int) -> _Axis:
        return _Axis(
            kernels=tuple(kernel[axis] for kernel in self.kernels),
            pools=tuple(pool[axis] for pool in self.pools),
            trims=tuple(pool[axis] - 1 if self.upsampling == "nearest" else 0 for pool in self.pools),
        )


@dataclass(frozen=True)
class _Axis:
    """The network along one axis. `trims`: voxels that up-sampling loses at the upper end, per pooling."""

    kernels: Shape
    pools: Shape
    trims: Shape

    def _loss(self, level: int) -> int:
        """Voxels that the two convolutions of a level lose, both sides together."""
        return 2 * (self.kernels[level] - 1)

    @property
    def crops(self) -> Shape:
        """Lower crop of the skip per level: how far the path through the levels below has moved in."""
        crops: list[int] = []
        moved = 0  # lower offset of level l+1's output against its own input
        for level in reversed(range(len(self.pools))):
            below = level + 1
            moved = self._loss(below) // 2 if below == len(self.pools) else moved
            crops.append(self.pools[level] * moved)
            # Contracting and expanding convolutions of this level move in by half their loss each.
            moved = self._loss(level) // 2 + crops[-1] + self._loss(level) // 2
        return tuple(reversed(crops))

    @property
    def lower(self) -> int:
        """Input position of output voxel 0."""
        if not self.pools:
            return self._loss(0) // 2
        return self._loss(0) + self.crops[0]

    def dependence(self, start: int, stop: int, level: int = 0) -> tuple[int, int]:
        if level == len(self.pools):
            return start, stop + self._loss(level)
        start, stop = start, stop + self._loss(level)
        pool, trim, crop = self.pools[level], self.trims[level], self.crops[level]
        low, high = self.dependence(start // pool, ceil_div(stop + trim, pool), level + 1)
        low, high = min(low * pool, start + crop), max(high * pool, stop + crop)
        return low, high + self._loss(level)

    def reach(self, stop: int) -> int:
        """End of the input that outputs [0, stop) need."""
        return self.dependence(0, stop)[1]

    def sizes(self, n: int, level: int = 0) -> list[tuple[int, int, int, int]] | None:
        """(input, contracted, expand_in, output) per level, or None for an illegal size."""
        contracted = n - self._loss(level)
        if contracted < 1:
            return None
        if level == len(self.pools):
            return [(n, contracted, contracted, contracted)]
        if contracted % self.pools[level]:
            return None
        below = self.sizes(contracted // self.pools[level], level + 1)
        if below is None:
            return None
        expand_in = below[0][3] * self.pools[level] - self.trims[level]
        output = expand_in - self._loss(level)
        if output < 1 or contracted < self.crops[level] + expand_in:
            return None
        return [(n, contracted, expand_in, output), *below]
