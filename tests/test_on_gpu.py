"""The promises on a GPU, where one is: the same bits, predicted memory, pinned workers, resumed trainings."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from strategies import random_network, random_voxels, write_array
from test_training import QUICK, blobs, same_weights, split

from flows import gpus, rank_host, worker
from flows.cluster import open_client, open_workers, workers_of
from flows.config import Local
from unet_core import budget, speed, training
from unet_core.architecture import UNetSpec
from unet_core.devices import fast_dtype
from unet_core.errors import UnfitWorkerError
from unet_core.geometry import Box, Shape, round_up
from unet_core.inference import Predictor, choose_dtype, predict_block
from unet_core.ledger import RunRecord, begin, hold, read_record
from unet_core.normalisation import Scale
from unet_core.probe import probe
from unet_core.tiling import Footprint, Tile, Tiling
from unet_core.training import Checkpoints
from unet_core.volumes import Store, Volume

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(300),
]

SPECS = {
    "2D": (UNetSpec.build(ndim=2, depth=4, base=16), (3, 300, 270), (1, 128, 128)),
    "3D": (UNetSpec.build(ndim=3, depth=2, base=16), (50, 70, 90), (32, 32, 32)),
    "anisotropic": (
        UNetSpec.build(ndim=3, depth=3, base=16, anisotropic_levels=1, upsampling="nearest", norm="batch"),
        (20, 90, 70),
        (8, 32, 32),
    ),
}
# Of the largest logit: 16 bits keep 8 or 11 of a mantissa, and errors add up over some twenty layers.
ROUNDING = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}


@pytest.fixture(params=SPECS)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[UNetSpec, Volume, Shape]:
    spec, shape, tile = SPECS[request.param]
    data = random_voxels((spec.in_channels, *shape), "uint8", 3)
    return spec, Volume.open(str(write_array(tmp_path / "v.zarr", data, axes="czyx"))), tile


def predictor_of(spec: UNetSpec, dtype: str, device: str = "cuda") -> Predictor:
    return Predictor(random_network(spec, 1), scale=Scale((127.0,), (80.0,)), device=device, dtype=dtype)


def tiling_of(spec: UNetSpec, shape: Shape, tile: Shape, block: Shape) -> Tiling:
    return Tiling(
        volume=shape,
        roi=Box.of_shape(shape),
        footprint=Footprint.of(spec),
        tile=tile,
        chunk=tile,
        shard=tile,
        block=block,
    )


def classes_of(volume: Volume, tiling: Tiling, predictor: Predictor, order: range) -> np.ndarray:
    classes = np.full(volume.shape, 255, np.uint8)
    for index in order:
        result = predict_block(volume, tiling, index, predictor)
        classes[result.box.slices] = result.classes
    return classes


@pytest.mark.parametrize("slabs", [False, True], ids=["at once", "in slabs"])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_same_bits_whatever_the_blocks_and_their_order(scene, dtype, slabs, monkeypatch):
    spec, volume, tile = scene
    if slabs:
        monkeypatch.setattr("unet_core.budget.forward._INDEXED", 2**20)
    found = []
    for factor, step in ((1, 1), (2, -1), (1, -1)):
        tiling = tiling_of(spec, volume.shape, tile, tuple(n * factor for n in tile))
        predictor = predictor_of(spec, dtype)
        found.append(classes_of(volume, tiling, predictor, range(len(tiling.blocks))[::step]))
    assert all((classes == found[0]).all() for classes in found)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("slabs", [False, True], ids=["at once", "in slabs"])
def test_logits_are_those_of_a_cpu_in_float32_to_rounding_and_the_same_bits_twice(
    scene, dtype, slabs, monkeypatch
):
    spec, volume, tile = scene
    if slabs:
        monkeypatch.setattr("unet_core.budget.forward._INDEXED", 2**20)
    foot = Footprint.of(spec)
    box = Box.of_shape(tile)
    read = box.grow(foot.lower, foot.upper)
    data = volume.read(read)
    at = Tile(read=read, write=box, keep=box)
    expected = predictor_of(spec, "float32", "cpu").logits(data, at)
    first, second = (predictor_of(spec, dtype).logits(data, at) for _ in range(2))
    assert torch.equal(first, second)
    error = (first.float().cpu() - expected).abs().max() / expected.abs().max()
    assert error < ROUNDING[dtype]


@pytest.mark.parametrize("raw", ["uint8", "int8", "uint16", "int16", ">u2", "uint32", "float32", "float64"])
def test_volumes_of_all_types_are_scaled_as_on_a_cpu(raw):
    spec, _, tile = SPECS["3D"]
    box = Box.of_shape(tile)
    at = Tile(box.grow(*spec.context), box, box)
    # Wider by a voxel per side: what a block reads, of which a tile is a part that lies apart in memory.
    wider = random_voxels((1, *(n + 2 for n in at.read.shape)), np.dtype(raw).newbyteorder("="), 1)
    data = wider.astype(raw)[:, 1:-1, 1:-1, 1:-1]
    on_cpu, on_gpu = (predictor_of(spec, "float32", device) for device in ("cpu", "cuda"))
    assert torch.equal(on_gpu._scaled(data).cpu(), on_cpu._scaled(data))
    expected = on_cpu.logits(data, at)
    error = (on_gpu.logits(data, at).cpu() - expected).abs().max() / expected.abs().max()
    assert error < ROUNDING["float32"]


@pytest.mark.parametrize("dtype", ROUNDING)
def test_labels_of_other_tiles_differ_only_where_two_logits_are_nearer_than_rounding(scene, dtype):
    spec, volume, tile = scene
    other = tuple(2 * n if n > 1 else 1 for n in tile)
    predictor = predictor_of(spec, dtype)
    found = [
        classes_of(volume, tiling, predictor, range(len(tiling.blocks)))
        for tiling in (tiling_of(spec, volume.shape, t, t) for t in (tile, other))
    ]
    shape = tuple(round_up(n, t) for n, t in zip(volume.shape, Footprint.of(spec).stride))
    whole = Box.of_shape(shape)
    read = whole.grow(Footprint.of(spec).lower, Footprint.of(spec).upper)
    planes = (
        [(whole, read)]
        if spec.ndim == 3
        else [
            (Box((z, 0, 0), (z + 1, *shape[1:])), Box((z, *read.lower[1:]), (z + 1, *read.upper[1:])))
            for z in range(shape[0])
        ]
    )
    logits = torch.cat(
        [predictor_of(spec, "float32", "cpu").logits(volume.read(r), Tile(r, w, w)) for w, r in planes], dim=1
    )
    best, second = logits[(slice(None), *Box.of_shape(volume.shape).slices)].topk(2, dim=0).values
    unsure = (best - second < 2 * ROUNDING[dtype] * logits.abs().max()).numpy()
    assert unsure.mean() < 0.9, "the test would say nothing"
    assert (found[0] == found[1])[~unsure].all()


def test_a_tile_is_begun_while_the_gpu_still_computes():
    """Else it would wait for its turn at every tile, and nothing would be read or copied meanwhile."""
    spec, _, tile = SPECS["3D"]
    box = Box.of_shape(tile)
    at = Tile(box.grow(*spec.context), box, box)
    data = random_voxels((1, *at.read.shape), "uint16", 2)
    predictor = predictor_of(spec, "bfloat16")
    # Twice, and copied: from now on all memory is there, and free.
    for _ in range(2):
        expected, likely = (found.copy() for found in predictor.start(data, at, probabilities=True).take())
    busy = torch.cuda.Event()
    torch.cuda._sleep(5 * 10**9)  # cycles: two seconds and more
    busy.record()
    started = predictor.start(data, at, probabilities=True)
    assert not busy.query()
    classes, chances = started.take()
    assert busy.query()
    assert (classes == expected).all()
    assert (chances == likely).all()


def test_a_type_is_decided_and_two_workers_agree():
    spec, _, tile = SPECS["3D"]
    tiling = tiling_of(spec, tile, tile, tile)
    at = next(tiling.tiles(0))
    data = random_voxels((1, *at.read.shape), "uint8", 3)
    fast = fast_dtype("cuda")
    network, scale = random_network(spec, 1), Scale((127.0,), (80.0,))
    assert choose_dtype(network, data, at, scale=scale, device="cuda") in ("float32", fast)
    for dtype in ROUNDING:
        first, second = (probe(predictor_of(spec, dtype), tiling) for _ in range(2))
        first.require(second)
        assert first.device == "cuda"
    with pytest.raises(UnfitWorkerError):
        first.require(probe(predictor_of(spec, dtype, "cpu"), tiling))


def test_measuring_the_speed_leaves_the_memory_to_the_workers():
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    memory = 2**32
    rates = speed.rates_of(
        UNetSpec.build(ndim=3, depth=2, base=16), device="cuda", dtype="bfloat16", memory=memory
    )
    assert len(rates.points) > 3
    assert torch.cuda.memory_reserved() - before < memory / 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("spec", "write"),
    [
        pytest.param(UNetSpec.build(ndim=3, depth=3, base=16), (128, 128, 128), id="3D"),
        pytest.param(
            UNetSpec.build(ndim=3, depth=2, base=32, upsampling="nearest"), (96, 128, 128), id="nearest"
        ),
        pytest.param(UNetSpec.build(ndim=2, depth=4, base=64), (1, 1024, 1024), id="2D"),
    ],
)
def test_a_forward_pass_takes_what_is_predicted(spec, write, dtype):
    if (spec.ndim, dtype) == (2, "float32"):
        pytest.skip("cuDNN takes all the memory that is there for its workspace, and does with less")
    foot = Footprint.of(spec)
    box = Box.of_shape(write)
    read = box.grow(foot.lower, foot.upper)
    data = random_voxels((1, *read.shape), "uint8", 0)
    predictor = predictor_of(spec, dtype)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    reserved = torch.cuda.memory_reserved()
    predictor.start(data, Tile(read, box, box)).take()
    allocated = torch.cuda.max_memory_allocated() - before
    held = torch.cuda.max_memory_reserved() - reserved
    shape = read.shape[3 - spec.ndim :]
    predicted = budget.forward_bytes(spec, shape, dtype, "cuda") + box.size + data.nbytes
    figures = (
        f"predicted {predicted / 1e6:.0f} MB, allocated {allocated / 1e6:.0f}, reserved {held / 1e6:.0f}"
    )
    assert allocated <= predicted <= 1.3 * allocated, figures
    assert held <= 1.5 * predicted, figures


def test_a_tile_of_more_elements_than_cudnn_indexes():
    spec, write = UNetSpec.build(ndim=3, depth=2, base=32), (336, 336, 336)
    foot = Footprint.of(spec)
    box = Box.of_shape(write)
    read = box.grow(foot.lower, foot.upper)
    data = random_voxels((1, *read.shape), "uint8", 0)
    classes, _ = predictor_of(spec, "float16").start(data, Tile(read, box, box)).take()
    part = Box((320, 320, 320), write)
    inner = Tile(part.grow(foot.lower, foot.upper), part, part)
    cut = data[(slice(None), *inner.read.relative_to(read.lower).slices)]
    alone, _ = predictor_of(spec, "float16").start(cut, inner).take()
    assert (classes[part.slices] == alone).mean() > 0.99, "beyond what the first slab's tensors hold"


def plan_of(folder: Path, dtype: str) -> training.Plan:
    source, held_out = split(folder, *blobs((12, 12, 24), seed=0))
    spec = UNetSpec.build(ndim=3, depth=1, base=8, norm="batch", dropout=0.2)
    settings = replace(QUICK, steps=40, validate_every=20, checkpoint_every=10, device="cuda", dtype=dtype)
    return training.prepare([source], [held_out], spec, settings)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_resumed_training_ends_as_one_that_was_not_stopped(tmp_path, dtype):
    plan = plan_of(tmp_path, dtype)
    whole = training.run(plan)
    losses = [row["loss"] for row in whole.history.rows]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])

    looks = iter(range(100))
    with hold(Store(tmp_path / "model"), every=60) as lease:
        checkpoints = Checkpoints(Store(tmp_path / "model"), lease.epoch)
        stopped = training.run(plan, checkpoints=checkpoints, should_stop=lambda: next(looks) >= 17)
        assert stopped.stopped
        resumed = training.run(plan, checkpoints=checkpoints)
    assert same_weights(resumed.network, whole.network)


def test_a_rank_in_a_process_of_its_own_trains_the_same(tmp_path):
    plan, store = plan_of(tmp_path, "bfloat16"), Store(tmp_path / "model")
    record = RunRecord(training.KIND, {"name": "rank"}, plan.to_dict())
    progress: list[dict] = []
    with hold(store, every=60) as lease:
        begin(store, record, arrays=False)
        job = {"output": store.url, "fingerprint": record.fingerprint, "epoch": lease.epoch, "loaders": 1}
        place = {"rank": 0, "world": 1, "gpu": gpus.seen()[0][0], "host": "127.0.0.1"}
        told = rank_host.run({**job, **place}, progress.append, lambda: True)
    assert told.get("done", {}).get("step") == plan.settings.steps, told
    assert progress
    found = training.trained_by_others(plan, Checkpoints(store), stopped=False)
    assert same_weights(found.network, training.run(plan).network)


def test_blocks_on_a_pinned_worker_are_those_of_this_process(objects):
    from pipeline import complete

    there, here = objects / "there.zarr", objects / "here.zarr"
    complete(objects, str(here), tile=(32, 32, 32))
    plan = complete(objects, str(there), tile=(32, 32, 32), most=0)
    assert plan.device == "cuda"
    store = Store(there)
    record = read_record(store)
    with hold(store, every=60) as lease, open_client(Local()) as client:
        run = (store.url, record.fingerprint, lease.epoch, plan.model)
        done = [
            client.submit(worker.predict, *run, index, pure=False).result()
            for index in range(len(plan.tiling.blocks))
        ]
    assert sum(each.voxels for each in done) == plan.tiling.roi.size
    first, second = (zarr.open_array(folder / plan.predicted)[:] for folder in (here, there))
    assert (first == second).all()


def test_each_worker_sees_one_gpu_and_cpu_stages_have_none():
    count = torch.cuda.device_count()
    assert workers_of(Local()) == count
    with open_workers(Local()) as workers:
        seen = list(workers.client.run(gpus.seen).values())
        assert sorted(names for names, _ in seen) == [(str(index),) for index in range(count)]
        workers.for_cpu_stages()
        assert set(workers.client.run(torch.cuda.device_count).values()) == {0}
        assert len(workers.client.scheduler_info()["workers"]) >= 1


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    from pipeline import save_random_model

    data = random_voxels((96, 128, 128), "uint8", 5)
    zarr.create_array(tmp_path / "volume.zarr", data=data, chunks=(32, 64, 64), dimension_names=list("zyx"))
    save_random_model(tmp_path / "model", UNetSpec.build(ndim=3, depth=2, base=16), seed=1)
    return tmp_path


def test_a_whole_segmentation(objects):
    pytest.importorskip("prefect")
    from killing import COMMAND, Running, voxels

    outputs = []
    for name, options in (
        ("one", ()),
        ("other", ("--block", "64,64,64")),
        ("float32", ("--dtype", "float32")),
    ):
        command = [
            *(*COMMAND, "segment", str(objects / "volume.zarr"), "--model", str(objects / "model")),
            *("--to", str(objects / f"{name}.zarr"), "--tile", "32,32,32", "--instances", "components"),
            *("--json", *options),
        ]
        code, document, errors = Running.start(command, OMP_NUM_THREADS=str(os.cpu_count())).end()
        assert (code, document.get("device")) == (0, "cuda"), errors
        outputs.append(voxels(objects / f"{name}.zarr"))
    assert outputs[0] == outputs[1]
