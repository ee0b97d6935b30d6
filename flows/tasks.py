"""Thin Prefect tasks, one per stage, running in the flow process; the logic is called, not contained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed import Client
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows import worker
from flows.blocks import StageResult, run_stage
from flows.progress import stage_progress
from unet_core import training
from unet_core.ingestion import IngestPlan, write_slab
from unet_core.ledger import Ledger, RunRecord, read_record
from unet_core.segmentation import Planned, SegmentPlan, start
from unet_core.sources import Source
from unet_core.volumes import Store, open_for_writing


# Prefect's result cache compares arguments, not data: it has returned stale hits. The ledger decides.
@task(name="prepare", cache_policy=NO_CACHE)
def prepare(planned: Planned) -> SegmentPlan:
    """Measure the intensity scale, create the output's arrays and the run record."""
    return start(planned)


@task(name="predict", task_run_name="predict {url}", cache_policy=NO_CACHE)
def predict(*, url: str, fingerprint: str, model: str, blocks: int) -> StageResult:
    """The network over every block, on Dask workers."""
    return _stage(
        worker.predict, (url, fingerprint, model), Ledger(Store(url), "predict", blocks), Client.current()
    )


@task(name="copy", task_run_name="copy to {url}", cache_policy=NO_CACHE)
def copy(*, url: str, plan: IngestPlan, source: Source) -> StageResult:
    """The source's slabs into level 0, in this process: compressed files are read forward only."""
    store = Store(url)
    array, ledger = open_for_writing(store, "0"), Ledger(store, "copy", len(plan))

    def slab(index: int) -> int:
        write_slab(plan, source, array, index)
        ledger.commit(index, "0")
        return plan.slab_at(index)[1].size

    return _stage(slab, (), ledger, None)


@task(name="pyramid", task_run_name="pyramid level {level} of {url}", cache_policy=NO_CACHE)
def pyramid(*, url: str, fingerprint: str, level: int, blocks: int) -> StageResult:
    """One coarser level from the finished level below it; on workers where there are some."""
    ledger = Ledger(Store(url), f"pyramid-{level}", blocks)
    return _stage(worker.pyramid, (url, fingerprint, level), ledger, _client())


@task(name="train", cache_policy=NO_CACHE)
def train(plan: training.Plan) -> training.Trained:
    """All steps of a training, in this process."""
    steps = plan.settings.steps
    with stage_progress("train", steps, prefect=True) as progress:

        def show(now: training.Progress) -> None:
            progress.update(now.step, f"loss {now.loss:.4f}, {now.patches_per_second:.1f} patches/s")
            if now.scores is not None:
                get_run_logger().info("step %d: validation mean IoU %s", now.step, now.scores["mean_iou"])

        trained = training.run(plan, on_progress=show)
        progress.close(steps, f"loss {trained.history[-1].loss:.4f}")
    return trained


def fingerprint_of(url: str) -> str:
    """Fingerprint of the run that was just begun, or gone on with, at `url`."""
    record = read_record(Store(url))
    if not isinstance(record, RunRecord):
        raise RuntimeError(f"no run record at {url}")
    return record.fingerprint


def _stage(
    function: Callable[..., int], arguments: tuple[Any, ...], ledger: Ledger, client: Client | None
) -> StageResult:
    with stage_progress(ledger.stage, ledger.count, prefect=True) as progress:
        result = run_stage(
            function,
            arguments,
            ledger,
            client=client,
            on_progress=lambda r: progress.update(r.done + r.skipped, _note(r)),
        )
        progress.close(result.done + result.skipped, _note(result))
    get_run_logger().info(
        "%s: %d done, %d skipped, %d failed of %d blocks in %.1f s",
        ledger.stage,
        result.done,
        result.skipped,
        len(result.failed),
        result.total,
        result.seconds,
    )
    return result


def _note(result: StageResult) -> str:
    speed = f"{result.voxels / result.seconds / 1e6:.2f} Mvoxel/s" if result.seconds > 0 else ""
    return f"{speed}, {len(result.failed)} FAILED" if result.failed else speed


def _client() -> Client | None:
    try:
        return Client.current()
    except ValueError:
        return None
