"""`--set DEPLOYMENT.PARAMETER=VALUE`: what is typed, as values that the flow's schema takes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.suggestions import did_you_mean
from unet_core.errors import InputError

# Parameters that name files or stores: a run begins in another folder than the one they are typed in.
_PLACES = ("volume", "model", "to", "prefix", "mask", "image", "labels", "fine_tune", "cluster")


def assigned(texts: Iterable[str], names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Texts by deployment and parameter; deployments are those in `names`.

    Raises
    ------
    InputError
        It does not have this form, or there is no such deployment.
    """
    names = tuple(names)
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for text in texts:
        target, equals, value = text.partition("=")
        name, dot, parameter = target.partition(".")
        if not (equals and dot and parameter):
            raise InputError(
                "--set is not understood",
                expected="DEPLOYMENT.PARAMETER=VALUE, such as watch.to=/labels",
                found=text,
            )
        require_known("--set", name, names)
        found[name][parameter] = value
    return found


def require_known(option: str, name: str, names: Iterable[str]) -> None:
    """Refuse a deployment that is not in the file.

    Raises
    ------
    InputError
        With the names that are.
    """
    names = tuple(names)
    if name not in names:
        raise InputError(
            f"{option} names no deployment of this file",
            expected=" or ".join(names),
            found=f"{name}{did_you_mean(name, names)}",
        )


def checked(deployment: str, texts: dict[str, str], schema: dict[str, Any]) -> dict[str, Any]:
    """Texts as values of the schema: as they are where text is taken, else as JSON, such as 4 or true.

    Raises
    ------
    InputError
        An unknown parameter, a value of another type, a relative path.
    """
    values: dict[str, Any] = {}
    for name, text in texts.items():
        where = f"--set {deployment}.{name}={text}"
        if name not in schema["properties"]:
            near = did_you_mean(name, schema["properties"])
            raise InputError("this flow has no such parameter", where=where, found=f"{name}{near}")
        value = values[name] = _value(name, text, schema, where)
        local = name in _PLACES and isinstance(value, str) and "://" not in value
        if local and not Path(text).is_absolute():
            raise InputError(
                "a worker does not begin in this folder, so a relative path leads elsewhere",
                where=where,
                expected="an absolute path, or a URL such as s3://bucket/volume.zarr",
                fix=f"--set {deployment}.{name}={Path(text).expanduser().absolute()}",
            )
    return values


def missing(values: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Parameters that a run cannot do without and that have no value."""
    return [name for name in schema.get("required", ()) if name not in values]


def require_valid(values: dict[str, Any], schema: dict[str, Any], *, where: str) -> None:
    """Refuse values that the schema does not take; what is missing may come with a run.

    Raises
    ------
    InputError
        The first that is wrong.
    """
    if unknown := [name for name in values if name not in schema["properties"]]:
        near = did_you_mean(unknown[0], schema["properties"])
        raise InputError("this flow has no such parameter", where=where, found=f"{unknown[0]}{near}")
    if problem := _problem(values, schema):
        raise InputError("this parameter is not valid", where=where, found=problem)


def _value(name: str, text: str, schema: dict[str, Any], where: str) -> Any:
    """Text, unless it is written as a table or a list, or only JSON is taken, such as a number."""
    with suppress(json.JSONDecodeError):
        value = json.loads(text)
        if (text[:1] in "{[" or _problem({name: text}, schema)) and not _problem({name: value}, schema):
            return value
    if problem := _problem({name: text}, schema):
        raise InputError("this parameter is not valid", where=where, found=problem)
    return text


def _problem(values: dict[str, Any], schema: dict[str, Any]) -> str | None:
    from prefect.utilities.schema_tools import validate

    errors = validate(values, schema, ignore_required=True)
    return None if not errors else f"{errors[0].json_path.removeprefix('$.')}: {errors[0].message}"
