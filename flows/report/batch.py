"""The picture of a batch, for eyes: patches before and after augmentation, one row per patch.

| before | after | before | after |     what the network reads, the patch in a frame; then with classes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flows.report.composition import Panel, compose
from flows.report.panels import Colour, class_legend, overlay
from unet_core.errors import InputError
from unet_core.sampling import Patch
from unet_core.targets import IGNORE
from unet_core.tiling import Footprint

_WIDTH = 256  # pixels of a panel: those twice as wide or wider are made smaller, by a whole factor
_FRAME: Colour = (240, 228, 66)
_UNLABELLED: Colour = (64, 64, 64)


def batch_picture(
    before: Sequence[Patch], after: Sequence[Patch], *, footprint: Footprint, class_names: Sequence[str]
) -> Image.Image:
    """Draw patches beside the same ones augmented; of volumes the middle plane of the patch.

    Parameters
    ----------
    before, after
        Of the same random numbers: `Sampler.draw` with `augmented=False` and with True.
    class_names
        For the legend, background first.

    Raises
    ------
    InputError
        No patch, or another number before than after.
    """
    if not before or len(before) != len(after):
        raise InputError(
            "these patches do not make a picture",
            expected="as many before as after, at least one",
            found=f"{len(before)} and {len(after)}",
        )
    # What one compares lies side by side: the image with the image, the classes with the classes.
    rows = [
        [
            panel
            for both in zip(_panels("before", first, footprint), _panels("after", second, footprint))
            for panel in both
        ]
        for first, second in zip(before, after)
    ]
    legend = [*class_legend(class_names), ("not labelled", _UNLABELLED)]
    notes = [
        "after: the same place, flipped, turned and deformed around its middle, and recoloured",
        "in the frame: the patch, which has labels; around it: the context that the network reads",
    ]
    return compose(rows, [legend], notes=notes)


def _panels(title: str, patch: Patch, footprint: Footprint) -> list[Panel]:
    """The input alone, and with the patch's classes."""
    depth, height, width = patch.classes.shape
    (above, top, left), z = footprint.lower, depth // 2
    raw = _pixels(patch.image[:, above + z])
    coloured = raw.copy()
    inside = coloured[top : top + height, left : left + width]
    inside[:] = overlay(inside, patch.classes[z])
    unlabelled = patch.classes[z] == IGNORE
    inside[unlabelled] = inside[unlabelled] // 4 + np.array(_UNLABELLED, np.uint8) * 3 // 4
    box = (left - 1, top - 1, left + width, top + height)
    return [Panel(title, _framed(raw, box)), Panel(f"{title}: classes", _framed(coloured, box))]


def _framed(pixels: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    factor = max(1, pixels.shape[1] // _WIDTH)
    picture = Image.fromarray(pixels)
    ImageDraw.Draw(picture).rectangle(box, outline=_FRAME, width=factor)
    return np.asarray(picture.reduce(factor))


def _pixels(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(channel, y, x), about 0 to 1, as (y, x, RGB): three channels as they are, else the first in grey."""
    channels = plane if len(plane) == 3 else plane[:1].repeat(3, axis=0)
    pixels = (channels.clip(0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
