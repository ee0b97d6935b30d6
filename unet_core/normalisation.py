"""Intensities to numbers near 0 and 1: a global rule that the model stores, numbers found once per run.

Never per tile: a tile that was normalised by its own statistics would be computed by a function of
its own, and seams would show that no context removes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box, Grid, mirrored
from unet_core.volumes import Volume

Rule = Literal["percentiles", "mean_std"]
SAMPLE_VOXELS = 2**25  # per channel
_PIECE = 2**24  # voxels that are counted at a time
_BINS = 2**16
_FEWEST_BINS, _REFINEMENTS = 1024, 80  # a spread of fewer bins is measured again, at most so often
_RESOLUTION = 1e-7  # of a float32, relative


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
        offset, factor = self.numbers
        result: NDArray[np.float32] = data.astype(np.float32)
        result -= offset
        result *= factor
        return result

    @property
    def numbers(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What is subtracted, then multiplied by: float32 (channel, 1, 1, 1) each."""
        column = (-1, 1, 1, 1)
        offset = np.asarray(self.offset, np.float32).reshape(column)
        return offset, (1.0 / np.asarray(self.spread, np.float64)).astype(np.float32).reshape(column)

    def to_dict(self) -> dict[str, list[float]]:
        return {key: list(values) for key, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, list[float]]) -> Scale:
        return cls(tuple(data["offset"]), tuple(data["spread"]))


def measure(volume: Volume, rule: NormalisationRule, *, sample: int = SAMPLE_VOXELS) -> Scale:
    """Find a volume's numbers from at most about `sample` voxels per channel, spread evenly over it.

    The voxels depend on the volume's shape alone, so every run on it finds the same numbers.

    Raises
    ------
    InputError
        NaN or infinite intensities among the voxels looked at.
    """
    numbers = _moments(volume, sample) if rule.rule == "mean_std" else _percentiles(volume, rule, sample)
    # A flat volume has no spread; 1 keeps it finite.
    return Scale(tuple(float(a) for a, _ in numbers), tuple(float(b) or 1.0 for _, b in numbers))


def _moments(volume: Volume, sample: int) -> list[tuple[float, float]]:
    """Mean and standard deviation per channel; sums are of differences from the first voxel."""
    count = 0
    shift: NDArray[np.float64] | None = None
    first, second = (np.zeros(len(volume.channels)) for _ in range(2))
    for box, data in _sample(volume, sample):
        require_finite(data, box, volume, error=InputError)
        values = data.reshape(len(data), -1).astype(np.float64)
        shift = values[:, 0].copy() if shift is None else shift
        values -= shift[:, np.newaxis]
        first += values.sum(axis=1)
        second += (values**2).sum(axis=1)
        count += values.shape[1]
    means = first / count
    deviations = np.sqrt(np.maximum(second / count - means**2, 0))
    return [(a + m, d) for a, m, d in zip(shift if shift is not None else means, means, deviations)]


def _percentiles(volume: Volume, rule: NormalisationRule, sample: int) -> list[tuple[float, float]]:
    """Low percentile and the distance to the high one, per channel.

    Integers of up to 16 bits are counted exactly. Other types are counted in 65536 bins between their
    extremes, and again between the bins that matter while a hot voxel stretches these too far.
    """
    exact = volume.dtype.kind in "uib" and volume.dtype.itemsize <= 2
    if exact:
        start = 0.0 if volume.dtype.kind in "ub" else -_BINS / 2
        low = np.full(len(volume.channels), start)
        high = low + (_BINS - 1)
    else:
        low, high = _extremes(volume, sample)
    for _ in range(_REFINEMENTS):
        width = (high - low) / (_BINS - 1)
        places = [_places(c, rule) for c in _count(volume, sample, low, width)]
        found = [(a + w * first, w * (last - first)) for a, w, (first, last) in zip(low, width, places)]
        finest = 1.0 if volume.dtype.kind in "ui" else _RESOLUTION * np.maximum(abs(low), abs(high))
        coarse = np.array([last - first < _FEWEST_BINS for first, last in places]) & (width > finest)
        if exact or not coarse.any():
            break
        for channel in np.flatnonzero(coarse):
            first, last = places[channel]
            margin = last - first + 2  # what is cut off is counted in the outermost bins
            edges = low[channel] + width[channel] * np.clip([first - margin, last + margin], 0, _BINS - 1)
            low[channel], high[channel] = edges
    return found


def _extremes(volume: Volume, sample: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = np.full(len(volume.channels), np.inf), np.full(len(volume.channels), -np.inf)
    for box, data in _sample(volume, sample):
        require_finite(data, box, volume, error=InputError)
        low = np.minimum(low, data.min(axis=(1, 2, 3)))
        high = np.maximum(high, data.max(axis=(1, 2, 3)))
    return low, high


def _count(
    volume: Volume, sample: int, low: NDArray[np.float64], width: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Histogram per channel; what lies outside the bins is counted in the outermost ones."""
    counts = np.zeros((len(low), _BINS), np.int64)
    for _, data in _sample(volume, sample):
        for channel, values in enumerate(data):
            scaled = values.ravel().astype(np.float64)
            scaled -= low[channel]
            scaled /= width[channel] or 1.0
            bins = np.rint(np.clip(scaled, 0, _BINS - 1, out=scaled)).astype(np.int64)
            counts[channel] += np.bincount(bins, minlength=_BINS)
    return counts


def _places(counts: NDArray[np.int64], rule: NormalisationRule) -> tuple[int, int]:
    """The bins that hold the low and the high percentile."""
    below = np.cumsum(counts)
    ranks = [max(1, np.ceil(below[-1] * p / 100)) for p in (rule.low, rule.high)]
    first, last = np.searchsorted(below, ranks)
    return int(first), int(last)


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
        fix="replace such voxels; or choose an --roi without them and --normalisation model",
    )


def _sample(volume: Volume, sample: int) -> Iterator[tuple[Box, NDArray[Any]]]:
    """Boxes of whole chunks, evenly spread; all of them where the volume is small.

    Chunks that cannot be decoded are left out: blocks that need them will fail by name. Huge ones come in
    parts: counting takes 16 bytes for each voxel.
    """
    cell = tuple(min(n, c) for n, c in zip(volume.shape, volume.chunk_shape))
    grid = Grid(volume.box, cell)
    damage: DataError | None = None
    readable = 0
    for box in grid.spread(max(1, sample // prod(cell))):
        box = box.intersect(volume.box)
        try:
            data = volume.read(box)
        except DataError as error:
            damage = damage or error
            continue
        readable += 1
        yield from _parts(box, data)
    if damage is not None and readable == 0:
        raise damage


def _parts(box: Box, data: NDArray[Any]) -> Iterator[tuple[Box, NDArray[Any]]]:
    """A box and its voxels, cut along the longest axis where it has more than `_PIECE`."""
    axis = box.shape.index(max(box.shape))
    thick = max(1, box.shape[axis] * _PIECE // box.size)
    for start in range(box.lower[axis], box.upper[axis], thick):
        stop = min(start + thick, box.upper[axis])
        lower = tuple(start if a == axis else n for a, n in enumerate(box.lower))
        upper = tuple(stop if a == axis else n for a, n in enumerate(box.upper))
        part = Box(lower, upper)
        yield part, data[(slice(None), *part.relative_to(box.lower).slices)]
