"""Workers with GPUs, planned on a machine without one, and what is said where nobody has one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeline import save_random_model
from strategies import random_voxels, write_array

from flows import segment, worker
from flows.config import SegmentConfig
from unet_core import budget
from unet_core.architecture import UNetSpec
from unet_core.errors import InputError
from unet_core.ledger import RunRecord, begin, hold
from unet_core.normalisation import Scale
from unet_core.probe import Probe
from unet_core.segmentation import KIND, SegmentRequest, plan_segmentation
from unet_core.segmentation.planning import identity_of
from unet_core.volumes import Store

SPEC = UNetSpec.build(ndim=3, depth=2, base=8)
GPU = {"device": "cuda", "workers": None, "tile_memory": 2**28}


@pytest.fixture
def request_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SegmentRequest:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    volume = write_array(tmp_path / "volume.zarr", random_voxels((64, 96, 96), "uint8", 0))
    save_random_model(tmp_path / "model", SPEC)
    return SegmentRequest(
        volume=str(volume), model=str(tmp_path / "model"), to=str(tmp_path / "labels.zarr"), dtype="bfloat16"
    )


def test_the_tile_fits_into_what_the_workers_say(request_of: SegmentRequest) -> None:
    tiles = set()
    for memory in (2**25, 2**28):
        planned = plan_segmentation(request_of, **{**GPU, "tile_memory": memory})
        needed = budget.forward_bytes(SPEC, planned.plan.tiling.read_shape, "bfloat16", "cuda")
        assert (planned.plan.device, needed <= memory) == ("cuda", True)
        assert all(option.memory <= memory for option in planned.options())
        again = planned.in_float32().plan.tiling.read_shape
        assert budget.forward_bytes(SPEC, again, "float32", "cuda") <= memory
        tiles.add(planned.plan.tiling.tile)
    assert len(tiles) == 2


def test_the_flow_asks_the_workers(request_of: SegmentRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[Any, Any] = {worker.device: "cuda", worker.tile_memory: 2**24}
    monkeypatch.setattr(segment, "ask", lambda client, function, *arguments: said[function])
    monkeypatch.setattr(segment, "read_cluster", lambda *_, **__: SimpleNamespace(workers=1))
    given = {name: getattr(request_of, name) for name in ("volume", "model", "to", "dtype")}
    client: Any = object()
    planned = segment.plan(SegmentConfig(**given), client=client)
    assert (planned.plan.device, planned.fitting.memory) == ("cuda", 2**24)


def test_a_run_on_gpus_is_looked_at_where_there_is_none(request_of: SegmentRequest) -> None:
    asked = SegmentRequest(**{**vars(request_of), "tile": (32, 32, 32)})
    planned = plan_segmentation(asked, **GPU)
    output, plan = Store(asked.to), planned.plan
    identity = identity_of(asked, planned.volume, planned.model, plan.tiling.roi, plan)
    begun = replace(plan, scale=Scale((0.0,), (1.0,)), probe=Probe("cuda", "GPU", "torch", "0"))
    with hold(output):
        begin(output, RunRecord(KIND, identity, begun.to_dict()))
    again = plan_segmentation(asked, workers=None)
    assert (again.resumed, again.plan.device) == (True, "cuda")
    assert again.options()[0].memory <= again.memory.forward
    with pytest.raises(InputError, match="this process sees none") as refused:
        plan_segmentation(asked, workers=1)
    assert "--cluster" in refused.value.fix


def test_where_nobody_has_a_gpu_it_is_said_before_any_work(request_of: SegmentRequest) -> None:
    with pytest.raises(InputError, match="this process sees none"):
        plan_segmentation(request_of, device="cuda", workers=None)
