"""What is asked to be kept, checked and resolved: plain data in the run record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from unet_core.errors import InputError
from unet_core.geometry import Shape
from unet_core.keeping.grids import by_size, likeliest, steps_that_give
from unet_core.volumes import Volume

# The default level to look at has voxels of up to so many of the image's: 1/512 of the reading in 3D, and
# an average over so few that little is lost in it. It must not follow from blocks: they decide no results.
_COARSEST = 8


@dataclass(frozen=True, kw_only=True)
class KeepRequest:
    """What is asked for: voxels that both keep.

    Attributes
    ----------
    mask, mask_level
        A volume whose voxels other than 0 are kept, and which level of its pyramid; None keeps all.
    below
        A voxel of a coarser level of the image is kept where one within `margin` of it (in that level's
        voxels, diagonals too) is above this intensity in any channel that is used; None keeps all.
    level
        Which level of the image; None: the coarsest of at most 8 voxels.
    """

    mask: str | None = None
    mask_level: int = 0
    below: float | None = None
    level: int | None = None
    margin: int = 1


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A mask whose voxel m covers the image's voxels from m * factor on, z, y, x."""

    url: str
    level: int
    timepoint: int
    factors: Shape


@dataclass(frozen=True, kw_only=True)
class Below:
    """A level of the image, and the intensity that its voxels must exceed."""

    value: float
    level: int
    margin: int
    factors: Shape


@dataclass(frozen=True, kw_only=True)
class KeepPlan:
    """What is kept, JSON-ready; at least one of the two is given."""

    mask: Mask | None = None
    below: Below | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KeepPlan:
        mask, below = data["mask"], data["below"]
        return cls(
            mask=None if mask is None else Mask(**{**mask, "factors": tuple(mask["factors"])}),
            below=None if below is None else Below(**{**below, "factors": tuple(below["factors"])}),
        )

    def __str__(self) -> str:
        """As people read it."""
        parts = []
        if self.mask is not None:
            level = f" level {self.mask.level}" if self.mask.level else ""
            parts.append(f"mask {self.mask.url}{level}, {_cells(self.mask.factors)}")
        if self.below is not None:
            b = self.below
            parts.append(f"above {b.value:g} at level {b.level}, {_cells(b.factors)}, margin {b.margin}")
        return "; ".join(parts)


def plan_keep(request: KeepRequest, image: Volume, level: int) -> KeepPlan:
    """Resolve and check what is asked for; reads metadata only.

    Parameters
    ----------
    image, level
        What is segmented: that level of its pyramid.

    Raises
    ------
    InputError
        A mask that is not there or whose grid does not cover the image's, a level that is not there or
        finer than what is segmented, no coarser level and none asked for, a margin or intensity that is none.
    """
    mask = below = None
    if request.mask is not None:
        volume = _mask_of(request.mask, request.mask_level, image)
        factors = _factors(image, volume, sized=image.unit is not None and image.unit == volume.unit)
        mask = Mask(url=volume.url, level=request.mask_level, timepoint=volume.timepoint, factors=factors)
    if request.below is not None:
        below = _plan_below(request.below, request, image, level)
    if mask is None and below is None:
        raise InputError("nothing says what to keep", expected="a mask, or an intensity")
    return KeepPlan(mask=mask, below=below)


def _mask_of(url: str, level: int, image: Volume) -> Volume:
    """A mask with all its channels; of several time points the image's, of one this one."""
    mask = Volume.open(url, level=level)
    moving = dict(zip(mask.axes, mask.array.shape)).get("t", 1) > 1
    return Volume.open(url, level=level, timepoint=image.timepoint) if moving else mask


def open_level(image: Volume, level: int) -> Volume:
    """Another level of the image: its channels, its time point."""
    return Volume.open(image.url, level=level, channels=image.channels, timepoint=image.timepoint)


def _plan_below(value: float, request: KeepRequest, image: Volume, level: int) -> Below:
    if not isfinite(value):
        raise InputError("--skip-below is not an intensity", expected="a number", found=value)
    if request.margin < 0:
        raise InputError("--skip-margin is negative", expected="0 or more voxels", found=request.margin)
    if request.level is None:
        chosen, factors = _coarse_level(image, level)
    else:
        chosen = request.level
        if chosen < level:
            raise InputError(
                "--skip-level is finer than the level that is segmented",
                where=image.url,
                expected=f"{level} or more",
                found=chosen,
            )
        factors = _factors(image, open_level(image, chosen), sized=True)
    return Below(value=value, level=chosen, margin=request.margin, factors=factors)


def _coarse_level(image: Volume, level: int) -> tuple[int, Shape]:
    """The coarsest level of at most `_COARSEST` voxels, else the next one above what is segmented."""
    found: tuple[int, Shape] | None = None
    for other in _coarser(image, level):
        factors = _factors(image, other[1], sized=True)
        if found is not None and max(factors) > _COARSEST:
            break
        found = other[0], factors
    if found is None:
        raise InputError(
            "this image has no coarser level to look for what is empty",
            where=image.url,
            expected="a pyramid with levels above the one that is segmented",
            found=f"level {level} is the coarsest",
            fix=f"--skip-level {level} looks at the level itself and reads it twice; `ingest` makes pyramids",
        )
    return found


def _coarser(image: Volume, level: int) -> list[tuple[int, Volume]]:
    """The levels above one, as far as they are there."""
    found = []
    with suppress(InputError):  # where the pyramid ends
        while True:
            level += 1
            found.append((level, open_level(image, level)))
    return found


def _factors(image: Volume, grid: Volume, *, sized: bool) -> Shape:
    """Voxels of the image per voxel of a coarser grid. `sized`: both have voxel sizes, in one unit."""
    own = list(zip(image.shape, grid.shape))
    steps = [steps_that_give(n, m) for n, m in own]
    if not all(steps):
        halves = (_text([-(-n // s) if m > 1 else 1 for n, m in own]) for s in (1, 2, 4))
        raise InputError(
            "this volume's grid does not cover the image's, voxel by voxel or coarser",
            where=grid.where,
            expected=f"{_text(image.shape)} divided by whole numbers, such as {', '.join(halves)}",
            found=f"shape {_text(grid.shape)}",
            fix="choose another level of it, or make it from a level of this image",
        )
    ratios = [b / a for a, b in zip(image.voxel_size, grid.voxel_size)]
    chosen = [
        by_size(s, n, m, ratio) if sized and m > 1 else likeliest(s, n, m)
        for s, (n, m), ratio in zip(steps, own, ratios)
    ]
    factors = tuple(s for s in chosen if s is not None)
    if len(factors) == len(chosen):
        return factors
    if sized:
        raise InputError(
            "shapes and voxel sizes of this volume and the image disagree",
            where=grid.where,
            expected=f"voxels {_ranges(steps)} times those of the image, {_text(image.voxel_size)}",
            found=f"voxels {_text(grid.voxel_size)}, shape {_text(grid.shape)} for {_text(image.shape)}",
            fix="it may belong to another image; mend its metadata if it does not",
        )
    raise InputError(
        "how many voxels of the image one of this volume covers cannot be told",
        where=grid.where,
        expected="an exact ratio or a power of 2 on every axis, or OME-Zarr voxel sizes in the image's unit",
        found=f"shape {_text(grid.shape)} for {_text(image.shape)}: any of {_ranges(steps)}",
        fix="make it from a level of this image",
    )


def _ranges(steps: list[list[int]]) -> str:
    return _text([f"{s[0]}" if len(s) == 1 else f"({s[0]} to {s[-1]})" for s in steps])


def _cells(factors: Shape) -> str:
    return f"cells of {_text(factors)}"


def _text(values: Iterable[float | str]) -> str:
    return "×".join(v if isinstance(v, str) else f"{v:g}" for v in values)
