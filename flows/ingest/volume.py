"""One volume: planned, which writes nothing, then done, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from flows.blocks import StageResult
from flows.config import IngestConfig
from flows.outcome import Run, require_failures
from flows.parsing import parse_numbers
from unet_core.ingestion import KIND, IngestPlan, create_output, plan_ingest
from unet_core.ledger import RunRecord, begin, begun, clear, require_apart, require_replaceable
from unet_core.sources import Source, open_source
from unet_core.volumes import Store

StageOf = Callable[..., StageResult]


@dataclass(frozen=True, kw_only=True)
class PlannedIngest:
    """A checked ingest; its source is open.

    Parameters
    ----------
    record
        That of the run it goes on with, or a new one.
    resumed
        Whether it goes on with one.
    """

    config: IngestConfig
    source: Source
    plan: IngestPlan
    record: RunRecord
    resumed: bool


def plan(config: IngestConfig) -> PlannedIngest:
    """Everything checked, nothing written; InputError for whatever can be known to fail."""
    output = Store(config.to)
    planned = plan_volume(config, config.sources, output)
    if not planned.resumed:
        output.check_writable(planned.plan.raw_bytes)
    if config.retry_failed:
        require_failures(output, planned.plan.stages)
    return planned


def plan_volume(config: IngestConfig, sources: Sequence[str], output: Store) -> PlannedIngest:
    """These sources as one volume there, with what `config` says of all; the disk is not looked at."""
    source = open_source(sources, dataset=config.dataset, axes=config.axes)
    ingest_plan = plan_ingest(
        source,
        voxel_size=parse_numbers("--voxel-size", config.voxel_size),
        unit=config.unit,
        kind=config.kind,
        name=output.url.rsplit("/", 1)[-1].removesuffix(".zarr"),
    )
    # As it comes back from the record: lists, not tuples.
    identity = {
        "source": ingest_plan.source_digest,
        "dataset": config.dataset,
        "kind": ingest_plan.kind,
        "axes": ingest_plan.axes,
        "shape": list(ingest_plan.shape),
        "dtype": ingest_plan.dtype,
        "voxel_size": list(ingest_plan.voxel_size),
        "unit": ingest_plan.unit,
    }
    if config.restart:
        require_apart(output, (Store(path) for path in sources))
        require_replaceable(output, KIND)
        record = None
    else:
        record = begun(output, KIND, identity)
    if record is not None:
        ingest_plan = IngestPlan.from_dict(dict(record.plan["ingest"]))
    details = {"ingest": ingest_plan.to_dict(), "pyramid": ingest_plan.pyramid.to_dict()}
    return PlannedIngest(
        config=config,
        source=source,
        plan=ingest_plan,
        record=record or RunRecord(KIND, identity, details),
        resumed=record is not None,
    )


def carry_out(planned: PlannedIngest, run: Run, *, copy: StageOf, pyramid: StageOf) -> dict[str, Any]:
    """Do what is missing of a volume that is owned; returns its document.

    `copy` and `pyramid` do a stage each, as the tasks of these names do.

    Raises
    ------
    IncompleteRunError
        Some blocks failed, or the run had to stop.
    """
    config, output = planned.config, run.output
    with closing(planned.source):
        if config.restart:
            clear(output)
        begin(output, planned.record)
        create_output(planned.plan, output)
        stages = planned.plan.stages
        run.take_over(stages)
        for level, stage in enumerate(stages):
            common = {"run": run, "stage": stage, "only_failed": config.retry_failed}
            if level == 0:
                complete = run.do(partial(copy, plan=planned.plan, source=planned.source, **common))
            else:
                complete = run.do(partial(pyramid, level=level, **common))
            if not complete:
                break
        return run.finish(total=len(stages))
