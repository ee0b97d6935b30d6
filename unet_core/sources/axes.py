"""What the axes of a file's array are called: as asked for, as the file says, or by its dimensions."""

from __future__ import annotations

from unet_core.errors import InputError
from unet_core.geometry import Shape
from unet_core.metadata import AXES

_COLOURS = 4  # no more channels than this in an interleaved colour image: RGBA


def resolve_axes(asked: str | None, known: str | None, shape: Shape, *, where: str) -> str:
    """Axes of an array in its stored order, such as "zyx" or "yxc".

    Parameters
    ----------
    asked
        What the user says (`--axes`): it overrides the file.
    known
        What the file says; None where it does not, or not clearly.

    Raises
    ------
    InputError
        `asked` is not one letter of t, c, z, y, x per dimension with y and x among them, or the axes
        can only be guessed.
    """
    if asked is not None:
        return _checked(asked.lower().replace(",", ""), shape, where)
    if known is not None:
        return known
    if len(shape) == 2:
        return "yx"
    if len(shape) == 3 and not (shape[-1] <= _COLOURS < min(shape[:-1])):
        return "zyx"
    example = {3: "yxc", 4: "czyx", 5: "tczyx"}.get(len(shape), "zyx")
    raise InputError(
        "the axes of this array cannot be guessed",
        where=where,
        expected="--axes with one letter of t, c, z, y, x per dimension",
        found=f"shape {shape}",
        fix=f"say what they are, in this order, such as --axes {example}",
    )


def _checked(axes: str, shape: Shape, where: str) -> str:
    if len(axes) != len(shape):
        raise InputError(
            "--axes does not fit the array",
            where=where,
            expected=f"{len(shape)} letters for shape {shape}",
            found=f"{axes!r}, {len(axes)} letters",
        )
    if set(axes) - set(AXES) or len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes):
        raise InputError(
            "--axes does not name axes that we know",
            where=where,
            expected="letters of t, c, z, y, x, each at most once, y and x among them",
            found=repr(axes),
        )
    return axes
