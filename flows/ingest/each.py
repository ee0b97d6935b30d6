"""A set of volumes: every file one of its own, such as 2D images of different sizes.

    images/a.png  ->  FOLDER/a.zarr      each an output like any other, with its own record, ledger and lease:
    images/b.tif  ->  FOLDER/b.zarr      the same command again passes over those that are complete

To Prefect the set is one stage, and a volume what a block is elsewhere.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows import tasks
from flows.attempt import Work, this_worker
from flows.blocks import FAILURES_LISTED, StageResult, run_stage
from flows.config import IngestConfig
from flows.ingest.volume import carry_out, plan_volume
from flows.outcome import IncompleteRunError, Run, owned
from flows.progress import stage_progress
from flows.supervise import InterruptionError
from unet_core.errors import InputError, StoreError, UnetFlowsError
from unet_core.ledger import Failure, Ledger, Stage, read_status
from unet_core.sources import files_of, volume_name
from unet_core.volumes import Store

_LISTED = 10  # files named in an error
STAGE = "volumes"


@dataclass(frozen=True)
class Member:
    """One file of a set, and its volume."""

    file: str
    output: Store
    complete: bool


def plan_each(config: IngestConfig) -> tuple[Member, ...]:
    """Every file checked, nothing written.

    Raises
    ------
    InputError
        All files that cannot be ingested, two files for one volume, a disk that is too small.
    """
    if config.retry_failed:
        raise InputError(
            "--retry-failed goes with one volume, not with --each",
            fix="give the command without it: it does whatever is missing",
        )
    folder = Store(config.to)
    by_name: dict[str, str] = {}
    for file in files_of(config.sources):
        other = by_name.setdefault(volume_name(file), file)
        if other != file:
            raise InputError(
                "two files would become one volume",
                where=f"{folder.url}/{volume_name(file)}.zarr",
                found=f"{other} and {file}",
                fix="ingest them into different folders",
            )
    members, needed, problems = [], 0, []
    for name, file in by_name.items():
        output = folder.child(f"{name}.zarr")
        try:
            planned = plan_volume(config, [file], output)
        except InputError as error:
            problems.append(f"{file}: {error}")
            continue
        planned.source.close()
        complete = planned.resumed and (read_status(output) or {}).get("status") == "complete"
        needed += 0 if planned.resumed else planned.plan.raw_bytes
        members.append(Member(file, output, complete))
    if problems:
        more = f"\nand {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise InputError(
            f"{len(problems)} of {len(by_name)} files cannot be ingested; none was",
            found="\n".join(problems[:_LISTED]) + more,
            fix="mend them or leave them out; where a file has changed since, remove its volume",
        )
    folder.check_writable(needed)
    return tuple(members)


def ingest_each(config: IngestConfig) -> dict[str, Any]:
    """All volumes of a set that are not complete; the document of the set.

    Raises
    ------
    IncompleteRunError
        Some volumes failed, or it had to stop.
    InterruptionError
        Ctrl-C or SIGTERM; with how far it came.
    """
    members = plan_each(config)
    began, folder = time.monotonic(), Store(config.to)
    notes: list[str] = []
    result = volumes(config, members, notes)
    document = {
        "command": "ingest",
        "status": "complete" if result.complete else "partial" if result.stopped else "failed",
        "output": folder.url,
        "stages": {STAGE: result.to_dict()},
        "seconds": round(time.monotonic() - began, 3),
        "notes": notes,
    }
    if result.complete:
        return document
    raise IncompleteRunError(
        document,
        f"the run stopped after {result.done + result.skipped} of {result.total} volumes"
        if result.stopped
        else f"{result.quarantined} of {result.total} volumes failed",
        where=folder.url,
        found=result.stopped or "\n".join(failure.error for failure in result.failed[:_LISTED]),
        fix="mend the cause and give the same command again: it does only what is missing",
    )


@task(name=STAGE, cache_policy=NO_CACHE)
def volumes(config: IngestConfig, members: tuple[Member, ...], notes: list[str]) -> StageResult:
    """Every volume that is missing, one after the other; those that fail are told of at the end.

    What people should know about single volumes is appended to `notes`.
    """
    result = StageResult(STAGE, len(members), skipped=sum(member.complete for member in members))
    began = time.monotonic()
    with stage_progress(STAGE, len(members), prefect=True) as progress:
        try:
            for index, member in enumerate(members):
                if not member.complete:
                    _do(config, member, index, result, notes)
                if result.stopped:
                    break
                result.seconds = time.monotonic() - began
                progress.update(result.done + result.skipped)
        except KeyboardInterrupt:
            there = result.done + result.skipped
            raise InterruptionError(
                f"interrupted after {there} of {result.total} volumes; the same command goes on there"
            ) from None
        progress.close(result.done + result.skipped)
    return result


def _do(config: IngestConfig, member: Member, index: int, result: StageResult, notes: list[str]) -> None:
    """One volume, and what came of it into the result."""
    try:
        with owned("ingest", member.output) as run:
            planned = plan_volume(config, [member.file], member.output)
            document = carry_out(planned, run, copy=_copy, pyramid=_pyramid)
    except StoreError as error:
        result.stopped = str(error)
    except IncompleteRunError as error:
        if error.document["status"] == "partial":
            result.stopped = str(error)
        else:
            _failed(member, index, result, error)
    except UnetFlowsError as error:
        _failed(member, index, result, error)
    else:
        notes += [f"{member.file}: {note}" for note in document["notes"]]
        result.done += 1
        result.voxels += document["stages"]["copy"]["voxels"]


def _failed(member: Member, index: int, result: StageResult, error: UnetFlowsError) -> None:
    result.in_quarantine.add(index)
    if len(result.failed) == FAILURES_LISTED:
        return
    result.failed.append(
        Failure(
            stage=STAGE,
            index=index,
            error=f"{member.file}: {error}",
            traceback="",
            worker=this_worker(),
            attempts=1,
        )
    )


def _copy(*, run: Run, stage: Stage, only_failed: bool, **what: Any) -> StageResult:
    """As the task of this name, but that nobody watches a single image."""
    return _quietly(run, stage, tasks.copying(run, stage, **what), only_failed)


def _pyramid(*, run: Run, stage: Stage, only_failed: bool, level: int) -> StageResult:
    return _quietly(run, stage, tasks.coarsening(run, level), only_failed)


def _quietly(run: Run, stage: Stage, work: Work, only_failed: bool) -> StageResult:
    ledger = Ledger(run.output, stage.name, stage.count, run.lease.epoch)
    return run_stage(work, ledger, lease=run.lease, only_failed=only_failed)
