"""Thin Prefect tasks, one per stage, running in the flow process; the logic is called, not contained."""

from __future__ import annotations

from math import prod
from typing import Any

from distributed import Client
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows import worker
from flows.attempt import Work
from flows.blocks import StageResult, run_stage
from flows.cluster import ask
from flows.outcome import IncompleteStageError, Run
from flows.progress import stage_progress
from flows.ranks import RankedTraining
from flows.report.artifacts import TrainingArtifacts
from unet_core import training
from unet_core.ingestion import IngestPlan, write_slab
from unet_core.ledger import Done, Ledger, Stage, read_record
from unet_core.segmentation import Planned, SegmentPlan, start
from unet_core.sources import Source
from unet_core.volumes import open_for_writing


# Prefect's result cache compares arguments, not data: it has returned stale hits. The ledger decides.
@task(name="prepare", cache_policy=NO_CACHE)
def prepare(planned: Planned) -> SegmentPlan:
    """Measure the intensity scale and probe a worker; write the run record and the output's arrays."""
    plan = planned.plan
    if not planned.resumed:
        # On a worker: what is chosen there must suit its device, and its bits are the run's bits.
        resolved = ask(Client.current(), worker.resolve, plan.to_dict(), planned.request.normalisation)
        if (plan.dtype, resolved["dtype"]) == ("auto", "float32"):
            planned = planned.in_float32()
            resolved = ask(
                Client.current(), worker.resolve, planned.plan.to_dict(), planned.request.normalisation
            )
        plan = SegmentPlan.from_dict(resolved)
    start(planned, plan)
    return plan


@task(name="predict", task_run_name="predict {run.output}", cache_policy=NO_CACHE)
def predict(
    *, run: Run, stage: Stage, model: str, timeout: float | None, only_failed: bool = False
) -> StageResult:
    """The network over every block, on Dask workers."""
    work = Work(
        function=worker.predict,
        stream=worker.predict_many,
        arguments=(*_run_arguments(run), model),
        timeout=timeout,
    )
    return _stage(run, stage, work, Client.current(), only_failed)


@task(name="copy", task_run_name="copy to {run.output}", cache_policy=NO_CACHE)
def copy(
    *, run: Run, stage: Stage, plan: IngestPlan, source: Source, only_failed: bool = False
) -> StageResult:
    """The source's slabs into level 0, in this process: compressed files are read forward only."""
    return _stage(run, stage, copying(run, stage, plan, source), None, only_failed)


def copying(run: Run, stage: Stage, plan: IngestPlan, source: Source) -> Work:
    """What `copy` does with a slab."""
    array = open_for_writing(run.output, "0")
    ledger = Ledger(run.output, stage.name, stage.count, run.lease.epoch)

    def slab(index: int) -> Done:
        written = write_slab(plan, source, array, index)
        ledger.commit(index, written.digest)
        run.below_zero += written.below_zero
        return Done(plan.slab_at(index)[1].size)

    return Work(function=slab, importable=False)


@task(name="pyramid", task_run_name="{stage.name} of {run.output}", cache_policy=NO_CACHE)
def pyramid(
    *, run: Run, stage: Stage, level: int, timeout: float | None = None, only_failed: bool = False
) -> StageResult:
    """One coarser level from the finished level below it; on workers where there are some."""
    return _stage(run, stage, coarsening(run, level, timeout), _client(), only_failed)


def coarsening(run: Run, level: int, timeout: float | None = None) -> Work:
    """What `pyramid` does with a block."""
    return Work(function=worker.pyramid, arguments=(*_run_arguments(run), level), timeout=timeout)


@task(name="instances", task_run_name="{stage.name} of {run.output}", cache_policy=NO_CACHE)
def instances(*, run: Run, stage: Stage, timeout: float | None, only_failed: bool = False) -> StageResult:
    """One of the stages that make instances of classes, on Dask workers."""
    arguments = (*_run_arguments(run), stage.name)
    work = Work(function=worker.instances, arguments=arguments, timeout=timeout)
    return _stage(run, stage, work, _client(), only_failed)


@task(name="prepare training", cache_policy=NO_CACHE)
def resolve_training(plan: training.Plan, *, device: str, dtype: str) -> training.Plan:
    """Decide what was left to the workers: device and arithmetic, once, for all ranks and restarts."""
    client = Client.current()
    found = ask(client, worker.device) if device == "auto" else device
    if found == "cuda" and device != "auto":
        ask(client, worker.require_gpu)
    arithmetic = ask(client, worker.training_dtype, found) if dtype == "auto" else dtype
    get_run_logger().info("training on %s in %s", found, arithmetic)
    return training.on_device(plan, found, arithmetic)


@task(name="train", cache_policy=NO_CACHE)
def train(
    *, run: Run, plan: training.Plan, workers: int, max_restarts: int, loaders: int
) -> training.Trained:
    """All steps that are left of a training, one rank on each worker; begun anew where one dies.

    `workers` were asked for; a step of fewer patches leaves some idle.
    """
    # Here, because what draws takes half a second to load, and only trainings draw.
    from flows.report.training import show_training

    steps, logger = plan.settings.steps, get_run_logger()
    _, fingerprint, epoch = _run_arguments(run)
    artifacts = TrainingArtifacts(run.output.url.rpartition("/")[2])
    with stage_progress("train", steps, prefect=True) as progress, artifacts:

        def show(now: dict[str, Any]) -> None:
            run.lease.report(training_stands(now, plan.settings))
            note = f"loss {now['loss']:.4f}, {now['patches_per_second']:.2f} patches/s"
            progress.update(now["step"], note)
            if now["looked"]:
                text = look_at_training(now)
                logger.info(text)
                show_training(artifacts, run.output, text)

        ranked = RankedTraining(
            client=Client.current(),
            job={"output": run.output.url, "fingerprint": fingerprint, "epoch": epoch, "loaders": loaders},
            most=plan.settings.batch,
            max_restarts=max_restarts,
            on_progress=show,
            on_restart=logger.warning,
            asked=workers,
            on_gpus=plan.settings.device == "cuda",
            on_note=logger.warning,
        )
        ended = ranked.run()
        checkpoints = training.Checkpoints(run.output)
        trained = training.trained_by_others(plan, checkpoints, stopped=ended["stopped"])
        best = trained.history.best_step
        progress.close(trained.step, f"best at step {best}" if best else "not validated yet")
    return trained


def look_at_training(now: dict[str, Any]) -> str:
    """What a look at the network found, in a line: its score, or its loss where nothing is held out."""
    if now["scores"] is None:
        return f"step {now['step']}: loss {now['loss']:.4f}; no region is held out to validate on"
    return f"step {now['step']}: foreground IoU {now['scores']['foreground_iou']:.4f} in validation"


def training_stands(now: dict[str, Any], settings: training.TrainSettings) -> dict[str, Any]:
    """How far a training is, as `blocks` says it of a stage."""
    speed, left = now["patches_per_second"], settings.steps - now["step"]
    return {
        "stage": "train",
        "done": now["step"],
        "total": settings.steps,
        "voxels_per_second": speed * prod(settings.patch),
        "seconds_left": round(left * settings.batch / speed, 1) if speed > 0 else None,
    }


def _run_arguments(run: Run) -> tuple[Any, ...]:
    """What every worker function needs first: where the run is, which run, and which owner's."""
    record = read_record(run.output)
    if record is None:
        raise RuntimeError(f"no run record at {run.output}")
    return run.output.url, record.fingerprint, run.lease.epoch


def _stage(run: Run, stage: Stage, work: Work, client: Client | None, only_failed: bool) -> StageResult:
    run.need(stage.count)
    with stage_progress(stage.name, stage.count, prefect=True) as progress:

        def show(result: StageResult) -> None:
            run.need(result.total - result.done - result.skipped)
            progress.update(result.done + result.skipped, _note(result))

        result = run_stage(
            work,
            Ledger(run.output, stage.name, stage.count, run.lease.epoch),
            lease=run.lease,
            client=client,
            only_failed=only_failed,
            on_progress=show,
        )
        progress.close(result.done + result.skipped, _note(result))
    logger = get_run_logger()
    logger.info(
        "%s: %d done, %d skipped, %d failed of %d blocks in %.1f s",
        result.stage,
        result.done,
        result.skipped,
        len(result.failed),
        result.total,
        result.seconds,
    )
    if result.empty:
        logger.info("%s: %d of %d blocks hold nothing to compute", result.stage, result.empty, result.total)
    if result.absent:
        logger.warning("%s: %d input chunks are absent: read as fill value", result.stage, result.absent)
    if not result.complete:
        raise IncompleteStageError(result)
    return result


def _note(result: StageResult) -> str:
    speed = f"{result.voxels / result.seconds / 1e6:.2f} Mvoxel/s" if result.seconds > 0 else ""
    empty = f", {result.empty} empty" if result.empty else ""
    failed = f", {result.quarantined} FAILED" if result.quarantined else ""
    return f"{speed}{empty}{failed}"


def _client() -> Client | None:
    try:
        return Client.current()
    except ValueError:
        return None
