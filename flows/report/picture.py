"""The picture of a result, one row per plane, from volumes or from arrays.

| raw | truth | prediction | where they differ |        without a truth: | raw | prediction |
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from flows.report.composition import Panel, compose
from flows.report.panels import class_legend, difference_legend, differences, grey, overlay
from unet_core.errors import InputError
from unet_core.evaluation import Truth
from unet_core.evaluation.comparison import (
    UNNAMED_CLASSES,
    require_classes,
    require_inside,
    require_labels,
    require_same_shape,
)
from unet_core.geometry import Box
from unet_core.targets import IGNORE, Target
from unet_core.targets import class_names as class_names_of
from unet_core.volumes import Volume

_LARGEST = 768  # most voxels of a panel per axis: larger planes are cut around their centre


@dataclass(frozen=True)
class Plane:
    """One row: image (channel, y, x) of any real type, classes (y, x); `truth` may be missing."""

    title: str
    image: NDArray[Any]
    predicted: NDArray[Any]
    truth: NDArray[Any] | None = None


def picture_of(planes: Sequence[Plane], class_names: Sequence[str], *, notes: Sequence[str]) -> Image.Image:
    """The picture of planes that are in memory, all with a truth or all without.

    Images are shown in one grey stretch for all, or as RGB where they have three uint8 channels; classes
    beyond the names are coloured too, and `targets.IGNORE` in the truth is left out.
    """
    rows = []
    for plane, raw in zip(planes, grey([plane.image for plane in planes])):
        panels = [Panel(plane.title, raw)]
        if plane.truth is not None:
            panels.append(Panel("truth", overlay(raw, plane.truth)))
        panels.append(Panel("prediction", overlay(raw, plane.predicted)))
        if plane.truth is not None:
            errors = differences(raw, plane.truth, plane.predicted, agreement=len(class_names) == 2)
            panels.append(Panel("where they differ", errors))
        rows.append(panels)
    legends = [class_legend(class_names)]
    if planes[0].truth is not None:
        legends.append(difference_legend(class_names))
    return compose(rows, legends, notes=notes)


def picture_png(planes: Sequence[Plane], class_names: Sequence[str]) -> bytes:
    """`picture_of` as a PNG, such as for a model folder; planes are cut to 768 voxels around their centre.

    Titles may be long, such as a URL with a box: they stand below the picture.
    """
    numbered = [replace(_cut(plane), title=f"raw {k}") for k, plane in enumerate(planes, 1)]
    notes = [f"{k}: {plane.title}" for k, plane in enumerate(planes, 1)]
    data = io.BytesIO()
    picture_of(numbered, class_names, notes=notes).save(data, format="PNG", optimize=True)
    return data.getvalue()


def write_picture(
    path: str | Path,
    *,
    image: Volume,
    labels: Volume,
    truth: Volume | None = None,
    target: Target | None = None,
    class_names: Sequence[str] | None = None,
    planes: Sequence[int] | None = None,
    roi: Box | None = None,
    planar: bool = False,
    ignore: int | None = None,
) -> Path:
    """Write raw, truth and prediction side by side as one PNG, one row per plane; only these planes are read.

    Parameters
    ----------
    image
        Its first channel is shown in grey, stretched between the 0.5 and 99.5 percentiles of what is
        shown; three uint8 channels are shown as RGB.
    labels
        Predicted classes, of the image's shape.
    truth, target, planar, ignore
        See `unet_core.evaluation.Truth`; without a truth there are two panels.
    class_names
        For the legend, background first; None takes those of the target, or numbers.
    planes
        z of each row; None shows the middle one.
    roi
        What is shown, of which y and x count and z only where `planes` is None; planes larger than
        768 voxels are cut around the centre of it.

    Raises
    ------
    InputError
        Shapes that differ, labels that are not integers, a plane or ROI outside the volume, truth
        values beyond the classes, or a path that cannot be written.
    """
    names = None if class_names is None else tuple(class_names)
    require_labels(labels, what="the prediction")
    require_same_shape(labels, image)
    require_inside(roi, image, what="the ROI")
    known = None
    if truth is not None:
        require_same_shape(labels, truth)
        known = Truth(volume=truth, target=target, names=names, planar=planar, ignore=ignore, region=roi)
    boxes = boxes_of_planes(image, roi or image.box, planes)
    true = [known.classes(box)[0] for box in boxes] if known else []
    predicted = [_predicted(labels, box, known.count if known else len(names or ()) or None) for box in boxes]
    if names is None:
        highest = max(int(plane.max(initial=0, where=plane != IGNORE)) for plane in [*predicted, *true])
        derived = target is not None and target != "semantic"
        names = class_names_of(target or "semantic", 2 if derived else highest + 1)

    shown = [
        Plane(f"raw, z = {box.lower[0]}", image.read(box)[:, 0], plane, truth)
        for box, plane, truth in zip(boxes, predicted, true or [None] * len(boxes))
    ]
    cut = boxes[0]
    note = f"y {cut.lower[1]}:{cut.upper[1]}, x {cut.lower[2]}:{cut.upper[2]}"
    try:
        picture_of(shown, names, notes=[note]).save(path, format="PNG", optimize=True)
    except OSError as error:
        raise InputError("the picture cannot be written", where=path, found=error.strerror) from None
    return Path(path)


def boxes_of_planes(image: Volume, shown: Box, planes: Sequence[int] | None) -> list[Box]:
    """One box of one plane per row."""
    rows = [(shown.lower[0] + shown.upper[0]) // 2] if planes is None else list(planes)
    if not rows or any(not 0 <= z < image.shape[0] for z in rows):
        raise InputError(
            "no such plane",
            where=image.url,
            expected=f"0 to {image.shape[0] - 1}",
            found=", ".join(map(str, rows)) or "none",
        )
    return [_centre(shown, z) for z in rows]


def _predicted(labels: Volume, box: Box, count: int | None) -> NDArray[Any]:
    """Classes (y, x) of one plane."""
    plane: NDArray[Any] = labels.read(box)[0, 0]
    require_classes(
        plane,
        count or UNNAMED_CLASSES,
        volume=labels,
        box=box,
        what="the prediction",
        fix="show the volume that holds classes, or name all classes",
    )
    return plane


def _centre(shown: Box, z: int) -> Box:
    lower = [max(a, (a + b - _LARGEST) // 2) for a, b in zip(shown.lower[1:], shown.upper[1:])]
    upper = [min(b, low + _LARGEST) for b, low in zip(shown.upper[1:], lower)]
    return Box((z, *lower), (z + 1, *upper))


def _cut(plane: Plane) -> Plane:
    box = _centre(Box.of_shape((1, *plane.predicted.shape)), 0)
    part = box.slices[1:]
    truth = None if plane.truth is None else plane.truth[part]
    image = plane.image[:, *part]
    return replace(plane, image=image, predicted=plane.predicted[part], truth=truth)
