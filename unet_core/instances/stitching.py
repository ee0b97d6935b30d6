"""Merging anew: other thresholds for instances that are there, from their local labels, without inference."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from unet_core.errors import InputError
from unet_core.geometry import Shape
from unet_core.instances.layout import begin_merge, create_final
from unet_core.instances.plan import MERGE, InstancePlan
from unet_core.instances.watershed.settings import WatershedPlan
from unet_core.ledger import (
    Ledger,
    RunRecord,
    Stage,
    agree,
    begin,
    begun,
    read_record,
    require_apart,
    require_replaceable,
)
from unet_core.pyramid import PyramidPlan
from unet_core.volumes import Store, Volume

KIND = "stitch"


@dataclass(frozen=True, kw_only=True)
class StitchRequest:
    """What is asked for. `labels`: an output with instances; None: as it has it.

    `persistence` and `prominence` are a watershed's.
    """

    labels: str
    to: str
    min_size: int | None = None
    persistence: float | None = None
    prominence: float | None = None
    restart: bool = False


@dataclass(frozen=True, kw_only=True)
class StitchPlan:
    """Everything that was resolved; JSON-ready.

    Attributes
    ----------
    run
        Fingerprint of the run whose local labels are merged.
    volume, level, channels, timepoint, classes
        Of that run: its input, and names of its classes.
    """

    run: str
    volume: str
    level: int
    channels: tuple[int, ...]
    timepoint: int
    classes: tuple[str, ...]
    instances: InstancePlan
    pyramid: PyramidPlan
    chunk: Shape
    shard: Shape

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "instances": self.instances.to_dict(),
            "pyramid": self.pyramid.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StitchPlan:
        lists = {name: tuple(data[name]) for name in ("channels", "classes", "chunk", "shard")}
        return cls(
            **{
                **data,
                **lists,
                "instances": InstancePlan.from_dict(data["instances"]),
                "pyramid": PyramidPlan.from_dict(data["pyramid"]),
            }
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order."""
        return (*self.instances.stages, *self.pyramid.stages)


@dataclass(frozen=True, kw_only=True)
class PlannedStitch:
    """A checked request. `record`: that of the run it goes on with, or a new one."""

    plan: StitchPlan
    record: RunRecord


def plan_stitch(request: StitchRequest) -> PlannedStitch:
    """Check what is asked for and resolve the rest; writes nothing.

    Raises
    ------
    InputError
        No instances at `labels`, blocks that are not labelled yet, an output that is something else.
    """
    source, output = Store(request.labels), Store(request.to)
    record = read_record(source)
    if record is None or "instances" not in record.plan:
        raise InputError(
            "there are no instances to merge anew",
            where=source.url,
            expected="an output of unet-flows segment --instances",
            found="no run record there"
            if record is None
            else f"an output of {record.kind} without instances",
        )
    if record.kind == KIND:
        raise InputError(
            "this output was itself merged from another",
            where=source.url,
            fix=f"merge from that one: {record.plan['instances']['source']}",
        )
    require_apart(output, (source,))
    theirs = InstancePlan.from_dict(record.plan["instances"])
    _require_labelled(source, theirs)
    _require_image(record)
    plan = StitchPlan(
        run=record.fingerprint,
        volume=record.plan["volume"],
        level=record.plan["level"],
        channels=tuple(record.plan["channels"]),
        timepoint=record.plan["timepoint"],
        classes=tuple(record.plan["classes"]),
        instances=replace(
            theirs,
            source=source.url,
            min_size=request.min_size or theirs.min_size,
            watershed=_watershed_of(theirs, request),
        ),
        pyramid=PyramidPlan.from_dict(record.plan["pyramid"]),
        chunk=tuple(record.plan["tiling"]["chunk"]),
        shard=tuple(record.plan["tiling"]["shard"]),
    )
    identity = {"run": plan.run, "instances": plan.instances.identity}
    if request.restart:
        require_replaceable(output, KIND)
        begun_before = None
    else:
        begun_before = begun(output, KIND, identity)
    if begun_before is not None:
        plan = StitchPlan.from_dict(begun_before.plan)
        if plan.instances.source != source.url:
            raise InputError(
                "the labels were elsewhere when this merge began",
                where=output.url,
                expected=plan.instances.source,
                found=source.url,
                fix="put them back, or begin anew: --restart",
            )
    return PlannedStitch(plan=plan, record=begun_before or RunRecord(KIND, identity, plan.to_dict()))


def start_stitch(planned: PlannedStitch, output: Store) -> None:
    """Write the run record and the output's empty group."""
    begin(output, planned.record)
    begin_merge(output)


def prepare_stitched(output: Store, plan: StitchPlan) -> None:
    """Make the arrays of the ids, once they are merged."""
    create_final(
        output,
        template=f"{plan.instances.source}/local",
        pyramid=plan.pyramid,
        chunk=plan.chunk,
        shard=plan.shard,
        source=plan.volume
        if output.remote or "://" in plan.volume
        else os.path.relpath(plan.volume, output.url),
    )


def _watershed_of(theirs: InstancePlan, request: StitchRequest) -> WatershedPlan | None:
    asked = {"persistence": request.persistence, "prominence": request.prominence}
    if theirs.watershed is not None:
        return theirs.watershed.with_thresholds(**asked)
    given = [f"--{name}" for name, value in asked.items() if value is not None]
    if given:
        raise InputError(
            "these instances are no watershed",
            where=request.labels,
            expected="--min-size alone",
            found=", ".join(given),
        )
    return None


def _require_image(record: RunRecord) -> None:
    """Refuse where the image, which is measured anew, is gone or another one."""
    image = Volume.reopen(record.plan)
    then, now = record.identity["volume"], image.identity()
    voxels = ("shape", "dtype", "content")
    if not all(agree(then[name], now[name]) for name in voxels):
        raise InputError(
            "the image is not the one that was segmented: its objects cannot be measured",
            where=image.url,
            expected="the same voxels",
            found="others",
            fix="put that one back",
        )


def _require_labelled(source: Store, plan: InstancePlan) -> None:
    """All that the merge reads must be there; the merge itself need not be done."""
    for stage in plan.stages:
        if stage.name == MERGE:
            return
        done = Ledger(source, stage.name, stage.count).read().done.sum()
        if done < stage.count:
            raise InputError(
                "these instances are not complete",
                where=source.url,
                expected=f"{stage.count} blocks of {stage.name}",
                found=f"{done}",
                fix="give the command that makes them once more: it does only what is missing",
            )
