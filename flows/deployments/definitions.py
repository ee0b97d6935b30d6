"""The files in deploy/: deployments, automations and work pools, read strictly and without Prefect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from flows.config import Config, validate
from unet_core.errors import InputError

PoolKind = Literal["process", "docker", "kubernetes"]
KINDS: tuple[PoolKind, ...] = get_args(PoolKind)


class Schedule(Config):
    """When runs begin by themselves. The slug tells a schedule from its neighbours, however it is changed."""

    slug: str
    cron: str
    timezone: str = "UTC"
    active: bool = True
    parameters: dict[str, Any] = Field({}, description="Over those of the deployment")


class Concurrency(Config):
    """How many runs of a deployment there are at a time, and what becomes of more."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]


class Pool(Config):
    """Where runs are done."""

    name: str = Field(pattern=r"^[^/%&><]+$")
    job_variables: dict[str, Any] = Field({}, description="Over those of the pool")


class Deployment(Config):
    """One deployment, as Prefect's own `prefect deploy` reads it."""

    name: str
    entrypoint: str = Field(
        pattern=r"^\w+(\.\w+)+$", description="Module path of a flow: package.module.flow"
    )
    description: str
    tags: list[str]
    concurrency_limit: Concurrency
    work_pool: Pool
    parameters: dict[str, Any] = Field({}, description="Of every run that does not say otherwise")
    schedules: list[Schedule] = Field([])
    triggers: list[dict[str, Any]] = Field([], description="Events that start a run, in Prefect's own terms")


class Definitions(Config):
    """A prefect.yaml without build and push steps: the code is installed where workers run."""

    prefect_version: str | None = Field(None, alias="prefect-version")
    name: str | None = None
    # Without any step, Prefect's containers copy their whole working folder before each run.
    pull: list[dict[str, Any]] = Field(min_length=1)
    definitions: dict[str, Any] = Field({}, description="Values that others refer to by their YAML anchors")
    deployments: list[Deployment] = Field(min_length=1)

    @model_validator(mode="after")
    def _named_apart(self) -> Self:
        names = [d.name for d in self.deployments]
        if len(set(names)) < len(names):
            raise ValueError("two deployments have one name")
        return self


def read_definitions(path: str) -> Definitions:
    """The deployments of a file.

    Raises
    ------
    InputError
        It is missing, is not YAML, or says what we do not know.
    """
    fix = "go to the folder that holds deploy/, or name the file with --file"
    values = _mapping(path, _yaml(path, fix=fix))
    for place, text in _texts({**values, "deployments": [_without_triggers(d) for d in _entries(values)]}):
        if "{{" in text:
            raise InputError(
                "templates in this file are filled in by `prefect deploy` alone",
                where=f"{path}: {place}",
                found=text,
                fix="write the value, or leave it out and give it with --set",
            )
    return validate(Definitions, values, where=path)


def read_automations(folder: Path) -> dict[str, dict[str, Any]]:
    """The automations in a folder's YAML files, by file; InputError where one is not a mapping."""
    return {str(path): _mapping(str(path), _yaml(str(path))) for path in sorted(folder.glob("*.yaml"))}


def read_pool_template(folder: Path, kind: PoolKind) -> dict[str, Any]:
    """The base job template of a kind of work pool; InputError where the file is missing or no JSON."""
    path = folder / f"{kind}.json"
    try:
        return _mapping(str(path), json.loads(_text(str(path))))
    except json.JSONDecodeError as error:
        raise InputError("this is not JSON", where=path, found=error) from None


def _yaml(path: str, *, fix: str | None = None) -> Any:
    import yaml

    try:
        return yaml.safe_load(_text(path, fix=fix))
    except yaml.YAMLError as error:
        raise InputError("this is not YAML", where=path, found=error) from None


def _text(path: str, *, fix: str | None = None) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise InputError("this file cannot be read", where=path, found=error.strerror, fix=fix) from None
    except UnicodeDecodeError as error:
        raise InputError("this is not text", where=path, found=error) from None


def _mapping(path: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise InputError("this file holds no mapping", where=path, found=type(values).__name__)
    return values


def _entries(values: dict[str, Any]) -> list[Any]:
    entries = values.get("deployments")
    return entries if isinstance(entries, list) else []


def _without_triggers(entry: Any) -> Any:
    """A trigger's templates are the server's to fill in, with the event."""
    return {k: v for k, v in entry.items() if k != "triggers"} if isinstance(entry, dict) else entry


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested values, and where it is."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in inner:
            yield from _texts(part, f"{place}.{name}" if place else str(name))
