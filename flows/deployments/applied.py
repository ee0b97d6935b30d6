"""Deployments on the server: what is wanted of one, beside what is there, and only the difference sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flows.deployments.changes import Change, Did
from flows.deployments.definitions import Deployment, PoolKind
from flows.deployments.parameters import checked, missing, require_valid
from flows.deployments.schedules import Schedules, schedules_of
from unet_core.errors import InputError

if TYPE_CHECKING:
    from uuid import UUID

    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs are done. `image`: what containers are made of; None where it is not said anew."""

    pool: str
    kind: PoolKind
    image: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A deployment as it shall be, checked, and as it is: `there` is None where it is new.

    `values` are compared with what is there, and sent where they differ; `missing` are parameters without
    which no run can begin.
    """

    name: str
    flow: str
    values: dict[str, Any]
    schedules: Schedules
    missing: list[str]
    there: DeploymentResponse | None = field(repr=False)


def wanted(
    client: SyncPrefectClient,
    entry: Deployment,
    place: Place,
    *,
    pull: list[dict[str, Any]],
    assigned: dict[str, str],
    resume: bool,
) -> Wanted:
    """What this entry of the file asks for, on this server; nothing is changed.

    Raises
    ------
    InputError
        A flow that cannot be imported, parameters that it does not take, an image that is not said, or a
        schedule that would start runs that cannot work.
    """
    from prefect.exceptions import ObjectNotFound
    from prefect.utilities.callables import parameter_schema

    flow = _load(entry)
    schema = parameter_schema(flow).model_dump(exclude_unset=True)
    try:
        there = client.read_deployment_by_name(f"{flow.name}/{entry.name}")
    except ObjectNotFound:
        there = None
    given = {**entry.parameters, **checked(entry.name, assigned, schema)}
    require_valid(given, schema, where=entry.name)
    # What the file does not name may have been set by people, or by an earlier --set.
    kept = {k: v for k, v in (there.parameters if there else {}).items() if k in schema["properties"]}
    parameters = {**kept, **given}
    events = {name: None for trigger in entry.triggers for name in trigger.get("parameters") or {}}
    lacking = missing({**parameters, **events}, schema)
    if resume and (lacking or not entry.schedules):
        raise InputError(
            f"--resume {entry.name}: its runs could not begin"
            if lacking
            else f"--resume {entry.name}: no schedule",
            expected=f"values for {', '.join(lacking)}" if lacking else "a deployment with schedules",
            fix=" ".join(f"--set {entry.name}.{name}=..." for name in lacking) or None,
        )
    return Wanted(
        name=entry.name,
        flow=flow.name,
        values={
            "entrypoint": entry.entrypoint,
            "description": entry.description,
            "tags": sorted(entry.tags),
            "work_pool_name": place.pool,
            "job_variables": _job_variables(entry, place, there),
            "concurrency_limit": entry.concurrency_limit.limit,
            "concurrency_options": {"collision_strategy": entry.concurrency_limit.collision_strategy},
            "parameters": parameters,
            "parameter_openapi_schema": schema,
            "enforce_parameter_schema": True,
            "pull_steps": pull,
        },
        schedules=schedules_of(entry.schedules, there.schedules if there else [], resume=resume),
        missing=lacking,
        there=there,
    )


def apply(client: SyncPrefectClient, wish: Wanted) -> tuple[UUID, list[Change]]:
    """Make it so; the deployment's id, and what was done with it and with each of its schedules."""
    there = wish.there
    before = {} if there is None else _values(there)
    different = [name for name, value in wish.values.items() if there is not None and before[name] != value]
    if there is None or different or wish.schedules.differ:
        # This replaces all schedules, and takes back what the old ones had planned.
        identity = client.create_deployment(
            flow_id=client.create_flow_from_name(wish.flow),
            name=wish.name,
            schedules=wish.schedules.to_send(),
            **wish.values,
        )
    else:
        identity = there.id
    full_name = f"{wish.flow}/{wish.name}"
    did: Did = "made" if there is None else "updated" if different else "unchanged"
    return identity, [
        Change("deployment", full_name, did, _note(wish, different)),
        *wish.schedules.changes(full_name),
    ]


def _note(wish: Wanted, different: list[str]) -> str:
    facts = [str(wish.values["work_pool_name"])]
    if different:
        facts.append(f"other {', '.join(name.replace('_', ' ') for name in different)}")
    if wish.missing:
        facts.append(f"each run asks for {', '.join(wish.missing)}")
    if wish.there is not None and wish.there.paused:
        facts.append("paused")
    return "; ".join(facts)


def _load(entry: Deployment) -> Flow[..., Any]:
    from prefect.exceptions import MissingFlowError
    from prefect.flows import load_flow_from_entrypoint

    try:
        return load_flow_from_entrypoint(entry.entrypoint, use_placeholder_flow=False)
    except (ImportError, MissingFlowError) as error:
        raise InputError(
            "this deployment's flow cannot be imported",
            where=entry.name,
            expected="package.module.flow, installed here and where workers run",
            found=f"{entry.entrypoint}: {error}",
        ) from None


def _job_variables(entry: Deployment, place: Place, there: DeploymentResponse | None) -> dict[str, Any]:
    """Those of the file, and the image: that which is said, or said before."""
    variables = dict(entry.work_pool.job_variables)
    if place.kind == "process":
        return variables
    image = place.image or variables.get("image") or (there.job_variables.get("image") if there else None)
    if image is None:
        raise InputError(
            f"a work pool of kind {place.kind} needs an image",
            where=entry.name,
            fix="--image NAME:TAG, one with unet-flows installed, as deploy/Dockerfile builds it",
        )
    return {**variables, "image": image}


def _values(there: DeploymentResponse) -> dict[str, Any]:
    """What is there, in the form of `Wanted.values`."""
    limit, options = there.global_concurrency_limit, there.concurrency_options
    return {
        "entrypoint": there.entrypoint,
        "description": there.description,
        "tags": sorted(there.tags),
        "work_pool_name": there.work_pool_name,
        "job_variables": there.job_variables,
        "concurrency_limit": None if limit is None else limit.limit,
        "concurrency_options": None
        if options is None
        else {"collision_strategy": options.collision_strategy.value},
        "parameters": there.parameters,
        "parameter_openapi_schema": there.parameter_openapi_schema,
        "enforce_parameter_schema": there.enforce_parameter_schema,
        "pull_steps": there.pull_steps,
    }
