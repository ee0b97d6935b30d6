"""Intensities to numbers near 0 and 1: a global rule that the model stores, numbers found once per run.

Never per tile: a tile that was normalised by its own statistics would be computed by a function of
its own, and seams would show that no context removes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Grid, mirrored
from unet_core.volumes import Volume

Rule = Literal["percentiles", "mean_std"]
SAMPLE_VOXELS = 2**25  # per channel; percentiles of so many voxels vary by less than a grey value
_BINS = 2**16


@dataclass(frozen=True, kw_only=True)
class NormalisationRule:
    """How an intensity scale is found.

    "percentiles": the `low` percentile becomes 0 and the `high` one 1, without clipping.
    "mean_std": the mean becomes 0 and the standard deviation 1.
    """

    rule: Rule = "percentiles"
    low: float = 1.0
    high: float = 99.0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule) or not 0 <= self.low < self.high <= 100:
            raise InputError(
                "this normalisation is not known",
                expected=f"one of {get_args(Rule)}, with 0 <= low < high <= 100",
                found=f"{self.rule}, {self.low}, {self.high}",
            )


@dataclass(frozen=True)
class Scale:
    """Numbers of one volume, one pair per channel: x -> (x - offset) / spread, in float32."""

    offset: tuple[float, ...]
    spread: tuple[float, ...]

    def apply(self, data: NDArray[Any]) -> NDArray[np.float32]:
        """(channel, z, y, x) of any real type to float32; every voxel by the same arithmetic."""
        column = (-1, 1, 1, 1)
        offset = np.asarray(self.offset, np.float32).reshape(column)
        factor = (1.0 / np.asarray(self.spread, np.float64)).astype(np.float32).reshape(column)
        result: NDArray[np.float32] = data.astype(np.float32)
        result -= offset
        result *= factor
        return result

    def to_dict(self) -> dict[str, list[float]]:
        return {key: list(values) for key, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, list[float]]) -> Scale:
        return cls(tuple(data["offset"]), tuple(data["spread"]))


def measure(volume: Volume, rule: NormalisationRule, *, sample: int = SAMPLE_VOXELS) -> Scale:
    """Find a volume's numbers from at most about `sample` voxels per channel, spread evenly over it.

    The voxels depend on the volume's shape alone, so every run on it finds the same numbers. Integers of
    up to 16 bits are counted exactly; other types in 65536 bins between their extremes.

    Raises
    ------
    InputError
        NaN or infinite intensities among the voxels looked at.
    """
    # Every voxel for small integers; otherwise first the extremes, then the bins between them.
    exact = volume.dtype.kind in "uib" and volume.dtype.itemsize <= 2
    channels = len(volume.channels)
    if exact:
        info = np.iinfo(volume.dtype if volume.dtype.kind != "b" else np.uint8)
        low = np.full(channels, float(info.min))
        width = np.ones(channels)
    else:
        low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
        for box, data in _sample(volume, sample):
            require_finite(data, box, volume, error=InputError)
            low = np.minimum(low, data.min(axis=(1, 2, 3)))
            high = np.maximum(high, data.max(axis=(1, 2, 3)))
        width = np.maximum(high - low, np.finfo(np.float64).tiny) / (_BINS - 1)
    counts = np.zeros((channels, _BINS), np.int64)
    for _, data in _sample(volume, sample):
        for channel, values in enumerate(data):
            if exact:
                bins = values.ravel().astype(np.int64) - int(low[channel])
            else:
                scaled = (values.ravel().astype(np.float64) - low[channel]) / width[channel]
                bins = np.rint(scaled).astype(np.int64)
            counts[channel] += np.bincount(bins, minlength=_BINS)
    numbers = [_numbers(c, a, w, rule) for c, a, w in zip(counts, low, width)]
    return Scale(tuple(n[0] for n in numbers), tuple(n[1] for n in numbers))


def require_finite(data: NDArray[Any], box: Box, volume: Volume, *, error: type[Exception]) -> None:
    """Refuse NaN and infinite intensities, naming the first one's place."""
    if data.dtype.kind != "f" or np.isfinite(data).all():
        return
    channel, *place = (int(i) for i in np.argwhere(~np.isfinite(data))[0])
    # Beyond a face lies the mirror image of the voxel to mend.
    position = tuple(mirrored(a + p, n) for a, p, n in zip(box.lower, place, volume.shape))
    raise error(  # type: ignore[call-arg]
        "NaN or infinite intensity",
        where=f"{volume.where} at z, y, x = {position}, channel {volume.channels[channel]}",
        expected="finite numbers",
        found=data[(channel, *place)],
        fix="replace such voxels, or choose an --roi without them",
    )


def _numbers(
    counts: NDArray[np.int64], low: float, width: float, rule: NormalisationRule
) -> tuple[float, float]:
    # In bins, not in intensities: rounding would give a flat float volume a spread of 1e-14.
    bins = np.arange(len(counts), dtype=np.float64)
    total = int(counts.sum())
    if rule.rule == "mean_std":
        mean = float((counts * bins).sum() / total)
        first, spread = mean, float(np.sqrt((counts * (bins - mean) ** 2).sum() / total))
    else:
        below = np.cumsum(counts)
        first, last = (
            float(np.searchsorted(below, max(1, np.ceil(total * p / 100)))) for p in (rule.low, rule.high)
        )
        spread = last - first
    # A flat volume has no spread; 1 keeps it finite.
    return low + width * first, width * spread or 1.0


def _sample(volume: Volume, sample: int) -> Iterator[tuple[Box, NDArray[Any]]]:
    """Boxes of whole chunks, evenly spread in raster order; all of them where the volume is small."""
    cell = tuple(min(n, c) for n, c in zip(volume.shape, volume.chunk_shape))
    grid = Grid(volume.box, cell)
    per_cell = Box.of_shape(cell).size
    wanted = max(1, min(len(grid), sample // per_cell))
    for k in range(wanted):
        box = grid[k * len(grid) // wanted].intersect(volume.box)
        yield box, volume.read(box)
