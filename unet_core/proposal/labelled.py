"""What to learn from labels, where, and where to validate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.proposal.facts import CORE, LabelFacts
from unet_core.targets import DERIVED, IGNORE, Target

HELD_OUT = 0.2
_MOST_CLASSES = 16
_DENSE = 0.05  # open background below this: segments side by side
_TOUCH = 0.01  # of an object's faces
_CROP = 0.1  # of the region: a box of labels smaller than that is a labelled crop
_RARE = 0.1  # share of a class below which classes are weighed


def choose_target(labels: LabelFacts, asked: Target | None = None) -> tuple[Target, int | None, str]:
    """The target, the label to ignore, and why; with the target that was `asked` for, if one was.

    Raises
    ------
    InputError
        Classes asked for where labels are too large to be classes.
    """
    values = sorted(value for value in labels.values if value != 0)
    ignore = IGNORE if values[-1] == IGNORE and 1 < len(values) <= _MOST_CLASSES else None
    classes = [value for value in values if value != ignore]
    if asked is not None:
        if asked == "semantic" and classes[-1] >= IGNORE:
            raise InputError(
                "these labels are no classes",
                where='the target "semantic"',
                expected=f"labels from 0 to {IGNORE - 1}",
                found=f"{labels.count} labels above 0, the highest {classes[-1]}",
                fix=f"for ids of objects ask for another target: {', '.join(DERIVED)}",
            )
        return asked, ignore if asked == "semantic" else None, "asked for"
    if values == [1]:
        return "semantic", None, "the labels are 0 and 1: one class, or a single object"
    if len(values) == 1:
        return "foreground", None, f"the labels are 0 and {values[0]}: a mask"
    if labels.parts is not None and classes[-1] <= _MOST_CLASSES and labels.parts > 2:
        why = f"{len(classes)} labels above 0, each in about {labels.parts:.0f} separate parts: classes"
        return "semantic", ignore, f"{why}, not objects"
    if labels.open_background < _DENSE:
        why = (
            f"{labels.count:,} ids side by side: {labels.background:.1%} of the voxels are 0, and"
            f" {labels.open_background:.1%} lie farther than {CORE // 2} voxels from every id"
        )
        return "boundary", None, f"{why}; what is looked for lies between the ids"
    objects = f"{labels.count:,} ids with open background between them"
    if labels.touching > _TOUCH:
        why = f"{objects}, and {labels.touching:.0%} of their outlines touch another object"
        return "separated", None, why
    return "foreground", None, f"{objects}, and they hardly touch: foreground alone tells them apart"


def class_shares(labels: LabelFacts, target: Target, ignore: int | None) -> tuple[float, ...]:
    """About the share of each class, of the voxels that were looked at."""
    if target == "boundary":
        return 1 - labels.boundary, labels.boundary
    if target != "semantic":
        return labels.background, 1 - labels.background
    known = {value: n for value, n in labels.values.items() if value != ignore}
    return tuple(known.get(k, 0) / sum(known.values()) for k in range(max(known) + 1))


def rare(shares: Sequence[float]) -> bool:
    return min((s for s in shares if s > 0), default=1.0) < _RARE


def labelled_box(labels: LabelFacts, region: Box) -> tuple[Box, str]:
    """The region, or what is labelled of it where that is a small crop: wide background is data, too."""
    if not labels.whole:
        return region, "the labels were only looked at in places: narrow this box to what is labelled"
    if not any(labels.profiles[0]):
        return region, "no labels here: they are in other volumes"
    edges = []
    for profile, start in zip(labels.profiles, region.lower):
        found = [i for i, n in enumerate(profile) if n]
        edges.append((start + found[0], start + found[-1] + 1))
    box = Box(tuple(a for a, _ in edges), tuple(b for _, b in edges))
    if box.size < _CROP * region.size:
        return box, "the box around all labels; widen it if the background around it is labelled, too"
    return region, "labels are found throughout"


def split(labels: LabelFacts, box: Box, region: Box, *, ndim: int) -> tuple[Box, Box, str]:
    """Training and validation boxes: a slab at the end of the longest axis, or the next that is labelled.

    Planes that a 2D network sees by themselves are divided between the two, if there are five or more.

    Raises
    ------
    InputError
        A box of one voxel.
    """
    by_length = sorted(range(3), key=lambda axis: -box.shape[axis])
    if box.size == 1:
        raise InputError(
            "one voxel cannot be divided into training and validation",
            where=box,
            fix="name a larger box that is labelled, with --region",
        )
    axes = [0, *by_length] if ndim == 2 and box.shape[0] >= 5 else by_length
    for axis, at_end in chain(((a, True) for a in axes), ((a, False) for a in axes)):
        thick = max(1, round(HELD_OUT * box.shape[axis]))
        cut = box.upper[axis] - thick if at_end else box.lower[axis] + thick
        below, above = _cut(box, axis, cut)
        training, held_out = (below, above) if at_end else (above, below)
        if all(part and _labelled(labels, part, region, axis) for part in (training, held_out)):
            where = f"at the {'end' if at_end else 'beginning'} of axis {'zyx'[axis]}"
            return training, held_out, f"{thick} of {box.shape[axis]} voxels {where}"
    below, above = _cut(box, by_length[0], box.upper[by_length[0]] - 1)
    return below, above, "no slab holds labels: choose a box that does"


def _cut(box: Box, axis: int, at: int) -> tuple[Box, Box]:
    upper = tuple(at if a == axis else n for a, n in enumerate(box.upper))
    lower = tuple(at if a == axis else n for a, n in enumerate(box.lower))
    return Box(box.lower, upper), Box(lower, box.upper)


def _labelled(labels: LabelFacts, part: Box, region: Box, axis: int) -> bool:
    start = part.lower[axis] - region.lower[axis]
    return any(labels.profiles[axis][start : start + part.shape[axis]])
