"""What all schemas share: strictness, and how values become one."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.suggestions import refusal
from unet_core.errors import InputError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class Config(BaseModel):
    """Base of all schemas: unknown fields are refused, nothing is coerced silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def argument(description: str) -> Any:
    """A required field that the command line takes by position."""
    return Field(description=description, json_schema_extra={"argument": True})


C = TypeVar("C", bound=Config)


def validate(
    model: type[C], values: dict[str, Any], *, where: str | None = None, options: Collection[str] = ()
) -> C:
    """Values to a config; those named in `options` were typed as options, the others stand in `where`.

    Raises
    ------
    InputError
        Every unknown, missing or ill-typed field, in one message.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise refusal(error, model, where=where, options=options) from None


def read_toml(path: str) -> dict[str, Any]:
    """A TOML file as a dict; InputError where it is missing or does not parse."""
    try:
        return tomllib.loads(Path(path).read_bytes().decode())
    except OSError as error:
        raise InputError("this file cannot be read", where=path, found=error.strerror) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("this is not TOML", where=path, found=error) from None
