"""A schema as a function's signature: what Prefect's parameter form and deployments show."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from pydantic.fields import FieldInfo

from flows.config import Config


def signature_of(model: type[Config]) -> inspect.Signature:
    """The config's fields as keyword parameters, for Prefect's parameter form."""
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty
                if field.is_required()
                else field.get_default(call_default_factory=True),
                annotation=Annotated[field.annotation, *field.metadata, Field(description=_in_a_form(field))],
            )
            for name, field in _required_first(model)
        ]
    )


def takes(model: type[Config]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function of `**parameters` the signature of a config, so that the schema stands in one place."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__signature__ = signature_of(model)  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in signature_of(model).parameters.values()}
        lines = [f"    {name}: {_in_a_form(field)}" for name, field in model.model_fields.items()]
        function.__doc__ = "\n".join([function.__doc__ or "", "", "Args:", *lines])
        return function

    return decorate


def _in_a_form(field: FieldInfo) -> str:
    """The description, with parameters named as in a form: mask_level, where options are --mask-level."""
    return re.sub(r"--([a-z][a-z-]*)", lambda option: option[1].replace("-", "_"), field.description or "")


def _required_first(model: type[Config]) -> list[tuple[str, Any]]:
    return sorted(model.model_fields.items(), key=lambda item: not item[1].is_required())
