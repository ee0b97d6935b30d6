"""A work pool that is there, of the kind that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.deployments.changes import Change
from flows.deployments.definitions import PoolKind
from unet_core.errors import InputError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def ensure_pool(client: SyncPrefectClient, name: str, kind: PoolKind, template: dict[str, Any]) -> Change:
    """Make a work pool where there is none; one that is there is left as people have set it up.

    Raises
    ------
    InputError
        There is one of another kind.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(
                name=name,
                type=kind,
                base_job_template=template,
                description=f"Runs of unet-flows, kind {kind}",
            )
        )
        return Change("work pool", name, "made", kind)
    if there.type != kind:
        raise InputError(
            "this work pool is of another kind",
            where=name,
            expected=kind,
            found=there.type,
            fix=f"--pool-type {there.type}, or another --pool",
        )
    return Change("work pool", name, "unchanged", f"{kind}, paused" if there.is_paused else kind)
