"""What one panel of a picture shows, as (y, x, RGB) pixels: the image, classes over it, where two differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.targets import IGNORE

Colour = tuple[int, int, int]
Legend = list[tuple[str, Colour | None]]

# Okabe and Ito, "Color universal design" (2008): told apart with every common colour blindness.
ORANGE, SKY, GREEN, YELLOW = (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)
BLUE, VERMILLION, PURPLE = (0, 114, 178), (213, 94, 0), (204, 121, 167)
CLASS_COLOURS: tuple[Colour, ...] = (ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE)
BOTH, ONLY_PREDICTED, ONLY_TRUE, CONFUSED = (255, 255, 255), VERMILLION, SKY, YELLOW


def grey(planes: Sequence[NDArray[Any]]) -> list[NDArray[np.uint8]]:
    """(channel, y, x) intensities to (y, x, RGB), all planes with one stretch.

    The first channel counts, between the 0.5 and 99.5 percentiles of all planes; three uint8 channels are
    RGB.
    """
    if planes[0].shape[0] == 3 and planes[0].dtype == np.uint8:
        return [np.moveaxis(plane, 0, -1) for plane in planes]
    values = [plane[0].astype(np.float32) for plane in planes]
    finite = np.concatenate([plane[np.isfinite(plane)] for plane in values])
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    scaled = (np.nan_to_num((plane - low) / ((high - low) or 1.0)).clip(0, 1) for plane in values)
    return [np.repeat((s * 255).round().astype(np.uint8)[..., np.newaxis], 3, axis=2) for s in scaled]


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


def class_legend(names: Sequence[str]) -> Legend:
    """The legend of `overlay`."""
    return [("classes:", None), *((name, _colour(k)) for k, name in enumerate(names) if k)]


def difference_legend(names: Sequence[str]) -> Legend:
    """The legend of `differences`."""
    if len(names) == 2:
        return [
            ("where they differ:", None),
            (f"{names[1]} in both", BOTH),
            (f"false {names[1]} (only predicted)", ONLY_PREDICTED),
            (f"missed {names[1]} (only in the truth)", ONLY_TRUE),
        ]
    return [
        ("where they differ:", None),
        (f"predicted where the truth has {names[0]}", ONLY_PREDICTED),
        (f"missed: predicted {names[0]}", ONLY_TRUE),
        ("another class", CONFUSED),
    ]


def _blend(pixels: NDArray[np.float32], colour: Colour, opacity: float) -> NDArray[np.float32]:
    result: NDArray[np.float32] = pixels + opacity * (np.asarray(colour, np.float32) - pixels)
    return result


def _colour(k: int) -> Colour:
    return CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)]
