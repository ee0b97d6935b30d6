"""OME-Zarr metadata: 0.4 and 0.5 in, 0.5 out. Pure data; no store is opened here.

Spec: https://ngff.openmicroscopy.org/0.5/ (multiscales, axes, coordinateTransformations, image-label).
yaozarrs holds the models and their checks; what it does not check (that datasets exist) volumes does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError
from yaozarrs import v04, v05

from unet_core.errors import InputError
from unet_core.geometry import Shape, ceil_div

AXES = "tczyx"  # the order that the spec demands: time, channel, space
SPATIAL = "zyx"


@dataclass(frozen=True)
class Dataset:
    """One resolution level: `scale` and `translation` per axis, in `unit`s for space."""

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class Multiscale:
    """What we use of one `multiscales` entry. `axes` is a string such as "czyx"; `unit` is that of space."""

    version: str
    axes: str
    unit: str | None
    datasets: tuple[Dataset, ...]

    def voxel_size(self, level: int) -> tuple[float, ...]:
        """Physical size of a voxel, z, y, x; 1.0 for an axis that is not there."""
        return self._spatial(self.datasets[level].scale, missing=1.0)

    def origin(self, level: int) -> tuple[float, ...]:
        """Physical position of the centre of voxel 0, z, y, x."""
        return self._spatial(self.datasets[level].translation, missing=0.0)

    def _spatial(self, values: Sequence[float], *, missing: float) -> tuple[float, ...]:
        return tuple(values[self.axes.index(a)] if a in self.axes else missing for a in SPATIAL)


def parse_multiscale(attributes: Mapping[str, Any], *, where: str) -> Multiscale:
    """The first multiscale image of a group's attributes, OME-Zarr 0.5 or 0.4.

    Raises
    ------
    InputError
        No multiscales in the group, or metadata that the spec does not allow.
    """
    if isinstance(attributes.get("ome"), Mapping) and "multiscales" in attributes["ome"]:
        metadata, version = attributes["ome"], "0.5"
    elif "multiscales" in attributes:
        metadata, version = attributes, "0.4"
    else:
        raise InputError(
            "this group has no multiscales",
            where=where,
            expected="an OME-Zarr 0.4 or 0.5 image, or a plain Zarr array",
            found=f"attributes {sorted(attributes)}" if attributes else "no attributes",
            fix="name the image group or the array inside it",
        )
    wanted = {key: metadata[key] for key in ("version", "multiscales") if key in metadata}
    try:
        with warnings.catch_warnings():
            # Others' files break SHOULD rules (unit "seconds"); what we cannot use raises below.
            warnings.simplefilter("ignore")
            model = v05.Image if version == "0.5" else v04.Image
            first: v05.Multiscale | v04.Multiscale = model.model_validate(wanted).multiscales[0]
    except ValidationError as error:
        raise InputError(
            f"the OME-Zarr {version} metadata is not valid",
            where=where,
            found="; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3]),
        ) from None
    names = "".join(axis.name for axis in first.axes)
    if len(names) != len(first.axes) or any(name not in AXES for name in names):
        raise InputError(
            "these axes are not known",
            where=where,
            expected="a subset of t, c, z, y, x",
            found=[axis.name for axis in first.axes],
        )
    common = _scale_and_translation(first.coordinateTransformations or [], len(names))
    datasets = []
    for dataset in first.datasets:
        scale, translation = _scale_and_translation(dataset.coordinateTransformations, len(names))
        # The outer transformation is applied after the dataset's own.
        datasets.append(
            Dataset(
                dataset.path,
                tuple(s * c for s, c in zip(scale, common[0])),
                tuple(t * c + d for t, c, d in zip(translation, common[0], common[1])),
            )
        )
    units = {getattr(axis, "unit", None) for axis in first.axes if axis.name in SPATIAL} - {None}
    return Multiscale(version, names, units.pop() if len(units) == 1 else None, tuple(datasets))


def _scale_and_translation(
    transformations: Sequence[Any], ndim: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scale, translation = (1.0,) * ndim, (0.0,) * ndim
    for transformation in transformations:
        if transformation.type == "scale":
            scale = tuple(transformation.scale)
        elif transformation.type == "translation":
            translation = tuple(transformation.translation)
    return scale, translation


@dataclass(frozen=True)
class PyramidLevel:
    """Level `index` of a pyramid: its spatial shape and how much coarser than level 0 it is (z, y, x)."""

    index: int
    shape: Shape
    factors: Shape


def pyramid_levels(shape: Shape, voxel_size: Sequence[float], *, smallest: int = 128) -> list[PyramidLevel]:
    """Halve the finest axes until every axis is at most `smallest` voxels long.

    An axis is halved while its voxels are not yet twice as long as the shortest side, so that
    anisotropic volumes become isotropic first.
    """
    levels = [PyramidLevel(0, tuple(shape), (1,) * len(shape))]
    while max(levels[-1].shape) > smallest:
        last = levels[-1]
        sizes = [v * f for v, f in zip(voxel_size, last.factors)]
        finest = min(size for size, n in zip(sizes, last.shape) if n > 1)
        steps = tuple(2 if n > 1 and size < 2 * finest else 1 for size, n in zip(sizes, last.shape))
        if max(steps) == 1:
            break
        levels.append(
            PyramidLevel(
                last.index + 1,
                tuple(ceil_div(n, s) for n, s in zip(last.shape, steps)),
                tuple(f * s for f, s in zip(last.factors, steps)),
            )
        )
    return levels


def steps_between(finer: PyramidLevel, coarser: PyramidLevel) -> Shape:
    """Down-sampling factors from one level to the next, per axis."""
    return tuple(c // f for f, c in zip(finer.factors, coarser.factors))


def ome_attributes(
    *,
    kind: Literal["image", "labels"],
    axes: str,
    levels: Sequence[PyramidLevel],
    voxel_size: Sequence[float],
    origin: Sequence[float],
    unit: str | None,
    name: str,
    method: str | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """The `attributes` of an OME-Zarr 0.5 group, checked against the models before anyone writes them.

    `voxel_size` and `origin` are z, y, x at level 0. A coarser voxel covers `factors` finer ones, so its
    centre, and the level's translation, moves by (factor - 1) / 2 fine voxels.
    """
    spatial = dict(zip(SPATIAL, range(3)))

    def transformations(level: PyramidLevel) -> list[dict[str, Any]]:
        scale = [voxel_size[i] * level.factors[i] if (i := spatial.get(a)) is not None else 1.0 for a in axes]
        shift = [
            origin[i] + voxel_size[i] * (level.factors[i] - 1) / 2
            if (i := spatial.get(a)) is not None
            else 0.0
            for a in axes
        ]
        result: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if any(shift):
            result.append({"type": "translation", "translation": shift})
        return result

    types = {"t": "time", "c": "channel"}
    described = [
        {"name": a, "type": types.get(a, "space"), **({"unit": unit} if unit and a in SPATIAL else {})}
        for a in axes
    ]
    multiscale: dict[str, Any] = {
        "name": name,
        "axes": described,
        "datasets": [
            {"path": str(level.index), "coordinateTransformations": transformations(level)}
            for level in levels
        ],
    }
    if method:
        multiscale["type"] = method
    metadata: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
    if kind == "labels":
        metadata["image-label"] = {"source": {"image": source}} if source else {}
    model = v05.LabelImage if kind == "labels" else v05.Image
    checked = model.model_validate(metadata)
    return {"ome": checked.model_dump(mode="json", by_alias=True, exclude_none=True)}
