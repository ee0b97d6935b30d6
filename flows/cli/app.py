"""The application that commands register with, and what all of them share."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from flows.config import Config
from unet_core.errors import InputError

app = typer.Typer(
    name="unet-flows",
    help="Exact tiled U-Net segmentation of microscopy volumes too big for one machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before --restart takes an output away")]
Output = Annotated[str, typer.Argument(help="An output of ingest, train or segment", show_default=False)]


def options_of(
    model: type[Config], *, over_file: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a config as arguments and options: one schema, one help text.

    With `over_file` an option that is not given is None, so that a file's value stands.
    """

    def parameter(name: str, field: FieldInfo) -> inspect.Parameter:
        hints = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if hints.get("argument"):
            mark: Any = typer.Argument(help=field.description, show_default=False)
        else:
            flag = str(hints.get("option", f"--{name.replace('_', '-')}"))
            mark = typer.Option(flag, help=field.description)
        kind = _typed(field.annotation)
        default = inspect.Parameter.empty if field.is_required() else field.default
        if over_file:
            kind, default = kind | None, None
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, mark]
        )

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters.values()
        shared = [
            parameter(name, field)
            for name, field in model.model_fields.items()
            if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("file_only"))
        ]
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*shared, *(p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind != p.VAR_KEYWORD)]
        )
        return function

    return decorate


def _typed(annotation: Any) -> Any:
    """What can be typed of what a field takes: not the tables of a file."""
    kinds = get_args(annotation) if get_origin(annotation) is UnionType else ()
    return reduce(or_, (k for k in kinds if get_origin(k) is not dict)) if kinds else annotation


def require_there(problem: str, *paths: str | None, fix: str = "check the path") -> None:
    """Refuse local paths where nothing lies, before libraries that would open them are loaded, for seconds.

    URLs and sets (`*`) are left to those who read them.

    Raises
    ------
    InputError
        The `problem`, for the first of such paths.
    """
    for path in paths:
        known = path is None or "://" in path or "*" in path or Path(path).expanduser().exists()
        if path is not None and not known:
            where = Path(path).expanduser().absolute()
            raise InputError(problem, where=where, found="nothing there", fix=fix)


def require_new(problem: str, path: str, *, fix: str) -> None:
    """Refuse to write a file where one is, or where no folder is, before any work.

    Raises
    ------
    InputError
        The `problem`.
    """
    place = Path(path)
    taken = place.exists() or place.is_symlink()
    if taken or not place.absolute().parent.is_dir():
        found = "there is something already" if taken else "no such folder"
        raise InputError(problem, where=path, found=found, fix=fix)


def confirm_restart(config: Config, yes: bool) -> None:
    """Ask before an output is taken away.

    Raises
    ------
    InputError
        Nobody is there to answer, or the answer is no.
    """
    from unet_core.volumes import Store

    if not getattr(config, "restart", False) or yes or not Store(config.to).exists():  # type: ignore[attr-defined]
        return
    if not sys.stdin.isatty():
        raise InputError(
            "--restart takes the output away, and nobody is here to be asked", fix="add --yes to mean it"
        )
    try:
        what = "what was made of these files in " if getattr(config, "each", False) else ""
        sure = typer.confirm(f"Delete {what}{config.to} and begin anew?", err=True)  # type: ignore[attr-defined]
    except typer.Abort:  # the end of input
        sure = False
    if not sure:
        raise InputError("nothing was taken away, nothing was begun")


def report(document: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Print a command's document: as JSON, or as `show` does it for people."""
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        show(document)
