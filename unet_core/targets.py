"""From labels (instance ids, semantic classes) to the classes that a network predicts; numpy only.

Every class is found from a voxel and its face neighbours, so a box of labels with `MARGIN` extra
voxels on every side gives the same classes as the whole volume does.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box

Target = Literal["semantic", "foreground", "separated", "boundary", "interior-boundary"]
# What the classes of the targets that are made from instance ids mean.
DERIVED: dict[Target, tuple[str, ...]] = {
    "foreground": ("background", "foreground"),
    "separated": ("background", "foreground"),
    "boundary": ("interior", "boundary"),
    "interior-boundary": ("background", "interior", "boundary"),
}
MARGIN = 1  # voxels that `classes_of` needs beyond the box, on every side of every axis
_COUNTS = {2: "two", 3: "three"}
IGNORE = 255  # the class of voxels that nobody labelled: no loss, no measure


def classes_of(
    labels: NDArray[Any], target: Target, *, planar: bool = False, ignore: int | None = None
) -> NDArray[np.uint8]:
    """Classes of a box of labels.

    "semantic": the labels are the classes. "foreground": 1 where the id is above 0. "separated": the
    same, but 0 where a face neighbour is another object: the background that Ronneberger 2015, section 3,
    inserts between touching cells, here one voxel on each side. "boundary": 1 where a face neighbour has
    another id, on both sides of the face: skimage's `find_boundaries(mode="thick", connectivity=1)` on
    the whole volume. "interior-boundary": 0 where the id is 0, 2 in the boundary of objects, 1 within.

    Id 0 is an id like any other to "boundary". Thin lines of 0 between segments are therefore boundary
    (all but 4 in a million voxels of fibsem_gala_mini, which marks its boundaries so), and the inside
    of a wide region of 0 is not: extracellular background has no membrane within.

    Parameters
    ----------
    labels
        (z, y, x) integers, the box with `MARGIN` voxels more on every side of every axis, mirrored
        at the volume's faces as `Volume.read` does it. A mirrored neighbour never makes a boundary:
        it equals the one on the other side, which counts anyway, and an axis of one voxel repeats it.
    planar
        Only y and x have neighbours: the planes are images of their own, as a 2D network sees them.
    ignore
        Label of voxels that nobody labelled; they become `IGNORE`, and make no boundary.

    Returns
    -------
    uint8 (z, y, x), without the margin.

    Raises
    ------
    InputError
        Labels that are not integers, or below 0 but for `ignore`; semantic labels above 254; an unknown
        target.
    """
    require_target(target)
    if labels.dtype.kind not in "uib":
        raise InputError("labels must be integers", expected="ids or classes", found=labels.dtype)
    inside = labels[(slice(MARGIN, -MARGIN),) * 3]
    _require_none_below_zero(inside, ignore)
    unlabelled = np.zeros(inside.shape, bool) if ignore is None else inside == ignore
    if target == "semantic":
        known = np.where(unlabelled, 0, inside)
        if known.size and not 0 <= known.min() <= known.max() < IGNORE:
            raise InputError(
                "semantic labels must be classes",
                expected=f"0 to {IGNORE - 1}",
                found=f"{known.min()} to {known.max()}",
                fix=f"for instance ids use another target: {', '.join(DERIVED)}",
            )
        classes = known.astype(np.uint8)
    else:
        classes = _from_ids(labels, target, planar=planar, ignore=ignore)
    classes[unlabelled] = IGNORE
    return classes


def _require_none_below_zero(labels: NDArray[Any], ignore: int | None) -> None:
    """A number below 0 is a mark, and what it means only people know: as background it would teach a lie."""
    if labels.dtype.kind != "i" or not labels.size or labels.min() >= 0:
        return
    marks = np.unique(labels[labels < 0])
    unknown = marks[marks != ignore] if ignore is not None else marks
    if not unknown.size:
        return
    fix = "give voxels that nobody labelled one number, and name it with --ignore"
    if unknown.size == 1 and ignore is None:
        mark = unknown[0]
        fix = f"if {mark} marks what nobody labelled: --ignore={mark}, or ignore = {mark} in a training file"
    raise InputError(
        "labels below 0 are neither ids nor classes",
        expected=f"0 for the background, numbers above it{'' if ignore is None else f', {ignore} to ignore'}",
        found=", ".join(map(str, unknown[:8])) + (" and others" if unknown.size > 8 else ""),
        fix=fix,
    )


def end_at(labels: NDArray[Any], box: Box, region: Box) -> None:
    """Overwrite, in place, 0 beyond the labelled region with the labels at its faces.

    A crop that was labelled mostly lies in a volume of 0: that says nothing about where its objects end,
    while ids beyond do. `labels` (z, y, x) are those of `box`, inside the region, and its `MARGIN`.
    """
    for axis in range(3):
        planes = np.moveaxis(labels, axis, 0)
        for at_face, beyond, face in (
            (box.lower[axis] == region.lower[axis], planes[0], planes[1]),
            (box.upper[axis] == region.upper[axis], planes[-1], planes[-2]),
        ):
            if at_face:
                np.copyto(beyond, face, where=beyond == 0)


def objects_of(
    labels: NDArray[Any], target: Target, *, planar: bool = False, ignore: int | None = None
) -> NDArray[Any]:
    """The ids of a box of labels as the target leaves them, 0 in the background: what borders run between.

    Objects of "separated" lack the voxels that it makes background. Labels, shapes and the other
    parameters as in `classes_of`; voxels labelled `ignore` are 0.

    Raises
    ------
    InputError
        The target "semantic": classes are not objects. An unknown target.
    """
    require_target(target)
    if target not in DERIVED:
        raise InputError(
            f'the target "{target}" knows no objects',
            expected=f"instance ids and one of the targets {', '.join(DERIVED)}",
        )
    inside = labels[(slice(MARGIN, -MARGIN),) * 3]
    kept = inside > 0
    if ignore is not None:
        kept &= inside != ignore
    if target == "separated":
        kept &= _from_ids(labels, target, planar=planar, ignore=ignore).view(bool)
    return np.where(kept, inside, 0)


def class_names(target: Target, classes: int) -> tuple[str, ...]:
    """What the network's classes mean, background first.

    Raises
    ------
    InputError
        An unknown target, or a number of classes that the target does not have.
    """
    require_target(target)
    if target not in DERIVED:
        return ("background", *(f"class {k}" for k in range(1, classes)))
    names = DERIVED[target]
    if classes != len(names):
        raise InputError(
            f'the target "{target}" has {_COUNTS[len(names)]} classes',
            where="classes",
            expected=len(names),
            found=classes,
        )
    return names


def require_target(target: str) -> None:
    """Refuse a target that is not one."""
    if target not in get_args(Target):
        raise InputError("this target is not known", expected=get_args(Target), found=repr(target))


def _from_ids(labels: NDArray[Any], target: Target, *, planar: bool, ignore: int | None) -> NDArray[np.uint8]:
    """Classes without regard to `IGNORE`."""
    foreground = labels[(slice(MARGIN, -MARGIN),) * 3] > 0
    if target == "foreground":
        return foreground.view(np.uint8)
    axes = (1, 2) if planar else (0, 1, 2)
    touching = _touches_another(labels, axes=axes, ignore=ignore, objects=target == "separated")
    if target == "separated":
        return (foreground & ~touching).view(np.uint8)
    if target == "boundary":
        return touching.view(np.uint8)
    return np.where(touching, np.uint8(2), np.uint8(1)) * foreground


def _touches_another(
    labels: NDArray[Any], *, axes: tuple[int, ...], ignore: int | None, objects: bool
) -> NDArray[np.bool_]:
    """Where a face neighbour has another id; with `objects`, where both ids are those of objects."""
    inside = [slice(MARGIN, -MARGIN)] * 3
    found = np.zeros(tuple(n - 2 * MARGIN for n in labels.shape), bool)
    for axis in axes:
        lines = labels[tuple(slice(None) if a == axis else s for a, s in enumerate(inside))]
        lines = np.moveaxis(lines, axis, 0)
        differs = lines[1:] != lines[:-1]
        counted = [lines > 0] if objects else []
        if ignore is not None:
            counted.append(lines != ignore)
        for both in counted:
            differs &= both[1:] & both[:-1]
        view = np.moveaxis(found, axis, 0)
        view |= differs[1:]  # the neighbour above
        view |= differs[:-1]  # the neighbour below
    return found
