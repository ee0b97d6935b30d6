"""Schedules of one deployment: the file says when, people say whether; those made by hand are left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.deployments.changes import Change
from flows.deployments.definitions import Schedule
from unet_core.errors import InputError

if TYPE_CHECKING:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import DeploymentSchedule


@dataclass(frozen=True)
class Schedules:
    """`wanted` shall be there, `before` was there, by slug; `others`, without one, were made by hand."""

    wanted: dict[str, DeploymentScheduleCreate]
    before: dict[str, DeploymentScheduleCreate]
    others: list[DeploymentScheduleCreate]

    @property
    def differ(self) -> bool:
        return self.wanted != self.before

    def to_send(self) -> list[DeploymentScheduleCreate]:
        """All that the deployment shall have: the server replaces what it had."""
        return [*self.wanted.values(), *self.others]

    def changes(self, deployment: str) -> list[Change]:
        return [self._change(deployment, slug) for slug in self.wanted]

    def _change(self, deployment: str, slug: str) -> Change:
        wanted, before = self.wanted[slug], self.before.get(slug)
        when: Any = wanted.schedule
        state = "active" if wanted.active else "paused"
        return Change(
            "schedule",
            f"{deployment} {slug}",
            "made" if before is None else "unchanged" if before == wanted else "updated",
            f"{when.cron} {when.timezone}, {state}",
        )


def schedules_of(
    asked: Sequence[Schedule], there: Sequence[DeploymentSchedule], *, resume: bool
) -> Schedules:
    """What the file asks for beside what is there; `resume` makes those of the file active.

    Raises
    ------
    InputError
        A cron expression or a time zone that is none.
    """
    before = {s.slug: _as_sent(s) for s in there if s.slug}
    return Schedules(
        {s.slug: _wanted(s, before.get(s.slug), resume) for s in asked},
        before,
        [_as_sent(s) for s in there if not s.slug],
    )


def _wanted(
    schedule: Schedule, before: DeploymentScheduleCreate | None, resume: bool
) -> DeploymentScheduleCreate:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        when = CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(
            "this schedule is not valid", where=schedule.slug, found=f"{problem['input']!r}: {problem['msg']}"
        ) from None
    return DeploymentScheduleCreate(
        slug=schedule.slug,
        schedule=when,
        active=resume or (schedule.active if before is None else before.active),
        parameters=schedule.parameters,
    )


def _as_sent(schedule: DeploymentSchedule) -> DeploymentScheduleCreate:
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    names = ("slug", "schedule", "active", "max_scheduled_runs", "parameters")
    return DeploymentScheduleCreate(**{name: getattr(schedule, name) for name in names})
