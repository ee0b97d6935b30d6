"""All of deploy/ onto a server: everything checked first, then the pool, deployments and automations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.config import validate
from flows.deployments.applied import Place, apply, wanted
from flows.deployments.automations import ensure_automation, parsed, triggered
from flows.deployments.definitions import (
    Deployment,
    Pool,
    PoolKind,
    read_automations,
    read_definitions,
    read_pool_template,
)
from flows.deployments.parameters import assigned, require_known
from flows.deployments.pools import ensure_pool
from flows.deployments.server import connected
from unet_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; `values` and `resume` as they are typed after --set and --resume."""

    server: str | None
    file: str
    kind: PoolKind = "process"
    pool: str | None = None
    image: str | None = None
    values: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()


def install(request: Request) -> dict[str, Any]:
    """Have all of it on the server, and say what was done. The same again changes nothing.

    Raises
    ------
    InputError
        Files or options that are not valid, or a server that does not answer; nothing was changed.
    """
    if request.image is not None and request.kind == "process":
        raise InputError(
            "a work pool of kind process has no image", fix="--pool-type docker or kubernetes beside --image"
        )
    if request.pool is not None:
        validate(Pool, {"name": request.pool}, where="--pool")
    definitions = read_definitions(request.file)
    folder = Path(request.file).expanduser().absolute().parent
    template = read_pool_template(folder / "work-pools", request.kind)
    files = read_automations(folder / "automations")
    values = assigned(request.values, [d.name for d in definitions.deployments])
    for name in request.resume:
        require_known("--resume", name, values)
    with connected(request.server) as client:
        automations = [parsed(text, where=path) for path, text in files.items()]
        places = {d.name: _place(d, request) for d in definitions.deployments}
        wishes = [
            wanted(
                client,
                entry,
                places[entry.name],
                pull=definitions.pull,
                assigned=values[entry.name],
                resume=entry.name in request.resume,
            )
            for entry in definitions.deployments
        ]
        pools = sorted({place.pool for place in places.values()})
        changes = [ensure_pool(client, pool, request.kind, template) for pool in pools]
        for entry, wish in zip(definitions.deployments, wishes):
            identity, done = apply(client, wish)
            changes += done
            automations += [triggered(t, identity, where=entry.name) for t in entry.triggers]
        changes += [ensure_automation(client, automation) for automation in automations]
        return {
            "command": "deploy",
            "status": "complete",
            "server": str(client.api_url).rstrip("/"),
            "pools": pools,
            "changes": [asdict(change) for change in changes],
        }


def _place(entry: Deployment, request: Request) -> Place:
    """The pool of the file is one of processes; those of other kinds are named after it."""
    name = entry.work_pool.name
    pool = request.pool or (name if request.kind == "process" else f"{name}-{request.kind}")
    return Place(pool=pool, kind=request.kind, image=request.image)
