"""The instance stages on stores, through the ledger: as in memory, whatever the blocks, and after a kill."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from unet_core.errors import DataError, InputError
from unet_core.geometry import Box
from unet_core.instances import (
    InstancePlan,
    InstanceRequest,
    begin_instances,
    begin_merge,
    create_final,
    only_level,
    plan_instances,
)
from unet_core.instances.blocks import InstanceWorker
from unet_core.instances.foreground import by_class
from unet_core.instances.in_memory import label_components
from unet_core.instances.plan import MERGE, block_of
from unet_core.ledger import Ledger, hold
from unet_core.pyramid import PyramidPlan
from unet_core.query.objects import ObjectTable
from unet_core.table import FILES, TablePlan
from unet_core.verification import verify_block
from unet_core.volumes import Store, Volume, create_multiscale, open_for_writing, write_box

SHAPE, CHUNK, SHARD = (15, 30, 27), (4, 8, 8), (8, 16, 16)
NAMES = ("background", "cell", "nucleus")


def classes_of(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    """Blobs of two classes, with holes, over many shards."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(3).standard_normal(shape), 1.2)
    return np.digitize(noise, [0.02, 0.12]).astype(np.uint8)


def plan_of(request: InstanceRequest, **options: Any) -> InstancePlan:
    values = {"volume": SHAPE, "roi": Box.of_shape(SHAPE), "shard": SHARD, "block": SHARD, **options}
    return measured(plan_instances(request, classes=NAMES, target="semantic", **values))


def measured(plan: InstancePlan) -> InstancePlan:
    """The plan with what an object table is made with."""
    table = TablePlan(
        volume=SHAPE,
        extent=plan.roi,
        planar=False,
        voxel_size=(2.0, 1.0, 1.0),
        origin=(0.0,) * 3,
        unit="micrometer",
        chunk=CHUNK,
        shard=SHARD,
        channels=(0,),
        quanta=(1.0,),
        classes=NAMES,
    )
    return replace(plan, table=table)


def worker_of(store: Store, plan: InstancePlan, epoch: int) -> InstanceWorker:
    """The image is what the classes are."""
    image = Volume.open(f"{plan.source or store.url}/classes")
    return InstanceWorker(store.url, plan, image=image, fingerprint="f" * 16, epoch=epoch)


def begin(folder: Path | str, plan: InstancePlan, classes: NDArray[np.uint8]) -> Store:
    """An output in which `predict` is done."""
    store = Store(folder)
    begin_instances(
        store,
        axes="zyx",
        levels=only_level(SHAPE),
        chunk=CHUNK,
        shard=SHARD,
        voxel_size=(2.0, 1.0, 1.0),
        origin=(0.0,) * 3,
        unit="micrometer",
    )
    kept = np.zeros_like(classes)
    kept[plan.roi.slices] = classes[plan.roi.slices]
    write_box(open_for_writing(store, "classes/0"), Box.of_shape(SHAPE), kept)
    return store


def go_on(store: Store, plan: InstancePlan, *, most: int = 10**9) -> bool:
    """Do what is missing, at most so many blocks, as a new owner and a new worker; whether all is done."""
    with hold(store) as lease:
        for stage in plan.stages:
            if stage.name == "relabel":
                pyramid = PyramidPlan(
                    levels=tuple(only_level(SHAPE)), shard=SHARD, method="mode", extent=plan.roi
                )
                create_final(
                    store,
                    template=f"{plan.source or store.url}/local",
                    pyramid=pyramid,
                    chunk=CHUNK,
                    shard=SHARD,
                    source=None,
                )
            worker = worker_of(store, plan, lease.epoch)
            ledger = Ledger(store, stage.name, stage.count, lease.epoch)
            ledger.seal()
            for index in reversed(list(ledger.read().done.missing())):
                if most == 0:
                    return False
                worker.do(stage.name, index)
                most -= 1
    return True


def final(store: Store) -> NDArray[Any]:
    return np.asarray(zarr.open_array(f"{store.url}/0", mode="r")[:])


def stored(store: Store) -> dict[str, str]:
    """Digests of the chunks of the final ids, and of the tables."""
    keys = [key for folder in ("0/c", *FILES) for key in store.keys(folder.rstrip("/"))]
    assert len(keys) > 3
    return {k: hashlib.sha256(store.read(k) or b"").hexdigest() for k in keys}


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        (InstanceRequest(), {}),
        (InstanceRequest(connectivity="full", fill_holes=True, min_size=5), {}),
        (
            InstanceRequest(foreground=(2,), connect="2d", fill_holes=True),
            {"roi": Box((3, 5, 1), (14, 30, 25))},
        ),
    ],
)
def test_stores_hold_what_memory_gives(
    tmp_path: Path, request_: InstanceRequest, options: dict[str, Any]
) -> None:
    classes = classes_of()
    plan = plan_of(request_, **options)
    store = begin(tmp_path / "labels.zarr", plan, classes)
    assert go_on(store, plan)
    inside = by_class(classes[plan.roi.slices], plan.foreground)
    expected = np.zeros(SHAPE, np.uint32)
    expected[plan.roi.slices] = label_components(
        inside,
        block=(64, 64, 64),
        connectivity=plan.connectivity,
        planar=plan.planar,
        fill_holes=plan.fill_holes,
        min_size=plan.min_size,
    )
    found = final(store)
    assert found.dtype == np.uint32
    assert found.max() > 10
    np.testing.assert_array_equal(found, expected)


def test_the_same_bytes_after_kills_and_with_other_blocks(tmp_path: Path) -> None:
    classes = classes_of()
    request = InstanceRequest(fill_holes=True, min_size=3)
    plan = plan_of(request)
    reference = begin(tmp_path / "reference.zarr", plan, classes)
    go_on(reference, plan)
    killed = begin(tmp_path / "killed.zarr", plan, classes)
    owners = 1
    while not go_on(killed, plan, most=11):
        owners += 1
    assert owners > 3
    large = plan_of(request, block=(16, 16, 48))
    other = begin(tmp_path / "large.zarr", large, classes)
    go_on(other, large)
    assert stored(killed) == stored(reference)
    assert stored(other) == stored(reference)


def test_merging_anew_from_another_output(tmp_path: Path) -> None:
    classes = classes_of()
    plan = plan_of(InstanceRequest())
    first = begin(tmp_path / "first.zarr", plan, classes)
    go_on(first, plan)
    again = plan_of(InstanceRequest(min_size=20))
    expected = begin(tmp_path / "expected.zarr", again, classes)
    go_on(expected, again)
    merged = InstancePlan.from_dict({**again.to_dict(), "source": first.url})
    other = Store(tmp_path / "other.zarr")
    begin_merge(other)
    assert go_on(other, merged)
    assert stored(other) == stored(expected)
    assert final(other).max() < final(first).max()


def write_probabilities(store: Store, probabilities: NDArray[np.uint8]) -> None:
    """(class, z, y, x) of 255, as `predict` leaves them."""
    create_multiscale(
        store.child("probabilities"),
        kind="image",
        axes="czyx",
        leading=(len(probabilities),),
        levels=only_level(SHAPE),
        dtype=np.dtype(np.uint8),
        chunk=CHUNK,
        shard=SHARD,
        voxel_size=(2.0, 1.0, 1.0),
        origin=(0.0,) * 3,
        unit="micrometer",
        name="probabilities",
    )
    write_box(open_for_writing(store, "probabilities/0"), Box.of_shape(SHAPE), probabilities)


@pytest.mark.parametrize(
    "request_",
    [
        InstanceRequest(fill_holes=True, connect="2d"),
        InstanceRequest(threshold=0.3),
        InstanceRequest(method="watershed", threshold=0.3),
        InstanceRequest(method="watershed", threshold=0.3, foreground=(2,)),
    ],
)
def test_objects_have_the_class_that_they_were_made_of(tmp_path: Path, request_: InstanceRequest) -> None:
    """Also where the network calls most of their voxels background."""
    classes = np.zeros(SHAPE, np.uint8)
    classes[4, 4:26, 2:24] = 2
    classes[4, 5:25, 3:23] = 0  # a hole larger than its wall
    probabilities = np.zeros((len(NAMES), *SHAPE), np.uint8)
    probabilities[:, 4, 4:26, 2:24] = np.array([125, 40, 90], np.uint8)[:, None, None]
    plan = plan_of(request_)
    store = begin(tmp_path / "labels.zarr", plan, classes)
    write_probabilities(store, probabilities)
    assert go_on(store, plan)
    table = ObjectTable.open(store, "f" * 16)
    assert table is not None
    assert table.select(None).select(["class", "voxels"]).to_pylist() == [{"class": 2, "voxels": 22 * 22}]


def test_damage_to_what_blocks_left_is_found(tmp_path: Path) -> None:
    plan = plan_of(InstanceRequest())
    store = begin(tmp_path / "labels.zarr", plan, classes_of())
    go_on(store, plan)
    for stage in plan.stages:
        digests = Ledger(store, stage.name, stage.count).part(0).digest
        for index in range(stage.count):
            verify_block(store, stage, index, f"{digests[index]:016x}")
    for key, name in (("evidence/faces/000000/3", "label"), ("evidence/seams/000000/3", "seams")):
        stage = next(s for s in plan.stages if s.name == name)
        digest = f"{Ledger(store, name, stage.count).part(0).digest[3]:016x}"
        store.write(key, b"damaged")
        with pytest.raises(DataError, match="not those that were committed"):
            verify_block(store, stage, 3, digest)
    merge = next(s for s in plan.stages if s.name == MERGE)
    store.delete(["evidence/ids/000000/0"])
    with pytest.raises(DataError, match="not those that were committed"):
        verify_block(store, merge, 0, f"{Ledger(store, MERGE, 1).part(0).digest[0]:016x}")
    with hold(store) as lease, pytest.raises(DataError, match="evidence/faces/000000/3"):
        worker_of(store, plan, lease.epoch).do("seams", 3)


def test_what_cannot_be_is_refused_with_what_could() -> None:
    with pytest.raises(InputError, match="2 \\(nucleus\\)"):
        plan_of(InstanceRequest(foreground=(3,)))
    with pytest.raises(InputError, match="twice"):
        plan_of(InstanceRequest(foreground=(1, 1)))
    with pytest.raises(InputError, match="probability"):
        plan_of(InstanceRequest(threshold=1.5))


def test_blocks_grow_where_shards_are_thin() -> None:
    assert block_of((256, 256, 256), (1000, 1000, 1000)) == (256, 256, 256)
    assert block_of((1, 2048, 2048), (100, 4000, 4000)) == (4, 2048, 2048)
    assert block_of((64, 64, 64), (64, 64, 500)) == (64, 64, 512)


def test_a_plan_survives_json() -> None:
    import json

    plan = plan_of(InstanceRequest(threshold=0.25, connect="2d"), roi=Box((1, 2, 3), (4, 5, 6)))
    assert InstancePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
