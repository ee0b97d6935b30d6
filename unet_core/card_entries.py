"""What the entries of a model.json, or of a description for `import`, must be; what is not, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from unet_core.errors import InputError


@dataclass(frozen=True)
class Entry:
    """Whether a value from JSON or TOML is of the right kind, and what that is in words."""

    fits: Callable[[Any], bool]
    words: str
    needed: bool = True


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _optional(fits: Callable[[Any], bool], words: str) -> Entry:
    return Entry(lambda value: value is None or fits(value), words, needed=False)


_SIZES = Entry(_list_of(_list_of(_integer)), "a list of lists of integers, such as [[3, 3], [3, 3]]")
_PER_CHANNEL = Entry(_list_of(_number), "a list with one finite number per channel")
SPEC = {
    "in_channels": Entry(_integer, "an integer"),
    "classes": Entry(_integer, "an integer"),
    "widths": Entry(_list_of(_integer), "a list of integers, such as [32, 64]"),
    "kernels": _SIZES,
    "pools": _SIZES,
    "upsampling": Entry(_text, "text", needed=False),
    "dropout": Entry(_number, "a number", needed=False),
    "norm": Entry(_text, "text", needed=False),
}
RULE = {
    "rule": Entry(_text, "text", needed=False),
    "low": Entry(_number, "a number", needed=False),
    "high": Entry(_number, "a number", needed=False),
}
SCALE = {"offset": _PER_CHANNEL, "spread": _PER_CHANNEL}
CARD = {
    "spec": Entry(_table, "a table: the network"),
    "class_names": Entry(_list_of(_text), 'a list of text, such as ["background", "cell"]'),
    "target": Entry(_text, "text"),
    "normalisation": Entry(_table, 'a table, such as {"rule": "percentiles", "low": 1, "high": 99}'),
    "scale": Entry(_table, 'a table, such as {"offset": [0.0], "spread": [1.0]}'),
    "voxel_size": _optional(_list_of(_number), "three finite numbers above 0, or null"),
    "unit": _optional(_text, "text or null"),
    "threshold": _optional(_number, "a probability from 0 to 1, or null"),
    "notes": Entry(_table, "a table", needed=False),
}


def require_entries(table: Any, known: Mapping[str, Entry], *, place: str = "") -> None:
    """Refuse what is no table of these entries.

    Parameters
    ----------
    place
        The table's own name; empty for the whole.

    Raises
    ------
    InputError
        An entry that is unknown, missing or of another kind; `where` names it.
    """
    problem = "this model description cannot be read"
    if not _table(table):
        raise InputError(problem, where=place, expected="a table", found=_short(table))
    for name in table:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise InputError(
                problem,
                where=place,
                expected=near[0] if near else f"one of {', '.join(known)}",
                found=f"an unknown entry: {name}",
            )
    for name, entry in known.items():
        if name not in table and entry.needed:
            raise InputError(
                problem, where=place, expected=f"{name}: {entry.words}", found=f"no entry {name}"
            )
        if name in table and not entry.fits(table[name]):
            where = f"{place}, {name}" if place else name
            raise InputError(problem, where=where, expected=entry.words, found=_short(table[name]))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
