"""The picture of instances: every object in a colour of its own, raw, truth and prediction side by side.

| raw | truth | objects |        one row per plane; without a truth: | raw | objects |

An object that truth and prediction agree on, by more than half of what both cover, has one colour in both.
Hues of consecutive ids lie far apart, and outlines are drawn where ids meet: two neighbours that chance to be
alike still show as two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.color import hsv2rgb

from flows.report.composition import Panel, compose
from flows.report.panels import grey
from flows.report.picture import boxes_of_planes
from unet_core.errors import InputError
from unet_core.evaluation.comparison import require_inside, require_labels, require_same_shape
from unet_core.geometry import Box
from unet_core.volumes import Volume

_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, are spread as evenly as can be
_TONES = np.array([[0.95, 1.0], [0.55, 1.0], [0.95, 0.7]])  # saturation, value
_OPACITY, _OUTLINE = 0.45, 0.9


def write_object_picture(
    path: str | Path,
    *,
    image: Volume,
    labels: Volume,
    truth: Volume | None = None,
    planes: Sequence[int] | None = None,
    roi: Box | None = None,
) -> Path:
    """`object_picture` as a PNG file.

    Raises
    ------
    InputError
        As `object_picture`; or a path that cannot be written.
    """
    picture = object_picture(image=image, labels=labels, truth=truth, planes=planes, roi=roi)
    try:
        picture.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise InputError("the picture cannot be written", where=path, found=error.strerror) from None
    return Path(path)


def object_picture(
    *,
    image: Volume,
    labels: Volume,
    truth: Volume | None = None,
    planes: Sequence[int] | None = None,
    roi: Box | None = None,
) -> Image.Image:
    """One row per plane; only these planes are read.

    Parameters
    ----------
    image, planes, roi
        As `write_picture` takes them.
    labels, truth
        One id per object, 0 the background, of the image's shape.

    Raises
    ------
    InputError
        Shapes that differ, labels that are not integers, or a plane or ROI outside the volume.
    """
    require_inside(roi, image, what="the ROI")
    shown = [("truth", truth), ("objects", labels)] if truth is not None else [("objects", labels)]
    for what, volume in shown:
        require_labels(volume, what=what)
        require_same_shape(volume, image)
    boxes = boxes_of_planes(image, roi or image.box, planes)
    rows = []
    ids = {what: np.stack([volume.read(box)[0, 0] for box in boxes]) for what, volume in shown}
    if truth is not None:
        ids["objects"] = named_alike(ids["truth"], ids["objects"])
    for k, (box, raw) in enumerate(zip(boxes, grey([image.read(box)[:, 0] for box in boxes]))):
        row = [Panel(f"raw, z = {box.lower[0]}", raw)]
        rows.append(row + [Panel(what, coloured(raw, planes_of[k])) for what, planes_of in ids.items()])
    cut = boxes[0]
    same = "; the same in truth and objects where these planes agree on it (IoU above 0.5)"
    notes = [
        f"a colour for each object, an outline where it meets another{same if truth is not None else ''}",
        f"y {cut.lower[1]}:{cut.upper[1]}, x {cut.lower[2]}:{cut.upper[2]}",
    ]
    return compose(rows, [], notes=notes)


def named_alike(truth: NDArray[Any], objects: NDArray[Any]) -> NDArray[np.uint64]:
    """`objects` with the ids of the true objects that they match, and new ones for all others.

    A match is an intersection over union above 0.5, which an object can have with one other alone.
    """
    true, t = np.unique(truth, return_inverse=True)
    found, p = np.unique(objects, return_inverse=True)
    t, p = t.ravel(), p.ravel()
    pairs, common = np.unique(t * found.size + p, return_counts=True)
    one, other = np.divmod(pairs, found.size)
    union = np.bincount(t)[one] + np.bincount(p)[other] - common
    matched = (2 * common > union) & (true[one] > 0) & (found[other] > 0)
    names = np.arange(found.size, dtype=np.uint64) + np.uint64((max(int(true.max()), 0) + 1) % 2**64)
    names[other[matched]] = true[one[matched]].astype(np.uint64)
    names[found == 0] = 0
    named: NDArray[np.uint64] = names[p].reshape(objects.shape)
    return named


def coloured(raw: NDArray[np.uint8], ids: NDArray[Any]) -> NDArray[np.uint8]:
    """Every id above 0 of (y, x) in its colour over (y, x, RGB) pixels; outlines nearly opaque."""
    known, place = np.unique(ids, return_inverse=True)
    hue = known.astype(np.float64) * _GOLDEN % 1
    tone = _TONES[known.astype(np.uint64) % np.uint64(len(_TONES))]
    colours = 255 * hsv2rgb(np.column_stack([hue, tone]))[place.reshape(ids.shape)]
    opacity = np.where(_outlines(ids), _OUTLINE, _OPACITY) * (ids != 0)
    blended = raw + opacity[..., np.newaxis] * (colours - raw)
    result: NDArray[np.uint8] = blended.round().astype(np.uint8)
    return result


def _outlines(ids: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels with another id to the right or below."""
    found = np.zeros(ids.shape, bool)
    found[:-1] |= ids[:-1] != ids[1:]
    found[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    return found
