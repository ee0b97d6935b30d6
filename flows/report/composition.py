"""Rows of panels on one page, with a legend below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flows.report.panels import Colour, Legend
from unet_core.geometry import ceil_div

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PANEL = 256  # least width of a panel in pixels: smaller crops are enlarged by whole factors
_GAP, _TEXT = 8, 15
_LINE, _SWATCH = _TEXT + 8, _TEXT + 6
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


@dataclass(frozen=True)
class Panel:
    title: str
    pixels: NDArray[np.uint8]  # (y, x, RGB)


def compose(
    rows: Sequence[Sequence[Panel]], legends: Sequence[Legend], *, notes: Sequence[str]
) -> Image.Image:
    """Row after row, each of panels of one size, then the legends, and one line per note.

    All panels are enlarged by one whole factor where the widest would be too small to see.
    """
    factor = max(1, ceil_div(_PANEL, max(panels[0].pixels.shape[1] for panels in rows)))
    font = ImageFont.load_default(_TEXT)
    sizes = [(len(panels), *(n * factor for n in panels[0].pixels.shape[:2])) for panels in rows]
    page = max(count * (width + _GAP) for count, _, width in sizes) + _GAP
    if factor > 1:
        notes = [*notes[:-1], f"{notes[-1]}, enlarged {factor} times"]
    texts: list[Legend] = [[(note, None)] for note in notes]
    key = [line for legend in [*legends, *texts] for line in _wrap(legend, font, page - 2 * _GAP)]
    below = _GAP + sum(height + _LINE + _GAP for _, height, _ in sizes)
    picture = Image.new("RGB", (page, below + _LINE * len(key)), _PAPER)
    draw = ImageDraw.Draw(picture)
    top = _GAP
    for panels, (_, height, width) in zip(rows, sizes):
        for i, panel in enumerate(panels):
            left = _GAP + i * (width + _GAP)
            draw.text((left, top), panel.title, fill=_INK, font=font)
            # Nearest: a voxel stays a square of one colour.
            pixels = Image.fromarray(panel.pixels).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(pixels, (left, top + _LINE))
        top += height + _LINE + _GAP
    for line in key:
        for left, text, colour in line:
            left += _GAP
            if colour:
                draw.rectangle((left, top + 1, left + _TEXT, top + 1 + _TEXT), fill=colour, outline=_INK)
            draw.text((left + (_SWATCH if colour else 0), top), text, fill=_INK, font=font)
        top += _LINE
    return picture


def _wrap(legend: Legend, font: _Font, width: int) -> list[list[tuple[int, str, Colour | None]]]:
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
