"""The `segment` flow: a volume in, a seamless full-resolution label volume out."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow

from flows import tasks
from flows.blocks import StageResult
from flows.cluster import open_client
from flows.config import SegmentConfig, parse_box, parse_integers, parse_shape, read_cluster, takes, validate
from unet_core.errors import RunError
from unet_core.ledger import set_status
from unet_core.segmentation import Planned, SegmentRequest, plan_segmentation
from unet_core.volumes import Store


def plan(config: SegmentConfig) -> Planned:
    """Everything checked and resolved, nothing written; InputError for whatever can be known to fail."""
    request = SegmentRequest(
        volume=config.volume,
        model=config.model,
        to=config.to,
        roi=parse_box(config.roi),
        level=config.level,
        channels=parse_integers("--channels", config.channels) if config.channels is not None else None,
        timepoint=config.timepoint,
        probabilities=config.probabilities,
        tile=parse_shape("--tile", config.tile),
        block=parse_shape("--block", config.block),
        dtype=config.dtype,
        normalisation=config.normalisation,
    )
    cluster = read_cluster(config.cluster, workers=config.workers)
    return plan_segmentation(request, workers=cluster.workers)


@takes(SegmentConfig)
def _segment(**parameters: Any) -> dict[str, Any]:
    """Segment a volume with a trained U-Net: exact overlapping tiles, one label volume, resumable."""
    config = validate(SegmentConfig, parameters)
    planned = plan(config)
    began = time.monotonic()
    output = Store(config.to)
    stages: list[StageResult] = []
    try:
        resolved = tasks.prepare(planned)
        run = {"url": output.url, "fingerprint": tasks.fingerprint_of(output.url)}
        set_status(output, "running")
        with open_client(read_cluster(config.cluster, workers=config.workers)):
            for stage, blocks in resolved.stages.items():
                if stage == "predict":
                    stages.append(tasks.predict(**run, blocks=blocks))
                else:
                    level = int(stage.removeprefix("pyramid-"))
                    stages.append(tasks.pyramid(**run, level=level, blocks=blocks))
                if not stages[-1].complete:
                    break
    except BaseException:
        if stages or planned.resumed:
            set_status(output, "partial", stages={s.stage: s.to_dict() for s in stages})
        raise
    return finish("segment", output, stages, total=len(resolved.stages), began=began)


segment = flow(name="segment", flow_run_name="segment {volume}", validate_parameters=True)(_segment)


def finish(
    command: str, output: Store, stages: list[StageResult], *, total: int, began: float
) -> dict[str, Any]:
    """Record how a run ended and describe it; a run with failed blocks raises, it never passes as success.

    Raises
    ------
    RunError
        Some blocks failed: which, and the first error.
    """
    counts = {s.stage: s.to_dict() for s in stages}
    failed = [(s.stage, f) for s in stages for f in s.failed]
    if failed or len(stages) < total:
        set_status(output, "failed", stages=counts)
        stage, first = failed[0]
        raise RunError(
            f"{len(failed)} of {sum(s.total for s in stages)} blocks failed",
            where=output.url,
            found=f"{stage} block {first.index}: {first.error}",
            fix="mend the cause and give the same command again: it does only what is missing",
        )
    set_status(output, "complete", stages=counts)
    return {
        "command": command,
        "status": "complete",
        "output": output.url,
        "stages": counts,
        "seconds": round(time.monotonic() - began, 3),
    }
