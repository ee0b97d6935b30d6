"""The training curve as a picture: loss above, validation metrics below, over the steps."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, floor, isfinite, log10
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from unet_core.records.rows import TrainingRow, metric_names

CURVE = "training.png"
Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

# Okabe and Ito, "Color universal design" (2008); yellow is too pale for a line on white.
_COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
)
_INK, _GRID, _PALE, _PAPER = (30, 30, 30), (225, 225, 225), (170, 205, 228), (255, 255, 255)
_SCALE = 2  # drawn so many times larger, then reduced: smooth lines
_WIDTH, _PANEL, _TEXT = 900, 260, 14
_LEFT, _RIGHT, _TOP, _BOTTOM, _LINE = 76, 20, 14, 44, 20
_DECADES = 10  # a loss that spans more than this factor is drawn on a logarithmic axis
_SMOOTH = 40  # a smoothed point is the mean over one part in so many of the curve
_TICKS = 6
_CHOSEN = ("threshold", "threshold probability")  # no measure of quality


@dataclass(frozen=True)
class _Line:
    name: str
    points: Points
    colour: Colour
    width: int = 2
    dots: bool = False


@dataclass(frozen=True)
class _Axis:
    """Values to pixels. `stop` may lie before `start`: the vertical axis grows upwards."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        numbers = self.low, self.high, value
        low, high, x = map(log10, numbers) if self.log else numbers
        return self.start + (x - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            marks = (1, 2, 5) if len(decades) <= _TICKS // 2 else (1,)
            found = [m * 10.0**d for d in decades for m in marks]
        else:
            step = _round_step((self.high - self.low) / _TICKS)
            first = ceil(self.low / step - 1e-9)
            found = [k * step for k in range(first, floor(self.high / step + 1e-9) + 1)]
        return [t for t in found if self.low <= t <= self.high]


def curve_png(rows: Sequence[TrainingRow], *, title: str = "", best_step: int | None = None) -> bytes:
    """A PNG of 900 pixels' width.

    The loss is drawn pale as it is and strong as a running mean, on a logarithmic axis where it spans more
    than a factor of ten. Up to six metrics are drawn: those that lie between 0 and 1 where there are such.

    Parameters
    ----------
    best_step
        The step whose weights were kept: a vertical line.
    """
    losses = [(float(r.step), r.loss) for r in rows if r.loss is not None and isfinite(r.loss)]
    lines = [_Line("", losses, _PALE, width=1), _Line("loss (running mean)", _smooth(losses), _COLOURS[0])]
    panels = [("training loss", lines)]
    metrics = [_Line(n, points, c, dots=True) for (n, points), c in zip(_metrics(rows), _COLOURS)]
    if metrics:
        panels.append(("validation", metrics))
    last = max((r.step for r in rows), default=1)
    height = len(panels) * _PANEL + (_LINE if title else 0)
    picture = Image.new("RGB", (_WIDTH * _SCALE, height * _SCALE), _PAPER)
    draw = _Draw(picture)
    if title:
        draw.text((_LEFT, 6), title)
    for number, (name, shown) in enumerate(panels):
        top = number * _PANEL + (_LINE if title else 0)
        _panel(draw, name, shown, top=top, last=max(last, 1), best_step=best_step)
    data = io.BytesIO()
    small = picture.resize((_WIDTH, height), Image.Resampling.LANCZOS)
    small.save(data, format="PNG", optimize=True)
    return data.getvalue()


def _metrics(rows: Sequence[TrainingRow]) -> list[tuple[str, Points]]:
    """The metrics that are drawn: numbers with the same axis, in their own order."""
    found = []
    for name in metric_names(rows):
        points = [(float(r.step), r.metrics[name]) for r in rows if name in r.metrics]
        known = [(step, value) for step, value in points if value is not None and isfinite(value)]
        if known and name not in _CHOSEN:
            found.append((name, known))
    within = [f for f in found if all(0 <= value <= 1 for _, value in f[1])]
    return (within or found)[: len(_COLOURS)]


class _Draw:
    """Pillow's drawing, in pixels of the small picture."""

    def __init__(self, picture: Image.Image) -> None:
        self._draw = ImageDraw.Draw(picture)
        self._font = ImageFont.load_default(_TEXT * _SCALE)

    def text(self, place: tuple[float, float], text: str, *, anchor: str = "la") -> None:
        self._draw.text(_large(place), text, fill=_INK, font=self._font, anchor=anchor)

    def line(self, points: Iterable[tuple[float, float]], colour: Colour, width: float = 1) -> None:
        large = [_large(p) for p in points]
        self._draw.line(large, fill=colour, width=round(width * _SCALE), joint="curve")

    def dot(self, place: tuple[float, float], colour: Colour) -> None:
        x, y = _large(place)
        self._draw.ellipse((x - 3 * _SCALE, y - 3 * _SCALE, x + 3 * _SCALE, y + 3 * _SCALE), fill=colour)

    def width(self, text: str) -> float:
        return self._font.getlength(text) / _SCALE


def _panel(
    draw: _Draw, name: str, lines: Sequence[_Line], *, top: int, last: int, best_step: int | None
) -> None:
    x = _Axis(0, last, _LEFT, _WIDTH - _RIGHT)
    named: list[tuple[str, Colour | None]] = [(name, None)]
    named += [(line.name, line.colour) for line in lines if line.name]
    named += [(f"kept: step {best_step:,}", _INK)] if best_step is not None else []
    below = _legend(draw, named, top + _TOP - 4)
    values = [value for line in lines for _, value in line.points]
    y = _vertical(values, top + _PANEL - _BOTTOM, below + 4, metrics=lines[0].dots)
    for tick in y.ticks():
        draw.line([(_LEFT, y(tick)), (_WIDTH - _RIGHT, y(tick))], _GRID)
        draw.text((_LEFT - 6, y(tick)), f"{tick:.4g}", anchor="rm")
    for tick in x.ticks():
        draw.line([(x(tick), y.start), (x(tick), y.start + 4)], _INK)
        draw.text((x(tick), y.start + 7), f"{tick:,.0f}" if tick.is_integer() else "", anchor="ma")
    draw.line([(_LEFT, y.stop), (_LEFT, y.start), (_WIDTH - _RIGHT, y.start)], _INK)
    draw.text(((_LEFT + _WIDTH - _RIGHT) / 2, y.start + 24), "step", anchor="ma")
    if best_step is not None:
        draw.line([(x(best_step), y.start), (x(best_step), y.stop)], _INK)
    for line in lines:
        places = [(x(step), y(value)) for step, value in line.points]
        if len(places) > 1:
            draw.line(places, line.colour, line.width)
        for place in places if line.dots or len(places) == 1 else ():
            draw.dot(place, line.colour)


def _legend(draw: _Draw, named: Sequence[tuple[str, Colour | None]], top: float) -> float:
    """Names with their lines' colours, in as many rows as they need; where the last one ends."""
    left: float = _LEFT
    for text, colour in named:
        mark = 0 if colour is None else 24
        if left > _LEFT and left + mark + draw.width(text) > _WIDTH - _RIGHT:
            left, top = _LEFT, top + _LINE
        if colour is not None:
            draw.line([(left, top + 8), (left + 18, top + 8)], colour, 1 if colour == _INK else 3)
        draw.text((left + mark, top), text)
        left += mark + draw.width(text) + 22
    return top + _LINE


def _vertical(values: Sequence[float], start: float, stop: float, *, metrics: bool) -> _Axis:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if metrics and low >= 0 and high <= 1:
        return _Axis(0.0, 1.0, start, stop)
    if low > 0 and high / low > _DECADES:
        return _Axis(low, high, start, stop, log=True)
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return _Axis(low - margin, high + margin, start, stop)


def _smooth(points: Points) -> Points:
    """Running mean over the points around each one, fewer at the ends."""
    reach = len(points) // _SMOOTH // 2
    sums = [0.0, *accumulate(value for _, value in points)]
    result: Points = []
    for i, (step, _) in enumerate(points):
        side = min(reach, i, len(points) - 1 - i)
        result.append((step, (sums[i + side + 1] - sums[i - side]) / (2 * side + 1)))
    return result


def _round_step(about: float) -> float:
    """1, 2 or 5 times a power of ten, not below `about`."""
    power = 10.0 ** floor(log10(about))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= about * (1 - 1e-9))


def _large(place: tuple[Any, Any]) -> tuple[float, float]:
    return place[0] * _SCALE, place[1] * _SCALE
