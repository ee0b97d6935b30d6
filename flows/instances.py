"""The stages after the network: instances, then the pyramid; for `segment` and `stitch` alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

from flows import tasks
from flows.outcome import Run
from unet_core import pyramid
from unet_core.instances import InstancePlan
from unet_core.instances.plan import RELABEL
from unet_core.ledger import Stage
from unet_core.pyramid import PyramidPlan

PATIENCE = 600.0  # seconds
_SLOWEST_VOXELS = 1e5  # a second; slower than this a block is hung


def follow(
    run: Run,
    *,
    instances: InstancePlan | None,
    levels: PyramidPlan,
    prepare: Callable[[], None],
    timeout: float | None,
    only_failed: bool,
) -> bool:
    """Do these stages until one is not complete; whether all are.

    Parameters
    ----------
    prepare
        Makes the arrays of the ids, which have a data type once the merge is done.
    timeout
        Seconds of a block that were asked for.
    """

    def do(stage: Stage) -> bool:
        if stage.name == RELABEL:
            prepare()
        common = {"run": run, "stage": stage, "only_failed": only_failed}
        if instances is not None and stage.name in {s.name for s in instances.stages}:
            # One block that is the whole volume takes as long as there are objects.
            voxels = prod(instances.block) if stage.count > 1 else instances.roi.size
            return run.do(partial(tasks.instances, timeout=_limit(timeout, voxels), **common))
        level = int(stage.name.removeprefix(pyramid.STAGE))
        seconds = _limit(timeout, prod(levels.shard))
        return run.do(partial(tasks.pyramid, level=level, timeout=seconds, **common))

    stages = (*(() if instances is None else instances.stages), *levels.stages)
    return all(do(stage) for stage in stages)


def _limit(asked: float | None, voxels: int) -> float:
    return asked or PATIENCE + voxels / _SLOWEST_VOXELS
