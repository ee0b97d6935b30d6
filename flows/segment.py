"""The `segment` flow: a volume in, a seamless full-resolution label volume out."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

from distributed import Client
from prefect import flow

from flows import tasks, worker
from flows.cluster import ask, open_workers, workers_of
from flows.config import Local, SegmentConfig, read_cluster, validate
from flows.instances import PATIENCE, follow
from flows.outcome import IncompleteRunError, owned, require_failures
from flows.parsing import parse_box, parse_bytes, parse_integers, parse_shape
from flows.signatures import takes
from unet_core import speed
from unet_core.architecture import UNetSpec
from unet_core.devices import device_kind
from unet_core.errors import InputError
from unet_core.instances import InstanceRequest
from unet_core.keeping import KeepRequest
from unet_core.ledger import clear, read_record
from unet_core.segmentation import Planned, SegmentPlan, SegmentRequest, plan_segmentation, prepare_final
from unet_core.tile_choice import Rates
from unet_core.volumes import Store

# Slower than this a block is hung. Two AVX2 cores do 40e9 multiply-accumulates a second.
_SLOWEST_MACS = 1e9
# Options that say nothing without --instances.
_OF_INSTANCES = (
    *("foreground", "threshold", "connectivity", "connect", "fill_holes", "min_size"),
    *("persistence", "prominence", "radius"),
)
# Options that say more of another one.
_PARTS = {"mask_level": "mask", "skip_level": "skip_below", "skip_margin": "skip_below"}


def plan(config: SegmentConfig, *, client: Client | None = None) -> Planned:
    """Everything checked and resolved, nothing written; InputError for whatever can be known to fail.

    `client`: workers elsewhere, which are asked what they are and how fast. Without one it is this machine.
    """
    request = request_of(config)
    cluster = read_cluster(config.cluster, workers=config.workers)
    local = isinstance(cluster, Local)
    planned = plan_segmentation(
        request,
        workers=workers_of(cluster) if isinstance(cluster, Local) else None,
        device=None if client is None else ask(client, worker.device),
        tile_memory=None if client is None else ask(client, worker.tile_memory),
        measure=partial(_rates, client) if local or client is not None else None,
    )
    if config.retry_failed:
        require_failures(Store(config.to), planned.plan.stages)
    return planned


def request_of(config: SegmentConfig) -> SegmentRequest:
    """What the options say, read; InputError for those that say nothing, nothing is opened."""
    return SegmentRequest(
        volume=config.volume,
        model=config.model,
        to=config.to,
        roi=parse_box(config.roi),
        level=config.level,
        channels=parse_integers("--channels", config.channels) if config.channels is not None else None,
        timepoint=config.timepoint,
        probabilities=config.probabilities,
        instances=_instances(config),
        keep=_keep(config),
        tile=parse_shape("--tile", config.tile),
        block=parse_shape("--block", config.block),
        memory=parse_bytes("--memory", config.memory),
        dtype=config.dtype,
        normalisation=config.normalisation,
        restart=config.restart,
        partial=config.partial,
    )


def _given(config: SegmentConfig, names: Iterable[str]) -> list[str]:
    """Those of the options that are not at their defaults."""
    return [n for n in names if getattr(config, n) != SegmentConfig.model_fields[n].default]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _keep(config: SegmentConfig) -> KeepRequest | None:
    for name in _given(config, _PARTS):
        if getattr(config, _PARTS[name]) is None:
            raise InputError(f"{_option(name)} says nothing without {_option(_PARTS[name])}")
    if config.mask is None and config.skip_below is None:
        return None
    return KeepRequest(
        mask=config.mask,
        mask_level=config.mask_level,
        below=config.skip_below,
        level=config.skip_level,
        margin=config.skip_margin,
    )


def _rates(client: Client | None, spec: UNetSpec, dtype: str, memory: int) -> Rates:
    """Measured where the blocks will be computed, if that is not known yet."""
    if client is not None:
        return ask(client, worker.rates, spec, dtype, memory)
    if not speed.is_known(spec, device=device_kind(), dtype=dtype, memory=memory):
        say = "measuring how fast this machine is with tiles of several sizes, once: less than a minute"
        print(say, file=sys.stderr, flush=True)
    return worker.rates(spec, dtype, memory)


def _instances(config: SegmentConfig) -> InstanceRequest | None:
    if config.instances is None:
        given = _given(config, _OF_INSTANCES)
        if given:
            raise InputError(
                "these options say how instances are made, and none are asked for",
                expected="--instances components or watershed beside them",
                found=", ".join(map(_option, given)),
            )
        return None
    chosen = config.foreground
    return InstanceRequest(
        method=config.instances,
        foreground=None if chosen is None else parse_integers("--foreground", chosen),
        threshold=config.threshold,
        connectivity=config.connectivity,
        connect=config.connect,
        fill_holes=config.fill_holes,
        min_size=config.min_size,
        persistence=config.persistence,
        prominence=config.prominence,
        radius=config.radius,
    )


@takes(SegmentConfig)
def _segment(**parameters: Any) -> dict[str, Any]:
    """Segment a volume with a trained U-Net: exact overlapping tiles, one label volume, resumable."""
    config = validate(SegmentConfig, parameters)
    cluster = read_cluster(config.cluster, workers=config.workers)
    planned = plan(config)
    output = Store(config.to)
    try:
        # The cluster first: where it cannot be had, nothing is written.
        with open_workers(cluster) as workers, owned("segment", output) as run:
            run.need = workers.need
            remote = not isinstance(cluster, Local)
            # Or another run has begun, or was cleared away, since we looked.
            if remote or planned.resumed != (read_record(output) is not None):
                planned = plan(config, client=workers.client if remote else None)
            if config.restart:
                clear(output)
            resolved = tasks.prepare(planned)
            stages = resolved.stages
            run.take_over(stages)
            predict = partial(
                tasks.predict,
                run=run,
                stage=stages[0],
                model=planned.model.url,
                timeout=config.block_timeout or PATIENCE + planned.macs / stages[0].count / _SLOWEST_MACS,
                only_failed=config.retry_failed,
            )
            if run.do(predict):
                workers.for_cpu_stages()
                follow(
                    run,
                    instances=resolved.instances,
                    levels=resolved.pyramid,
                    prepare=partial(prepare_final, output, resolved),
                    timeout=config.block_timeout,
                    only_failed=config.retry_failed,
                )
            document = {**run.finish(total=len(stages)), "dtype": resolved.dtype, "device": resolved.device}
            predicted = document["stages"][stages[0].name]
            whole = predicted["done"] == predicted["total"]  # else another run decoded, too
            document["input_decoded"] = (
                round(predicted["bytes_decoded"] / planned.bytes_once, 2) if whole else None
            )
    except IncompleteRunError as error:
        _report({**error.document, "found": str(error)}, planned, resolved)
        raise
    # When the workers are given back: to draw takes seconds.
    _report(document, planned, resolved)
    return document


def _report(document: dict[str, Any], planned: Planned, resolved: SegmentPlan) -> None:
    # Here, because what draws takes half a second to load, and the command begins without it.
    from flows.report.closing import report_segmentation

    report_segmentation(document, planned, resolved)


segment = flow(name="segment", flow_run_name="segment {volume}", validate_parameters=True)(_segment)
