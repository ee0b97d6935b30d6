"""The `ingest` flow: a file that is not Zarr into a sharded, multiscale OME-Zarr volume."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

from prefect import flow

from flows import tasks
from flows.config import IngestConfig, parse_numbers, takes, validate
from flows.outcome import recorded
from unet_core.geometry import Box
from unet_core.ingestion import IngestPlan, create_output, plan_ingest
from unet_core.ledger import RunRecord, begin, begun
from unet_core.pyramid import PyramidPlan
from unet_core.sources import Source, open_source
from unet_core.volumes import Store

KIND = "ingest"


@dataclass(frozen=True)
class PlannedIngest:
    """A checked ingest. `resumed`: it was begun before."""

    source: Source
    plan: IngestPlan
    pyramid: PyramidPlan
    identity: dict[str, Any]
    resumed: bool


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
    record = begun(output, KIND, identity)
    if record is not None:
        ingest_plan = IngestPlan.from_dict(dict(record.plan["ingest"]))
    else:
        output.check_writable(ingest_plan.raw_bytes)
    pyramid = PyramidPlan(
        levels=ingest_plan.levels,
        shard=ingest_plan.shard,
        method="mean" if ingest_plan.kind == "image" else "mode",
        extent=Box.of_shape(ingest_plan.shape),
        timepoints=ingest_plan.timepoints,
    )
    return PlannedIngest(source, ingest_plan, pyramid, identity, record is not None)


@takes(IngestConfig)
def _ingest(**parameters: Any) -> dict[str, Any]:
    """Convert TIFF, HDF5, NPZ or PNG to a sharded, multiscale OME-Zarr volume; resumable."""
    config = validate(IngestConfig, parameters)
    planned = plan(config)
    output = Store(config.to)
    with recorded("ingest", output) as run, closing(planned.source):
        details = {"ingest": planned.plan.to_dict(), "pyramid": planned.pyramid.to_dict()}
        begin(output, RunRecord(KIND, planned.identity, details))
        create_output(planned.plan, output)
        common = {"url": output.url, "fingerprint": tasks.fingerprint_of(output.url)}
        run.stages.append(tasks.copy(url=output.url, plan=planned.plan, source=planned.source))
        for level in planned.plan.levels[1:]:
            if not run.stages[-1].complete:
                break
            blocks = planned.pyramid.count(level.index)
            run.stages.append(tasks.pyramid(**common, level=level.index, blocks=blocks))
        return run.finish(total=len(planned.plan.levels))


ingest = flow(name="ingest", flow_run_name="ingest {to}", validate_parameters=True)(_ingest)
