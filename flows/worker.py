"""What runs on a worker: one block of one stage. Arguments are a URL and integers; results are integers.

The same functions run in the flow process, on a local Dask worker and on a cluster's.
"""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import Any

from unet_core.errors import RunError
from unet_core.ledger import read_record
from unet_core.pyramid import PyramidPlan
from unet_core.segmentation import BlockWorker, SegmentPlan, pyramid_block
from unet_core.volumes import Store

# A Dask worker of several threads must not hold several networks and tiles: the plan counts one.
_ONE_AT_A_TIME = Lock()


def predict(url: str, fingerprint: str, model: str, index: int) -> int:
    """One block of the `predict` stage of the run at `url`; returns its voxels."""
    with _ONE_AT_A_TIME:
        return _block_worker(url, fingerprint, model).predict(index)


def pyramid(url: str, fingerprint: str, level: int, index: int) -> int:
    """One block of a pyramid level of the output at `url`; returns its voxels."""
    return pyramid_block(url, _pyramid_plan(url, fingerprint), level, index)


@lru_cache(maxsize=1)  # one network at a time in a worker's memory, loaded once
def _block_worker(url: str, fingerprint: str, model: str) -> BlockWorker:
    return BlockWorker(url, SegmentPlan.from_dict(_plan(url, fingerprint)), model_url=model)


@lru_cache(maxsize=1)
def _pyramid_plan(url: str, fingerprint: str) -> PyramidPlan:
    return PyramidPlan.from_dict(_plan(url, fingerprint)["pyramid"])


def _plan(url: str, fingerprint: str) -> dict[str, Any]:
    record = read_record(Store(url))
    if record is None or record.fingerprint != fingerprint:
        raise RunError("the output was replaced while this run was going on", where=url)
    return dict(record.plan)
