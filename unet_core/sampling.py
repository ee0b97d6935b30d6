"""Where training patches come from: random places in labelled regions, read lazily, augmented, with context.

    image    |--lower--|== patch ==|--upper--|     what the network reads; mirrored beyond the volume's faces
    labels             |== patch ==|               inside the region; beyond it `IGNORE`, and border weight 0

source, voxel → transform → box → read just what these need → warp → recolour. A patch is a function of
(seed, step, item) alone: who draws it, in which thread, and when, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from unet_core.augment import AugmentSettings, Spatial, Transform, recolour
from unet_core.errors import DataError, InputError
from unet_core.geometry import Box, Shape
from unet_core.labelling import LabelledRegion, Labelling
from unet_core.normalisation import Scale, require_finite
from unet_core.placement import Places
from unet_core.tiling import Footprint

Balance = Literal["class", "object"]


@dataclass(frozen=True)
class Patch:
    """One patch: what the network reads, and what it should find.

    image: float32 (channel, z, y, x), normalised, with the network's context; classes: uint8 (z, y, x);
    border: float32 (z, y, x), the border term of the weight map, or None. All contiguous. Class voxel j lies
    on image voxel j + lower context. `box` is where it was taken from, before any deformation.
    """

    source: int
    box: Box
    image: NDArray[np.float32]
    classes: NDArray[np.uint8]
    border: NDArray[np.float32] | None


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws patches. Safe to use from several threads.

    Parameters
    ----------
    scales
        Per source, the intensity scale of its image.
    patch
        Shape of the network's output that gets a loss, z, y, x. Where a region is shorter, the patch
        covers it and the rest is `IGNORE`.
    places
        Found in these sources.
    foreground
        Share of the patches that are placed on a voxel of a class above 0 or of an object, and hold it also
        when they are deformed. The others lie anywhere in the regions.
    balance
        Whether these are drawn evenly among classes or among objects.
    weights
        Per source, how often it is drawn beside what its size makes due; all alike by default.

    Raises
    ------
    InputError
        Settings that do not go together, named.
    """

    sources: tuple[LabelledRegion, ...]
    scales: tuple[Scale, ...]
    labelling: Labelling
    footprint: Footprint
    patch: Shape
    augment: AugmentSettings
    places: Places
    foreground: float = 0.5
    balance: Balance = "class"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.sources)
        weights = self.weights if self.weights is not None else (1.0,)
        problems = (
            (not count or len(self.scales) != count, "one scale per source, at least one"),
            (len(self.places.sources) != count, "places that were found in these sources"),
            (len(self.places.counts) != self.labelling.classes, "places of as many classes"),
            (len(self.patch) != 3 or any(n < 1 for n in self.patch), "patch: three positive sizes"),
            (not 0 <= self.foreground <= 1, "foreground: a share from 0 to 1"),
            (self.balance not in get_args(Balance), f"balance: one of {get_args(Balance)}"),
            (
                self.weights is not None and len(self.weights) != count,
                f"weights: one per source, {count}",
            ),
            (min(weights) < 0 or max(weights) <= 0, "weights: at least 0, one above 0"),
        )
        for wrong, expected in problems:
            if wrong:
                raise InputError("patches cannot be drawn so", expected=expected)
        if self.foreground and not self._targets:
            raise InputError(
                "no patch can be placed on foreground",
                where=f'balance "{self.balance}"',
                expected="voxels of a class above 0, or objects, in a source of weight above 0",
                found="none",
            )

    def draw(self, rng: np.random.Generator, *, augmented: bool = True) -> Patch:
        """One patch. Not `augmented`: at the same place, as the volume holds it.

        Raises
        ------
        DataError
            NaN or infinite intensities, or a label that the network has no class for, with their place.
        """
        index, voxel, transform, box = self._place(rng)
        source, spatial = self.sources[index], self._spatial[index]
        if not augmented:
            transform = spatial.still()
        view = transform.place(box, voxel)
        data = source.image.read(view.image_box)
        require_finite(data, view.image_box, source.image, error=DataError)
        image = view.image(self.scales[index].apply(data))
        if augmented:
            image = recolour(image, self.augment, rng, voxel_size=source.image.voxel_size)
        border = self._borders.border_of(source, view.label_box)
        return Patch(
            index,
            box,
            image,
            view.labels(self.labelling.read(source, view.label_box)),
            None if border is None else view.labels(border, linear=True),
        )

    def where(self, rng: np.random.Generator) -> str:
        """Where `draw` would take its patch from, for people; nothing is read."""
        index, _, _, box = self._place(rng)
        return f"{self.sources[index].image.url} in {box}"

    @property
    def largest_read(self) -> Shape:
        """No patch reads more voxels along an axis."""
        return tuple(max(lengths) for lengths in zip(*(s.largest_read for s in self._spatial)))

    @property
    def kept_bytes(self) -> int:
        """Most that border maps take which are kept between draws."""
        return sum(self._borders.cached_bytes(source) for source in self.sources)

    @cached_property
    def _spatial(self) -> tuple[Spatial, ...]:
        """Per source, because of its voxel size."""
        return tuple(
            Spatial(
                settings=self.augment,
                footprint=self.footprint,
                patch=self.patch,
                voxel_size=source.image.voxel_size,
            )
            for source in self.sources
        )

    @cached_property
    def _borders(self) -> Labelling:
        """The labelling, to ask for border maps; without a cache where all sources' maps do not fit together:
        patches come from any source, and a cell would be dropped before the next one comes by."""
        known = self.labelling
        together = sum(known.cached_bytes(source) for source in self.sources)
        return known if together <= known.cache_bytes else replace(known, cache_bytes=0)

    @cached_property
    def _sizes(self) -> NDArray[np.float64]:
        """Per source, its due: voxels times weight."""
        weights = np.ones(len(self.sources)) if self.weights is None else np.array(self.weights)
        sizes = np.array([source.region.size for source in self.sources], np.float64)
        return sizes * weights

    @cached_property
    def _targets(self) -> tuple[_Target, ...]:
        """What placed patches are drawn evenly among: the classes above 0, or the objects as one lot."""
        found = self.places.sources
        stands_for = self._sizes / [f.probed for f in found]  # what was seen stands for the whole region
        if self.balance == "object":
            lots = [_Target(stands_for * [f.object_count for f in found], tuple(f.objects for f in found))]
        else:
            lots = [
                _Target(stands_for * [f.counts[k] for f in found], tuple((f.voxels[k],) for f in found))
                for k in range(1, self.labelling.classes)
            ]
        return tuple(lot for lot in lots if lot.amounts.any())

    def _place(self, rng: np.random.Generator) -> tuple[int, Shape | None, Transform, Box]:
        """All that is drawn but colours: a source, a voxel that the patch must hold, its turn, its box."""
        index, voxel = self._choose(rng)
        transform = self._spatial[index].draw(rng)
        return index, voxel, transform, _box(self.sources[index].region, self.patch, voxel, rng)

    def _choose(self, rng: np.random.Generator) -> tuple[int, Shape | None]:
        """A source, and a voxel that the patch must hold, if any."""
        if rng.random() >= self.foreground:
            return _weighted(self._sizes, rng), None
        target = self._targets[int(rng.integers(len(self._targets)))]
        index = _weighted(target.amounts, rng)
        region = self.sources[index].region
        things = target.things[index]
        voxels = things[int(rng.integers(len(things)))]
        rest, x = divmod(voxels[int(rng.integers(len(voxels)))], region.shape[2])
        z, y = divmod(rest, region.shape[1])
        return index, tuple(a + p for a, p in zip(region.lower, (z, y, x)))


@dataclass(frozen=True)
class _Target:
    """Per source, how much of it there is, and the things it has there, each with voxels (flat indices)."""

    amounts: NDArray[np.float64]
    things: tuple[tuple[tuple[int, ...], ...], ...]


def generator(seed: int, step: int, item: int) -> np.random.Generator:
    """The random numbers of one patch of one step, whoever asks for them."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, step, item])))


def _weighted(amounts: NDArray[np.float64], rng: np.random.Generator) -> int:
    """An index, drawn in proportion to the amounts."""
    ends = np.cumsum(amounts)
    return int(np.searchsorted(ends[:-1], rng.random() * ends[-1], side="right"))


def _box(region: Box, patch: Shape, voxel: Shape | None, rng: np.random.Generator) -> Box:
    """A box of the patch's shape inside the region, around the voxel; a longer one covers the region."""
    corner = []
    for axis, (start, stop, length) in enumerate(zip(region.lower, region.upper, patch)):
        first, last = sorted((start, stop - length))
        if voxel is not None:
            first, last = max(first, voxel[axis] - length + 1), min(last, voxel[axis])
        corner.append(int(rng.integers(first, last + 1)))
    return Box(tuple(corner), tuple(c + n for c, n in zip(corner, patch)))
