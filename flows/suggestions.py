"""What is wrong with values that people gave: the key that they may have meant, not all that there are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from typing import get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from unet_core.errors import InputError


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """`; did you mean ...?` with the known word that is nearest, or nothing."""
    near = get_close_matches(str(word).lower(), list(map(str, known)), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def quoted(text: str) -> list[str]:
    """The words in single quotes, as pydantic and typer list choices."""
    return re.findall(r"'([^']*)'", text)


def refusal(
    error: ValidationError, model: type[BaseModel], *, where: str | None, options: Collection[str] = ()
) -> InputError:
    """All problems of some values in one error; lists a table's keys only where none is near.

    Fields named in `options` are called as the command line calls them.
    """
    problems, known = [], []
    for problem in error.errors():
        place = tuple(part for part in problem["loc"] if isinstance(part, str))
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            near = _meant(place, model)
            text = f"unknown key{near}"
            if not near:
                known.append(f"{'.'.join(place[:-1]) or 'keys'}: {', '.join(_table(model, place[:-1]))}")
        elif problem["type"] == "literal_error":
            text += did_you_mean(problem["input"], quoted(problem["ctx"]["expected"]))
        problems.append(f"{_given(problem, model, options)}: {text}")
    several = len(problems) > 1
    return InputError(
        "these parameters are not valid" if several else "this parameter is not valid",
        where=where,
        expected="\n".join(dict.fromkeys(known)),
        found="\n".join(problems),
    )


def _given(problem: ErrorDetails, model: type[BaseModel], options: Collection[str]) -> str:
    """Which value is wrong, and what it is, as it was written: `--base 0`, or `base = 0` in a file."""
    loc, value = problem["loc"], problem["input"]
    name, option = ".".join(map(str, loc)) or "the whole", ""
    if len(loc) == 1 and loc[0] in options:
        hints = model.model_fields[name].json_schema_extra
        known = hints if isinstance(hints, dict) else {}
        option = str(known.get("option", f"--{name.replace('_', '-')}"))
        name = name.upper() if known.get("argument") else option
    if problem["type"] in ("missing", "extra_forbidden") or not isinstance(value, str | int | float):
        return name
    return f"{name} {value}" if option else f"{name} = {value!r}"


def _meant(place: tuple[str, ...], model: type[BaseModel]) -> str:
    """Where an unknown key belongs, or the key of its table that is nearest to it."""
    *table, key = place
    elsewhere = {path[-1]: path for path in reversed([*_paths(model)])}
    if key not in elsewhere:
        return did_you_mean(key, _table(model, tuple(table)))
    *there, _ = elsewhere[key]
    return f"; it belongs {f'into {_header(model, there[0])}' if there else 'above the first table'}"


def _header(model: type[BaseModel], name: str) -> str:
    """As TOML writes it above a table, or above each of several."""
    several = get_origin(model.model_fields[name].annotation) is list
    return f"[[{name}]]" if several else f"[{name}]"


def _table(model: type[BaseModel], place: tuple[str, ...]) -> tuple[str, ...]:
    """The keys of a table, which a path through the fields of `model` leads to."""
    inner: type[BaseModel] | None = model
    for name in place:
        inner = None if inner is None or name not in inner.model_fields else _model_in(inner, name)
    return () if inner is None else tuple(inner.model_fields)


def _paths(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name in model.model_fields:
        inner = _model_in(model, name)
        yield from ((name, *rest) for rest in _paths(inner)) if inner else ((name,),)


def _model_in(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The schema of a field that is a table or a list of tables."""
    annotation = model.model_fields[name].annotation
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
