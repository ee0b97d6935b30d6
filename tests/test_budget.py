"""What a plan says it needs, against what processes really take."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import boxes_within, network_specs, random_voxels

from flows import worker
from flows.cluster import open_client
from flows.config import Local
from flows.environment import thread_environment
from unet_core import budget
from unet_core.architecture import UNetSpec
from unet_core.errors import InputError
from unet_core.geometry import Box, Grid
from unet_core.ledger import hold, read_record
from unet_core.model import UNet
from unet_core.segmentation import SegmentPlan, SegmentRequest, plan_segmentation, resolve, start
from unet_core.tile_choice import choose_tile
from unet_core.tiling import Footprint, Tiling, chunk_and_shard
from unet_core.volumes import Store

# Of the measured peak, either way. Tensors are counted exactly; how much of the libraries a process maps
# differs between machines.
FORWARD_WITHIN, WORKER_WITHIN = 0.15, 0.25

# Each case runs in a fork of one process that has loaded everything and computed nothing: a peak belongs to a
# process and cannot be reset, and loading torch anew for each case would take longer than measuring.
PROBE = """
import json, os, resource, sys
import numpy as np
import psutil, torch
from unet_core.architecture import UNetSpec
from unet_core.geometry import Box
from unet_core.inference import Predictor
from unet_core.model import UNet
from unet_core.normalisation import Scale
from unet_core.tiling import Tile

def forward(spec, write):
    spec = UNetSpec(**spec)
    scale = Scale((0.0,) * spec.in_channels, (1.0,) * spec.in_channels)
    predictor = Predictor(UNet(spec), scale=scale, device="cpu", dtype="float32")
    flat = (1,) * (3 - spec.ndim)
    def run(write):
        box = Box.of_shape((*flat, *write))
        data = np.full((spec.in_channels, *flat, *spec.read_shape(write)), 100, np.uint8)
        before = psutil.Process().memory_info().rss
        predictor.start(data, Tile(box, box, box)).take()
        return before
    run(spec.stride)  # loads the kernels
    before = run(write)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before

for case in json.loads(sys.argv[1]):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, str(forward(*case)).encode())
        os._exit(0)
    os.close(theirs)
    print(os.read(ours, 64).decode(), flush=True)
    os.wait()
"""


def peaks_of_forward(cases: list[tuple]) -> list[int]:
    """Peak bytes of a forward pass, beside the process's own, where freed memory goes back at once.

    Not in whatever environment the tests run in: how much the C library keeps depends on it, and a Dask nanny
    that an earlier test started has changed it.
    """
    command = [sys.executable, "-W", "ignore", "-c", PROBE, json.dumps(cases)]
    environment = {**os.environ, **thread_environment(1)}
    environment |= {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=environment)
    return [int(line) for line in done.stdout.split()]


def peak_of_worker(output: str, plan: SegmentPlan) -> int:
    """Peak bytes of a real worker process that does all blocks of a run."""
    store = Store(output)
    record = read_record(store)
    with open_client(Local(workers=1, threads=1)) as client, hold(store) as lease:
        run = (output, record.fingerprint, lease.epoch, plan.model)
        for index in range(plan.stages[0].count):
            client.submit(worker.predict, *run, index, pure=False).result()
        (pid,) = client.run(os.getpid).values()
        # Not its ru_maxrss: that begins with the memory of the process that started it.
        status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


FORWARD = [
    (UNetSpec.build(ndim=3, depth=2, base=16), (16, 160, 160)),
    (UNetSpec.build(ndim=3, depth=3, base=16, upsampling="nearest"), (48, 96, 96)),
    (UNetSpec.build(ndim=2, depth=4, base=16), (512, 1024)),
]
WORKERS = [  # network, image (c, z, y, x), its type, tile; two tiles in one block, or two blocks
    (UNetSpec.build(ndim=3, depth=2, base=16), (1, 64, 80, 90), "uint8", (64, 80, 80)),
    (
        UNetSpec.build(ndim=2, depth=4, base=32, in_channels=3, classes=4),
        (3, 1, 400, 700),
        "uint16",
        (1, 400, 400),
    ),
]


def test_a_forward_pass_takes_what_is_predicted():
    predicted, cases = [], []
    for spec, write in FORWARD:
        read = spec.read_shape(write)
        predicted.append(budget.forward_bytes(spec, read, "float32", "cpu") + prod(write))
        cases.append((spec.to_dict(), write))
    measured = peaks_of_forward(cases)
    assert len(measured) == len(predicted)
    assert min(measured) > 50e6, "large enough for activations to dominate"
    for case, expected, found in zip(cases, predicted, measured):
        assert expected == pytest.approx(found, rel=FORWARD_WITHIN), case


@pytest.mark.parametrize(("spec", "shape", "dtype", "tile"), WORKERS, ids=["3D", "2D"])
def test_a_worker_takes_what_is_predicted(spec, shape, dtype, tile, make_model, make_volume, tmp_path):
    volume = make_volume(random_voxels(shape, dtype, 0), chunks=(1, 64, 64, 64))
    request = SegmentRequest(
        volume=str(volume),
        model=str(make_model(spec)),
        to=str(tmp_path / "out.zarr"),
        tile=tile,
        dtype="float32",
        probabilities=spec.classes > 2,
        normalisation="model",
    )
    planned = plan_segmentation(request)
    plan = resolve(planned.plan, request.normalisation)
    start(planned, plan)
    assert planned.memory.total == pytest.approx(peak_of_worker(request.to, plan), rel=WORKER_WITHIN)


@settings(max_examples=30)
@given(spec=network_specs(cost=float("inf")))
def test_weights_are_counted(spec):
    import torch

    with torch.device("meta"):
        network = UNet(spec.padded())
    held = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    # All but the head and the vectors, which are small.
    assert budget.weight_bytes(spec, "float32") == 4 * (held - network.head.weight.numel())
    assert budget.weight_bytes(spec, "bfloat16") * 2 == budget.weight_bytes(spec, "float32")


@settings(max_examples=60)
@given(
    spec=network_specs(cost=float("inf")),
    volume=st.tuples(*[st.integers(1, 3000)] * 3),
    data=st.data(),
    memory=st.integers(2**16, 2**34),
)
def test_the_chosen_tile_fits_and_more_memory_never_costs_more(spec, volume, data, memory):
    flat = 3 - spec.ndim
    assume(memory >= budget.forward_bytes(spec, spec.read_shape(spec.stride), "float32", "cpu"))
    roi = data.draw(boxes_within(volume))
    tile = choose_tile(spec, volume, roi, dtype="float32", device="cpu", memory=memory)
    assert budget.forward_bytes(spec, spec.read_shape(tile[flat:]), "float32", "cpu") <= memory
    assert tile[:flat] == (1,) * flat
    chunk, shard = chunk_and_shard(tile, volume)
    foot = Footprint.of(spec)
    Tiling(volume=volume, roi=roi, footprint=foot, tile=tile, chunk=chunk, shard=shard, block=shard)

    def cost(memory: int) -> int:
        tile = choose_tile(spec, volume, roi, dtype="float32", device="cpu", memory=memory)
        return len(Grid(roi, tile)) * spec.macs(spec.read_shape(tile[flat:]))

    assert cost(4 * memory) <= cost(memory)


def test_tiles_of_usual_volumes():
    spec, shape = UNetSpec.build(ndim=3, depth=3, base=16), (500, 500, 500)
    options = {"device": "cpu", "memory": 2**28}
    tile = choose_tile(spec, shape, Box.of_shape(shape), dtype="float32", **options)
    half = choose_tile(spec, shape, Box.of_shape(shape), dtype="bfloat16", **options)
    assert np.prod(half) > np.prod(tile)
    # The paper's own case: a plane of 512 x 512 is one tile.
    shape = (9, 512, 512)
    plane = choose_tile(
        UNetSpec.paper(), shape, Box.of_shape(shape), dtype="float32", device="cpu", memory=2**32
    )
    assert plane == (1, 512, 512)


def test_a_tile_that_cannot_fit_is_refused_with_both_numbers():
    spec = UNetSpec.build(ndim=3, depth=4, base=64)
    with pytest.raises(InputError, match="not even the smallest tile") as refused:
        choose_tile(spec, (512,) * 3, Box.of_shape((512,) * 3), dtype="float32", device="cpu", memory=10**8)
    needed = budget.forward_bytes(spec, spec.read_shape(spec.stride), "float32", "cpu")
    assert f"{needed:,} bytes" in refused.value.expected
    assert "100,000,000 bytes" in refused.value.found
    assert "--dtype" in refused.value.fix


def test_the_number_that_a_refusal_asks_for_is_enough():
    spec = UNetSpec.build(ndim=3, depth=1, base=8)
    with pytest.raises(InputError) as refused:
        choose_tile(spec, (512,) * 3, Box.of_shape((512,) * 3), dtype="float32", device="cpu", memory=1)
    enough = int(refused.value.expected.split(" ")[0].replace(",", ""))
    choose_tile(spec, (512,) * 3, Box.of_shape((512,) * 3), dtype="float32", device="cpu", memory=enough)


def test_workers_that_do_not_fit_are_refused_with_both_numbers():
    gib = 2**30
    needed = budget.WorkerMemory(base=gib, weights=0, input=gib // 2, forward=2 * gib, output=gib // 2)
    assert needed.total == 4 * gib
    budget.require_memory(needed, "cpu", workers=2, available=8 * gib)
    with pytest.raises(InputError, match="does not fit in memory") as refused:
        budget.require_memory(needed, "cpu", workers=2, available=8 * gib - 1)
    assert "8.00 GiB for 2 workers" in refused.value.expected
    assert "2.00 GiB of it" in refused.value.expected
    assert refused.value.found == "8.00 GiB available"
    assert all(option in refused.value.fix for option in ("--tile", "--block", "--workers"))


def test_on_a_gpu_the_forward_pass_lives_there(monkeypatch):
    gib = 2**30
    needed = budget.WorkerMemory(base=gib, weights=0, input=gib // 2, forward=2 * gib, output=gib // 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2 * gib, 80 * gib))
    budget.require_memory(needed, "cuda", workers=2, available=4 * gib)
    budget.require_gpu_memory(needed)
    with pytest.raises(InputError, match="does not fit in memory") as refused:
        budget.require_memory(needed, "cuda", workers=2, available=4 * gib - 1)
    assert "4.00 GiB for 2 workers" in refused.value.expected
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2 * gib - 1, 80 * gib))
    with pytest.raises(InputError, match="the GPU's memory") as refused:
        budget.require_gpu_memory(needed)
    assert "--tile" in refused.value.fix


def test_what_the_machine_has_is_asked_for_where_nothing_is_said(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000, total=1000))
    needed = budget.WorkerMemory(base=1001, weights=0, input=0, forward=0, output=0)
    with pytest.raises(InputError, match="does not fit"):
        budget.require_memory(needed, "cpu", workers=1, available=None)
