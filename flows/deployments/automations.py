"""Automations by name: made where there is none, updated where it differs, and never two of a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.deployments.changes import Change
from unet_core.errors import InputError

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore


def parsed(values: dict[str, Any], *, where: str) -> AutomationCore:
    """A file's automation as Prefect's own model; InputError names what is wrong with it."""
    from prefect.events.schemas.automations import AutomationCore
    from pydantic import ValidationError

    try:
        return AutomationCore.model_validate(values)
    except ValidationError as error:
        raise InputError("this automation is not valid", where=where, found=_problems(error)) from None


def triggered(spec: dict[str, Any], deployment: UUID, *, where: str) -> AutomationCore:
    """The automation that a deployment's trigger stands for; it goes when the deployment goes.

    Raises
    ------
    InputError
        The trigger is not valid, or has no name to find it again by.
    """
    from prefect.events import DeploymentTriggerTypes
    from pydantic import TypeAdapter, ValidationError

    if not spec.get("name"):
        raise InputError("this trigger has no name", where=where)
    try:
        trigger: Any = TypeAdapter(DeploymentTriggerTypes).validate_python(spec)
    except ValidationError as error:
        raise InputError("this trigger is not valid", where=where, found=_problems(error)) from None
    trigger.set_deployment_id(deployment)
    automation: AutomationCore = trigger.as_automation()
    return automation


def ensure_automation(client: SyncPrefectClient, wanted: AutomationCore) -> Change:
    """Have this automation once. Whether it is switched on is left as people have set it."""
    there = client.read_automations_by_name(wanted.name)
    if not there:
        client.create_automation(wanted)
        return Change("automation", wanted.name, "made", _state(wanted))
    first, *others = there
    kept = wanted.model_copy(update={"enabled": first.enabled})
    for double in others:
        client.delete_automation(double.id)
    if _changeable(first) != _changeable(kept):
        client.update_automation(first.id, _whole(kept))
        return Change("automation", wanted.name, "updated", _state(kept))
    if others:
        return Change(
            "automation", wanted.name, "updated", f"{_state(kept)}; {len(others)} more of it taken away"
        )
    return Change("automation", wanted.name, "unchanged", _state(kept))


def _whole(automation: AutomationCore) -> AutomationCore:
    """With every field said: the client sends only those that are set, and the server needs all of them."""
    return type(automation).model_validate(_changeable(automation))


def _changeable(automation: AutomationCore) -> dict[str, Any]:
    """What the server can be told to change: all but who owns it, which it knows only from the start.

    As Python's values, since a trigger's events are sets: as JSON they would come in any order.
    """
    from prefect.events.schemas.automations import AutomationCore

    return automation.model_dump(include=set(AutomationCore.model_fields) - {"owner_resource"})


def _state(automation: AutomationCore) -> str:
    return "on" if automation.enabled else "off"


def _problems(error: Any) -> str:
    return "\n".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
