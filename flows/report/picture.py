"""The picture of a result, one row per plane.

| raw | truth | prediction | where they differ |        without a truth: | raw | prediction |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from unet_core.errors import InputError
from unet_core.evaluation import Truth
from unet_core.evaluation.comparison import (
    UNNAMED_CLASSES,
    require_classes,
    require_inside,
    require_labels,
    require_same_shape,
)
from unet_core.geometry import Box, ceil_div
from unet_core.targets import IGNORE, Target
from unet_core.targets import class_names as class_names_of
from unet_core.volumes import Volume

Colour = tuple[int, int, int]
_Legend = list[tuple[str, Colour | None]]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Okabe and Ito, "Color universal design" (2008): told apart with every common colour blindness.
ORANGE, SKY, GREEN, YELLOW = (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)
BLUE, VERMILLION, PURPLE = (0, 114, 178), (213, 94, 0), (204, 121, 167)
CLASS_COLOURS: tuple[Colour, ...] = (ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE)
BOTH, ONLY_PREDICTED, ONLY_TRUE, CONFUSED = (255, 255, 255), VERMILLION, SKY, YELLOW

_PANEL = 256  # least width of a panel in pixels: smaller crops are enlarged by whole factors
_LARGEST = 768  # most voxels of a panel per axis: larger planes are cut around their centre
_GAP, _TEXT = 8, 15
_LINE, _SWATCH = _TEXT + 8, _TEXT + 6
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


@dataclass(frozen=True)
class _Panel:
    title: str
    pixels: NDArray[np.uint8]  # (y, x, RGB)


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
        known = Truth(volume=truth, target=target, names=names, planar=planar, ignore=ignore)
    boxes = _boxes(image, roi or image.box, planes)
    raw = _grey([image.read(box) for box in boxes])
    true = [known.classes(box)[0] for box in boxes] if known else []
    predicted = [_predicted(labels, box, known.count if known else len(names or ()) or None) for box in boxes]
    if names is None:
        highest = max(int(plane.max(initial=0, where=plane != IGNORE)) for plane in [*predicted, *true])
        derived = target is not None and target != "semantic"
        names = class_names_of(target or "semantic", 2 if derived else highest + 1)

    errors = [differences(*row, agreement=len(names) == 2) for row in zip(raw, true, predicted)]
    rows = []
    for i, box in enumerate(boxes):
        panels = [_Panel(f"raw, z = {box.lower[0]}", raw[i])]
        panels += [_Panel("truth", overlay(raw[i], plane)) for plane in true[i : i + 1]]
        panels += [_Panel("prediction", overlay(raw[i], predicted[i]))]
        panels += [_Panel("where they differ", pixels) for pixels in errors[i : i + 1]]
        rows.append(panels)
    key: list[_Legend] = [[("classes:", None), *((name, _colour(k)) for k, name in enumerate(names) if k)]]
    if errors:
        key.append([("where they differ:", None), *_errors(names)])
    picture = _compose(rows, key, boxes[0])
    try:
        picture.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise InputError("the picture cannot be written", where=path, found=error.strerror) from None
    return Path(path)


def overlay(raw: NDArray[np.uint8], classes: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour the classes above 0 over (y, x, RGB) pixels; 0 and `targets.IGNORE` stay as they are."""
    result = raw.astype(np.float32)
    # Lifted blacks: thin dark membranes keep their colour under a half-transparent one.
    lifted = 80 + result * (175 / 255)
    for k in np.unique(classes):
        if k not in (0, IGNORE):
            where = classes == k
            result[where] = _blend(lifted[where], _colour(int(k)), 0.6)
    return result.round().astype(np.uint8)


def differences(
    raw: NDArray[np.uint8], truth: NDArray[Any], predicted: NDArray[Any], *, agreement: bool = True
) -> NDArray[np.uint8]:
    """Colour, over darkened pixels, what only one of the two has, where their classes differ, and
    with `agreement` what both have; class 0 is nothing to have."""
    result = raw.astype(np.float32) * 0.4
    compared = truth != IGNORE
    both = compared & (truth != 0) & (predicted != 0)
    for where, colour in (
        (compared & (truth == 0) & (predicted != 0), ONLY_PREDICTED),
        (compared & (truth != 0) & (predicted == 0), ONLY_TRUE),
        (both & (truth != predicted), CONFUSED),
        (both & (truth == predicted) & agreement, BOTH),
    ):
        result[where] = _blend(result[where], colour, 0.85)
    return result.round().astype(np.uint8)


def _boxes(image: Volume, shown: Box, planes: Sequence[int] | None) -> list[Box]:
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


def _grey(planes: Sequence[NDArray[Any]]) -> list[NDArray[np.uint8]]:
    """(channel, 1, y, x) intensities to (y, x, RGB), all planes with one stretch."""
    if planes[0].shape[0] == 3 and planes[0].dtype == np.uint8:
        return [np.moveaxis(plane[:, 0], 0, -1) for plane in planes]
    values = np.stack([plane[0, 0] for plane in planes]).astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    scaled = np.nan_to_num((values - low) / ((high - low) or 1.0)).clip(0, 1)
    grey = (scaled * 255).round().astype(np.uint8)
    return [np.repeat(plane[..., np.newaxis], 3, axis=2) for plane in grey]


def _blend(pixels: NDArray[np.float32], colour: Colour, opacity: float) -> NDArray[np.float32]:
    result: NDArray[np.float32] = pixels + opacity * (np.asarray(colour, np.float32) - pixels)
    return result


def _colour(k: int) -> Colour:
    return CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)]


def _errors(names: Sequence[str]) -> _Legend:
    """The legend of `differences`."""
    if len(names) == 2:
        return [
            (f"{names[1]} in both", BOTH),
            (f"false {names[1]} (only predicted)", ONLY_PREDICTED),
            (f"missed {names[1]} (only in the truth)", ONLY_TRUE),
        ]
    return [
        (f"predicted where the truth has {names[0]}", ONLY_PREDICTED),
        (f"missed: predicted {names[0]}", ONLY_TRUE),
        ("another class", CONFUSED),
    ]


def _compose(rows: Sequence[Sequence[_Panel]], legends: Sequence[_Legend], box: Box) -> Image.Image:
    height, width = rows[0][0].pixels.shape[:2]
    factor = max(1, ceil_div(_PANEL, width))
    font = ImageFont.load_default(_TEXT)
    across, down = width * factor + _GAP, height * factor + _LINE + _GAP
    page = across * len(rows[0]) + _GAP
    key = [line for legend in legends for line in _wrap(legend, font, page - 2 * _GAP)]
    picture = Image.new("RGB", (page, _GAP + down * len(rows) + _LINE * (len(key) + 1)), _PAPER)
    draw = ImageDraw.Draw(picture)
    for j, panels in enumerate(rows):
        for i, panel in enumerate(panels):
            left, top = _GAP + i * across, _GAP + j * down
            draw.text((left, top), panel.title, fill=_INK, font=font)
            # Nearest: a voxel stays a square of one colour.
            pixels = Image.fromarray(panel.pixels).resize(
                (width * factor, height * factor), Image.Resampling.NEAREST
            )
            picture.paste(pixels, (left, top + _LINE))
    top = _GAP + down * len(rows)
    for line in key:
        for left, text, colour in line:
            left += _GAP
            if colour:
                draw.rectangle((left, top + 1, left + _TEXT, top + 1 + _TEXT), fill=colour, outline=_INK)
            draw.text((left + (_SWATCH if colour else 0), top), text, fill=_INK, font=font)
        top += _LINE
    note = f"y {box.lower[1]}:{box.upper[1]}, x {box.lower[2]}:{box.upper[2]}"
    note += f", enlarged {factor} times" if factor > 1 else ""
    draw.text((_GAP, top), note, fill=_INK, font=font)
    return picture


def _wrap(legend: _Legend, font: _Font, width: int) -> list[list[tuple[int, str, Colour | None]]]:
    """Lines of (left edge, text, colour) that are not wider than `width` pixels, unless one entry is."""
    lines: list[list[tuple[int, str, Colour | None]]] = [[]]
    left = 0
    for text, colour in legend:
        extent = (_SWATCH if colour else 0) + round(font.getlength(text))
        if lines[-1] and left + extent > width:
            lines.append([])
            left = 0
        lines[-1].append((left, text, colour))
        left += extent + 2 * _GAP
    return lines
