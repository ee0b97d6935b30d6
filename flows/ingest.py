"""The `ingest` flow: a file that is not Zarr into a sharded, multiscale OME-Zarr volume."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect import flow

from flows import tasks
from flows.config import IngestConfig, parse_numbers, takes, validate
from flows.outcome import owned, require_failures
from unet_core.ingestion import KIND, IngestPlan, create_output, plan_ingest
from unet_core.ledger import RunRecord, begin, begun, clear, require_apart, require_replaceable
from unet_core.sources import Source, open_source
from unet_core.volumes import Store


@dataclass(frozen=True)
class PlannedIngest:
    """A checked ingest. `record`: that of the run it goes on with, or a new one."""

    source: Source
    plan: IngestPlan
    record: RunRecord


def plan(config: IngestConfig) -> PlannedIngest:
    """Everything checked, nothing written; InputError for whatever can be known to fail."""
    source = open_source(config.sources, dataset=config.dataset, axes=config.axes)
    ingest_plan = plan_ingest(
        source,
        voxel_size=parse_numbers("--voxel-size", config.voxel_size),
        unit=config.unit,
        kind=config.kind,
        name=Store(config.to).url.rsplit("/", 1)[-1].removesuffix(".zarr"),
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
    output = Store(config.to)
    if config.restart:
        require_apart(output, (Store(path) for path in config.sources))
        require_replaceable(output, KIND)
        record = None
    else:
        record = begun(output, KIND, identity)
    if record is not None:
        ingest_plan = IngestPlan.from_dict(dict(record.plan["ingest"]))
    else:
        output.check_writable(ingest_plan.raw_bytes)
    if config.retry_failed:
        require_failures(output, ingest_plan.stages)
    details = {"ingest": ingest_plan.to_dict(), "pyramid": ingest_plan.pyramid.to_dict()}
    return PlannedIngest(source, ingest_plan, record or RunRecord(KIND, identity, details))


@takes(IngestConfig)
def _ingest(**parameters: Any) -> dict[str, Any]:
    """Convert TIFF, HDF5, NPZ or PNG to a sharded, multiscale OME-Zarr volume; resumable."""
    config = validate(IngestConfig, parameters)
    planned = plan(config)
    output = Store(config.to)
    with closing(planned.source), owned("ingest", output) as run:
        if config.restart:
            clear(output)
        begin(output, planned.record)
        create_output(planned.plan, output)
        stages = planned.plan.stages
        run.take_over(stages)
        for level, stage in enumerate(stages):
            common = {"run": run, "stage": stage, "only_failed": config.retry_failed}
            if level == 0:
                complete = run.do(partial(tasks.copy, plan=planned.plan, source=planned.source, **common))
            else:
                complete = run.do(partial(tasks.pyramid, level=level, **common))
            if not complete:
                break
        return run.finish(total=len(stages))


ingest = flow(name="ingest", flow_run_name="ingest {to}", validate_parameters=True)(_ingest)
