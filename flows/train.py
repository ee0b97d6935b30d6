"""The `train` flow: labelled boxes of one or several volumes in, a model folder out; resumable, on Dask."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect import Flow, flow

from flows import gpus, tasks
from flows.cluster import open_workers
from flows.config import ClusterConfig, TrainConfig, read_cluster, validate
from flows.outcome import IncompleteRunError, owned
from flows.signatures import takes
from flows.training_data import labelled_regions, settings_of, spec_of
from unet_core import training
from unet_core.devices import free_memory
from unet_core.errors import RunError
from unet_core.ledger import (
    RunRecord,
    begin,
    begun,
    clear,
    read_record,
    require_apart,
    require_replaceable,
    set_status,
)
from unet_core.volumes import Store


@dataclass(frozen=True, kw_only=True)
class PlannedTraining:
    """A training that passed every check; `record` of the one begun before, where it goes on."""

    plan: training.Plan
    identity: dict[str, Any]
    record: RunRecord | None
    cluster: ClusterConfig


def prepare(config: TrainConfig, *, tell: Callable[[str], None] = lambda note: None) -> PlannedTraining:
    """Everything checked, the data's intensity scale measured, nothing written.

    `tell` gets what may surprise, before memory is looked at: it may say why there is too little.
    """
    output = Store(config.to)
    cluster = _cluster(config)
    sources, weights, held_out = labelled_regions(config)
    folders = [volume.url for region in (*sources, *held_out) for volume in (region.image, region.labels)]
    if config.fine_tune:
        folders.append(config.fine_tune)
    require_apart(output, map(Store, dict.fromkeys(folders)))
    if config.restart:
        require_replaceable(output, training.KIND)
    if cluster.kind == "local" and config.device != "auto":
        training.require_device(config.device)
    spec = spec_of(config, sources)
    plan = training.prepare(
        sources,
        held_out,
        spec,
        settings_of(config, spec),
        weights=weights,
        fine_tunes=Store(config.fine_tune).url if config.fine_tune else None,
    )
    identity = training.identity(plan, device=config.device, dtype=config.dtype)
    record = None if config.restart else begun(output, training.KIND, identity)
    output.check_writable(64 * 2**20)
    for note in training.notes(plan):
        tell(note)
    ranks = min(cluster.workers, config.batch)
    if cluster.kind == "local" and config.device != "cpu" and (visible := gpus.seen()[0]):
        gpus.require(ranks, len(visible), where="this machine")
    elif cluster.kind == "local":
        dtype = "float32" if config.dtype == "auto" else config.dtype
        training.require_memory(plan, ranks, dtype=dtype, available=free_memory("cpu"))
    return PlannedTraining(plan=plan, identity=identity, record=record, cluster=cluster)


def _cluster(config: TrainConfig) -> ClusterConfig:
    """The cluster to train on: on this machine, where nobody says how many, one worker per GPU."""
    cluster = read_cluster(config.cluster, workers=config.workers)
    if cluster.kind != "local" or "workers" in cluster.model_fields_set or config.device == "cpu":
        return cluster
    workers = min(len(gpus.seen()[0]), config.batch)
    return cluster.model_copy(update={"workers": max(1, workers)})


def flow_of(planned: PlannedTraining | None = None) -> Flow[..., dict[str, Any]]:
    """The flow; with what a command has `prepare`d, so that labels are not looked at twice."""

    @takes(TrainConfig)
    def train(**parameters: Any) -> dict[str, Any]:
        """Train a U-Net on labelled boxes; validates on held-out boxes, keeps the best weights; resumable."""
        config = validate(TrainConfig, parameters)
        return _do(config, planned or prepare(config))

    return flow(name="train", flow_run_name="train {to}", validate_parameters=True)(train)


def _do(config: TrainConfig, planned: PlannedTraining) -> dict[str, Any]:
    output = Store(config.to)
    began = time.monotonic()
    with open_workers(planned.cluster) as cluster, owned("train", output) as run:
        cluster.need(config.batch)
        if (planned.record is None) == (read_record(output) is not None) and not config.restart:
            planned = prepare(config)  # another training has begun, or was cleared away, since we looked
        if config.restart:
            clear(output)
        plan = planned.plan
        if planned.record is None:
            plan = tasks.resolve_training(plan, device=config.device, dtype=config.dtype)
            resolved = {"device": plan.settings.device, "dtype": plan.settings.dtype}
            record = RunRecord(training.KIND, {**planned.identity, **resolved}, plan.to_dict())
            begin(output, record, arrays=False)
        else:
            plan = training.Plan.from_dict(dict(planned.record.plan))
        set_status(output, "partial")
        trained = tasks.train(
            run=run,
            plan=plan,
            workers=planned.cluster.workers,
            max_restarts=config.max_restarts,
            loaders=config.loaders,
        )
        document = _document(output, plan, trained.history, trained.step, began)
        if trained.stopped:
            raise IncompleteRunError(
                {**document, "status": "partial"},
                f"the training stopped after {document['steps_done']} of {document['steps']} steps",
                where=output.url,
                found="it was asked to stop",
                fix="the same command goes on from the last checkpoint",
            )
        training.save(output, trained)
        run.record("complete")
    return document


def recorded(output: Store) -> dict[str, Any]:
    """The document of a complete training, from its record and its last checkpoint.

    Raises
    ------
    RunError
        One of them is missing.
    """
    record, last = read_record(output), training.Checkpoints(output).latest()
    if record is None or last is None:
        raise RunError("the training left no checkpoint", where=output.url)
    history = training.History(**last.facts["history"])
    plan = training.Plan.from_dict(dict(record.plan))
    return _document(output, plan, history, last.step, time.monotonic())


def _document(
    output: Store, plan: training.Plan, history: training.History, step: int, began: float
) -> dict[str, Any]:
    last = history.rows[-1]["loss"] if history.rows else None  # a long training closes a row now and then
    return {
        "command": "train",
        "status": "complete",
        "output": output.url,
        "model": output.url,
        "steps": plan.settings.steps,
        "steps_done": step,
        "best_step": history.best_step,
        "loss": last,
        "validation": history.best.get("scores"),
        "notes": list(training.notes(plan)),
        "seconds": round(time.monotonic() - began, 3),
    }


train = flow_of()
