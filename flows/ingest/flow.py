"""What Prefect runs."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows import tasks
from flows.config import IngestConfig, validate
from flows.ingest.each import ingest_each
from flows.ingest.volume import carry_out, plan
from flows.outcome import owned
from flows.signatures import takes
from unet_core.volumes import Store


@takes(IngestConfig)
def _ingest(**parameters: Any) -> dict[str, Any]:
    """Convert TIFF, HDF5, NPZ or PNG to a sharded, multiscale OME-Zarr volume, or to a set; resumable."""
    config = validate(IngestConfig, parameters)
    if config.each:
        return ingest_each(config)
    planned = plan(config)
    with owned("ingest", Store(config.to)) as run:
        return carry_out(planned, run, copy=tasks.copy, pyramid=tasks.pyramid)


ingest = flow(name="ingest", flow_run_name="ingest {to}", validate_parameters=True)(_ingest)
