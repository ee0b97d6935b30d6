"""Where training patches come from: random boxes of labelled regions, read lazily, with their context.

    image    |--margin--|== patch ==|--margin--|     read from the volume, mirrored beyond its faces
    labels              |== patch ==|                inside the region; beyond it `IGNORE`

The margin is the same on both sides, so that a flipped patch still holds its whole context.
A patch is a function of (seed, step, item) alone: who draws it, and when, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import DataError, InputError, UnetFlowsError
from unet_core.geometry import Box, Grid, Shape
from unet_core.normalisation import Scale, require_finite
from unet_core.targets import IGNORE, MARGIN, Target, classes_of
from unet_core.volumes import Volume

PROBE_VOXELS = 2**26  # labels looked at, per region, before a training without foreground is refused


@dataclass(frozen=True, kw_only=True)
class LabelledRegion:
    """An image, its labels and the part of them that is labelled, z, y, x, half-open.

    `ignore` is the label of voxels that nobody labelled. The image may be read beyond the region, as
    context; its labels never are.

    Raises
    ------
    InputError
        Labels of another shape than the image's or of several channels, a region that is empty or
        reaches beyond the volume.
    """

    image: Volume
    labels: Volume
    region: Box
    ignore: int | None = None

    def __post_init__(self) -> None:
        name = _name(self.labels)
        if self.labels.shape != self.image.shape:
            raise InputError(
                "image and labels differ in shape",
                where=name,
                expected=f"{self.image.shape}, as {_name(self.image)} has",
                found=self.labels.shape,
            )
        if len(self.labels.channels) != 1:
            raise InputError("labels have one channel", where=name, found=len(self.labels.channels))
        if self.labels.dtype.kind not in "uib":
            raise InputError("labels must be integers", where=name, found=self.labels.dtype)
        if not self.region or not self.image.box.contains(self.region):
            raise InputError(
                "this region is empty" if not self.region else "this region reaches beyond the volume",
                where=name,
                expected=f"a box within {self.image.box}",
                found=self.region,
            )

    @classmethod
    def whole(cls, image: Volume, labels: Volume, *, ignore: int | None = None) -> LabelledRegion:
        """Labels that cover the whole volume."""
        return cls(image=image, labels=labels, region=image.box, ignore=ignore)

    def overlaps(self, other: LabelledRegion) -> bool:
        """Whether both hold voxels of one image in common."""
        same = all(
            getattr(self.image, name) == getattr(other.image, name) for name in ("url", "path", "timepoint")
        )
        return same and bool(self.region.intersect(other.region))

    def identity(self) -> dict[str, Any]:
        """JSON-ready: what was trained on."""
        return {
            "image": self.image.identity(),
            "labels": self.labels.identity(),
            "region": str(self.region),
            "ignore": self.ignore,
        }


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What labels mean to a network: target, number of classes, and whether planes stand alone (2D)."""

    target: Target
    classes: int
    planar: bool = False

    def read(
        self, source: LabelledRegion, box: Box, *, error: type[UnetFlowsError] = DataError
    ) -> NDArray[np.uint8]:
        """Classes of a box, uint8 (z, y, x); `IGNORE` outside the region.

        Raises
        ------
        error
            A label that the network has no class for.
        """
        inside = box.intersect(source.region)
        classes = np.full(box.shape, IGNORE, np.uint8)
        if not inside:
            return classes
        labels = source.labels.read(inside.grow((MARGIN,) * 3, (MARGIN,) * 3))[0]
        try:
            found = classes_of(labels, self.target, planar=self.planar, ignore=source.ignore)
        except InputError as problem:
            raise error(
                problem.problem,
                where=f"{_name(source.labels)} in {inside}",
                expected=problem.expected,
                found=problem.found,
                fix=problem.fix,
            ) from None
        beyond = (found >= self.classes) & (found != IGNORE)
        if beyond.any():
            raise error(
                "the labels hold a class that the network does not have",
                where=f"{_name(source.labels)} in {inside}",
                expected=f"classes 0 to {self.classes - 1}",
                found=f"class {found[beyond].max()}",
                fix="give the network more classes, or name this label as the one to ignore",
            )
        classes[inside.relative_to(box.lower).slices] = found
        return classes

    def probe(self, sources: Sequence[LabelledRegion], *, voxels: int = PROBE_VOXELS) -> NDArray[np.int64]:
        """Voxels per class among at most about `voxels` of each region, spread evenly over it.

        Raises
        ------
        InputError
            A label that the network has no class for; none above class 0 in any region.
        """
        counts = np.zeros(self.classes, np.int64)
        for source in sources:
            for box in _spread(source, voxels):
                found = self.read(source, box, error=InputError)
                counts += np.bincount(found.ravel(), minlength=IGNORE + 1)[: self.classes]
        if not counts[1:].any():
            regions = "; ".join(f"{_name(s.labels)} in {s.region}" for s in sources)
            raise InputError(
                "nothing is labelled here" if not counts.any() else "there is only background here",
                where=regions,
                expected=f'at least one voxel above class 0 for the target "{self.target}"',
                found=f"{counts[0]:,} labelled voxels, all of class 0",
                fix="name a region that holds labelled objects",
            )
        return counts


@dataclass(frozen=True)
class Patch:
    """One patch: raw intensities (channel, z, y, x) with the margin, classes (z, y, x) without it."""

    source: int
    box: Box
    image: NDArray[np.float32]
    classes: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws patches from sources, each weighted by the size of its region.

    Parameters
    ----------
    scales
        Per source, the intensity scale of its image.
    patch
        Shape of the network's output that gets a loss, z, y, x. Where a region is shorter, the patch
        covers it and the rest is `IGNORE`.
    margin
        Image voxels read beyond the patch, on both sides of each axis.
    foreground
        Share of the patches that must hold a voxel of a class drawn evenly from `wanted`. Positions
        are redrawn for it up to `redraws` times, which reads labels only; the last one is then taken.
    """

    sources: tuple[LabelledRegion, ...]
    scales: tuple[Scale, ...]
    labelling: Labelling
    patch: Shape
    margin: Shape
    foreground: float = 0.5
    wanted: tuple[int, ...] = (1,)
    redraws: int = 10

    def __post_init__(self) -> None:
        problems = (
            (not self.sources or len(self.sources) != len(self.scales), "one scale per source, at least one"),
            (len(self.patch) != 3 or any(n < 1 for n in self.patch), "patch: three positive sizes"),
            (len(self.margin) != 3 or any(n < 0 for n in self.margin), "margin: three sizes"),
            (not 0 <= self.foreground <= 1, "foreground: a share from 0 to 1"),
            (not self.wanted or self.redraws < 0, "wanted classes, and redraws of at least 0"),
        )
        for wrong, expected in problems:
            if wrong:
                raise InputError("patches cannot be drawn so", expected=expected)

    def place(self, rng: np.random.Generator) -> tuple[int, Box, NDArray[np.uint8]]:
        """Choose a source and a box, and read its classes; nothing else is read."""
        wanted = int(rng.choice(self.wanted)) if rng.random() < self.foreground else None
        for _ in range(self.redraws + 1):
            index, box = self._position(rng)
            classes = self.labelling.read(self.sources[index], box)
            if wanted is None or (classes == wanted).any():
                break
        return index, box, classes

    def draw(self, rng: np.random.Generator) -> Patch:
        """Read one patch.

        Raises
        ------
        DataError
            NaN or infinite intensities, or a label that the network has no class for, with their place.
        """
        index, box, classes = self.place(rng)
        volume = self.sources[index].image
        read = box.grow(self.margin, self.margin)
        data = volume.read(read)
        require_finite(data, read, volume, error=DataError)
        return Patch(index, box, self.scales[index].apply(data), classes)

    def _position(self, rng: np.random.Generator) -> tuple[int, Box]:
        ends = list(accumulate(source.region.size for source in self.sources))
        index = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        region = self.sources[index].region
        corner = []
        for start, stop, length in zip(region.lower, region.upper, self.patch):
            # Longer than the region: the patch covers it, at any offset.
            first, last = sorted((start, stop - length))
            corner.append(int(rng.integers(first, last + 1)))
        return index, Box(tuple(corner), tuple(c + n for c, n in zip(corner, self.patch)))


def generator(seed: int, step: int, item: int) -> np.random.Generator:
    """The random numbers of one patch of one step, whoever asks for them."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, step, item])))


def _spread(source: LabelledRegion, voxels: int) -> Iterator[Box]:
    """Boxes of about a label chunk, spread evenly over the region in raster order."""
    cell = tuple(min(n, max(c, 32)) for n, c in zip(source.region.shape, source.labels.chunk_shape))
    grid = Grid(source.region, cell)
    wanted = max(1, min(len(grid), voxels // Box.of_shape(cell).size))
    for k in range(wanted):
        box = grid[k * len(grid) // wanted].intersect(source.region)
        if box:
            yield box


def _name(volume: Volume) -> str:
    return f"{volume.url}/{volume.path}".rstrip("/")
