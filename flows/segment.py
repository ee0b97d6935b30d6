"""The `segment` flow: a volume in, a seamless full-resolution label volume out."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows import tasks
from flows.cluster import open_client
from flows.config import SegmentConfig, parse_box, parse_integers, parse_shape, read_cluster, takes, validate
from flows.outcome import recorded
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
    return plan_segmentation(request, workers=cluster.workers if cluster.kind == "local" else None)


@takes(SegmentConfig)
def _segment(**parameters: Any) -> dict[str, Any]:
    """Segment a volume with a trained U-Net: exact overlapping tiles, one label volume, resumable."""
    config = validate(SegmentConfig, parameters)
    planned = plan(config)
    output = Store(config.to)
    with recorded("segment", output) as run:
        # The cluster first: where it cannot be had, nothing is written.
        with open_client(read_cluster(config.cluster, workers=config.workers)):
            resolved = tasks.prepare(planned)
            common = {"url": output.url, "fingerprint": tasks.fingerprint_of(output.url)}
            for stage, blocks in resolved.stages.items():
                if stage == "predict":
                    run.stages.append(tasks.predict(**common, model=planned.model.url, blocks=blocks))
                else:
                    level = int(stage.removeprefix("pyramid-"))
                    run.stages.append(tasks.pyramid(**common, level=level, blocks=blocks))
                if not run.stages[-1].complete:
                    break
        return run.finish(total=len(resolved.stages))


segment = flow(name="segment", flow_run_name="segment {volume}", validate_parameters=True)(_segment)
