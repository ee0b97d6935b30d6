"""What a run's object table is made of: plain data in the run record, and the names of its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import frexp, isfinite, ldexp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape
from unet_core.table.layout import object_row
from unet_core.table.sums import Sums

_STEPS = 24  # bits: floating-point intensities are told apart as finely as float32 does at their upper end


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """How objects of one label volume are measured. Shapes, sizes and positions are z, y, x.

    Attributes
    ----------
    extent
        What was segmented: an ROI, or the whole volume. Its faces are the border that objects touch.
    planar
        The volume is one plane: objects have two axes, and no face in z.
    voxel_size, origin, unit
        Of the label volume: edges of a voxel, centre of voxel 0.
    chunk, shard
        Of the label array: what `fragments` counts, and what a scheduling block is made of.
    channels, quanta
        Of the image: which are measured, and what each is summed in multiples of (see `quantum_of`).
    classes
        Names of the classes; none where objects have no class.
    """

    volume: Shape
    extent: Box
    planar: bool
    voxel_size: tuple[float, ...]
    origin: tuple[float, ...]
    unit: str | None
    chunk: Shape
    shard: Shape
    channels: tuple[int, ...] = ()
    quanta: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "extent": str(self.extent)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TablePlan:
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list | tuple)}
        return cls(**{**data, **lists, "extent": Box.parse(data["extent"])})

    def measure(
        self,
        labels: NDArray[Any],
        box: Box,
        *,
        image: NDArray[Any] | None = None,
        classes: NDArray[Any] | None = None,
    ) -> Sums:
        """`Sums.of_block` as this plan wants it: `image` (c, z, y, x) and `classes` where it has some."""
        return Sums.of_block(
            labels,
            box,
            volume=self.volume,
            chunk=self.chunk,
            image=image,
            quanta=self.quanta,
            classes=classes,
            kinds=len(self.classes),
        )

    @property
    def layout(self) -> np.dtype[Any]:
        """Of its partial sums."""
        return object_row(kinds=len(self.classes), channels=len(self.channels))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        pairs = ("yy", "xx", "yx") if self.planar else ("zz", "yy", "xx", "zy", "zx", "yx")
        lengths = ("major", "minor") if self.planar else ("major", "middle", "minor")
        return (
            "id",
            *(("class",) if self.classes else ()),
            "voxels",
            "volume",
            *("z0", "y0", "x0", "z1", "y1", "x1", "z", "y", "x"),
            *(f"{axis}_physical" for axis in "zyx"),
            *(f"axis_{length}" for length in lengths),
            *(f"moment_{pair}" for pair in pairs),
            *(f"{name}_{c}" for c in self.channels for name in ("mean", "std", "min", "max")),
            "touches_border",
            "blocks",
        )


def quantum_of(dtype: np.dtype[Any], lower: float, upper: float) -> float:
    """What intensities of a data type are summed in multiples of, given the range that most of them lie in.

    1 for integers of up to 32 bits: nothing is lost. Else a power of two, 2**-24 to 2**-25 of the range: the
    error of a mean is below half of it, and intensities of up to 128 times the range can be summed.
    """
    if dtype.kind in "uib" and dtype.itemsize <= 4:
        return 1.0
    width = max(abs(lower), abs(upper), upper - lower)
    if not (isfinite(width) and width > 0):
        return 1.0
    return ldexp(1.0, frexp(width)[1] - 1 - _STEPS)


def quanta_of(dtype: np.dtype[Any], lower: Sequence[float], upper: Sequence[float]) -> tuple[float, ...]:
    """`quantum_of` every channel of a scale."""
    return tuple(quantum_of(dtype, a, b) for a, b in zip(lower, upper))
