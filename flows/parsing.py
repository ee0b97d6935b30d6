"""What people type, as values: boxes, shapes, numbers, one of several names. Refused with InputError."""

from __future__ import annotations

import re
from typing import Any, get_args

from flows.suggestions import did_you_mean
from unet_core.errors import InputError
from unet_core.geometry import Box, Shape


def choice(name: str, value: str | None, choices: Any) -> Any:
    """A value that must be one of a Literal's; InputError lists them."""
    known = get_args(choices)
    if value is not None and value not in known:
        found = f"{value}{did_you_mean(value, known)}"
        raise InputError(f"{name} is not known", expected=" or ".join(known), found=found)
    return value


def parse_box(text: str | None, volume: Shape | None = None) -> Box | None:
    """`z0:z1,y0:y1,x0:x1` as a box; of a `volume` that is a single plane `y0:y1,x0:x1` will do."""
    box = None if text is None else Box.parse(text)
    return box if box is None or volume is None else box.in_volume(volume)


def parse_shape(name: str, text: str | None, *, ndim: int = 3) -> Shape | None:
    """`z,y,x` or `y,x` as a shape of `ndim` axes; InputError names the option."""
    if text is None:
        return None
    values = parse_integers(name, text)
    if ndim == 3 and len(values) == 2:
        values = (1, *values)
    if len(values) != ndim or min(values) < 1:
        raise InputError(
            f"{name} is not a shape",
            expected=f"{'z,y,x' if ndim == 3 else 'y,x'}, positive integers",
            found=text,
        )
    return values


def parse_integers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{name} is not a list of integers", expected="such as 0 or 0,1,2", found=text
        ) from None


def parse_bytes(name: str, text: str | None) -> int | None:
    """`8GiB`, `500 MB` or a plain number of bytes."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    size = 0
    if found is not None:
        size = round(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))
    if size <= 0:
        raise InputError(f"{name} is not a number of bytes", expected="such as 8GiB or 500MB", found=text)
    return size


def parse_numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{name} is not a list of numbers", expected="such as 50,4,4", found=text) from None
