"""The `stitch` flow: instances that are there, merged anew under other thresholds, without inference."""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect import flow

from flows.cluster import open_workers
from flows.config import StitchConfig, read_cluster, validate
from flows.instances import follow
from flows.outcome import owned, require_failures
from flows.signatures import takes
from unet_core.instances import PlannedStitch, StitchRequest, plan_stitch, prepare_stitched, start_stitch
from unet_core.ledger import clear
from unet_core.volumes import Store


def plan(config: StitchConfig) -> PlannedStitch:
    """Everything checked, nothing written; InputError for whatever can be known to fail."""
    planned = plan_stitch(
        StitchRequest(
            labels=config.labels,
            to=config.to,
            min_size=config.min_size,
            persistence=config.persistence,
            prominence=config.prominence,
            restart=config.restart,
        )
    )
    if config.retry_failed:
        require_failures(Store(config.to), planned.plan.stages)
    return planned


@takes(StitchConfig)
def _stitch(**parameters: Any) -> dict[str, Any]:
    """Merge the local labels of instances anew; resumable."""
    config = validate(StitchConfig, parameters)
    planned = plan(config)
    output = Store(config.to)
    cluster = read_cluster(config.cluster, workers=config.workers)
    with open_workers(cluster, cpu_stages=True) as workers, owned("stitch", output) as run:
        run.need = workers.need
        if config.restart:
            clear(output)
        start_stitch(planned, output)
        stages = planned.plan.stages
        run.take_over(stages)
        follow(
            run,
            instances=planned.plan.instances,
            levels=planned.plan.pyramid,
            prepare=partial(prepare_stitched, output, planned.plan),
            timeout=None,
            only_failed=config.retry_failed,
        )
        return run.finish(total=len(stages))


stitch = flow(name="stitch", flow_run_name="stitch {labels}", validate_parameters=True)(_stitch)
