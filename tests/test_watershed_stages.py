"""The watershed on stores: what memory gives, whatever the blocks; merged anew; refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from test_instances import SHAPE, begin, final, go_on, measured, stored, write_probabilities

from unet_core.errors import InputError, StoreError
from unet_core.geometry import Box
from unet_core.instances import InstancePlan, InstanceRequest, needs, plan_instances, require_merge
from unet_core.instances.watershed import stages
from unet_core.instances.watershed.in_memory import label_basins
from unet_core.volumes import Store

SHARD = (8, 16, 16)
VOXEL = (2.0, 1.0, 1.0)
BOUNDARY = ("background", "interior", "boundary")


def plan_of(target: str = "foreground", **options: Any) -> InstancePlan:
    names = ("background", "foreground") if target == "foreground" else BOUNDARY
    places = {n: options.pop(n) for n in ("roi", "block") if n in options}
    request = InstanceRequest(method="watershed", **{"radius": 6, **options})
    values = {"roi": Box.of_shape(SHAPE), "block": SHARD, **places}
    return measured(
        plan_instances(
            request, classes=names, target=target, volume=SHAPE, shard=SHARD, voxel_size=VOXEL, **values
        )
    )


def answer(classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A network's: probabilities times 255, (class, z, y, x), and the most likely classes."""
    rng = np.random.default_rng(5)
    noise = np.stack([ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5) for _ in range(classes)])
    odds = np.exp(60 * noise)
    p = np.rint(255 * odds / odds.sum(0)).astype(np.uint8)
    return p, odds.argmax(0).astype(np.uint8)


def start(folder: Path | str, plan: InstancePlan, classes: int = 2) -> Store:
    """An output in which `predict` is done."""
    p, labels = answer(classes)
    store = begin(folder, plan, labels)
    write_probabilities(store, p)
    return store


def expected(plan: InstancePlan, classes: int = 2, **changes: Any) -> NDArray[Any]:
    """Of the ROI as an array of its own."""
    assert plan.watershed is not None
    p, labels = answer(classes)
    inside = p[1][plan.roi.slices]
    mask = labels[plan.roi.slices] > 0
    if plan.threshold is not None:
        mask = inside >= np.ceil(plan.threshold * 255)
    found = np.zeros(SHAPE, np.uint32)
    options = {"connectivity": plan.connectivity, "planar": plan.planar, "min_size": plan.min_size, **changes}
    criterion = options.pop("criterion", plan.watershed.criterion)
    found[plan.roi.slices] = label_basins(plan.watershed.heights.of(inside, mask), criterion, **options)
    return found


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        (2, {"min_size": 20}),
        (2, {"threshold": 0.4, "connectivity": "full", "block": (16, 48, 16)}),
        (3, {"target": "interior-boundary", "roi": Box((3, 5, 1), (14, 30, 25))}),
        (2, {"connect": "2d"}),
    ],
)
def test_stores_hold_what_memory_gives(tmp_path: Path, classes: int, options: dict[str, Any]) -> None:
    plan = plan_of(**options)
    store = start(tmp_path / "labels.zarr", plan, classes)
    assert go_on(store, plan)
    found = final(store)
    assert found.max() > 8
    np.testing.assert_array_equal(found, expected(plan, classes))


def test_the_same_bytes_after_kills(tmp_path: Path) -> None:
    plan = plan_of()
    reference = start(tmp_path / "reference.zarr", plan)
    go_on(reference, plan)
    killed = start(tmp_path / "killed.zarr", plan)
    while not go_on(killed, plan, most=23):
        pass
    assert stored(killed) == stored(reference)


def test_merged_anew_by_other_numbers(tmp_path: Path) -> None:
    plan = plan_of(persistence=0.3)
    assert plan.watershed is not None
    store = start(tmp_path / "labels.zarr", plan)
    go_on(store, plan)
    before = final(store)
    finer = plan.watershed.with_thresholds(persistence=0.15, prominence=None)
    again = InstancePlan.from_dict(
        {**plan.to_dict(), "watershed": finer.to_dict(), "min_size": 30, "source": store.url}
    )
    other = Store(tmp_path / "other.zarr")
    stages_left = [stage.name for stage in again.stages]
    assert stages_left == ["merge", "relabel", "table"]
    from unet_core.instances import begin_merge

    begin_merge(other)
    assert go_on(other, again)
    np.testing.assert_array_equal(final(other), expected(again))
    assert final(other).max() != before.max()
    with pytest.raises(InputError, match="already merged more"):
        plan.watershed.with_thresholds(persistence=0.14, prominence=None)


def test_a_plan_survives_json_and_says_what_decides() -> None:
    plan = plan_of("boundary")
    assert InstancePlan.from_dict(plan.to_dict()) == plan
    assert plan.watershed is not None
    assert plan.watershed.boundary == (1,)
    assert plan.watershed.persistence > plan_of().watershed.persistence  # type: ignore[union-attr]
    assert plan.identity != plan_of("boundary", persistence=0.2).identity
    label = plan.stages[0]
    assert label.margin == (4, 7, 7)


@pytest.mark.parametrize(
    "request_",
    [
        InstanceRequest(persistence=0.2),
        InstanceRequest(method="watershed", fill_holes=True),
        InstanceRequest(method="watershed", prominence=2),
        InstanceRequest(method="watershed", radius=10**6),
    ],
)
def test_options_that_do_not_fit_are_refused(request_: InstanceRequest) -> None:
    with pytest.raises(InputError):
        plan_instances(
            request_,
            classes=("background", "foreground"),
            target="foreground",
            volume=SHAPE,
            roi=Box.of_shape(SHAPE),
            shard=SHARD,
        )


def test_a_merge_that_cannot_fit_is_refused_before_anything_runs() -> None:
    shape = (200_000, 100_000, 20_000)
    large = plan_instances(
        InstanceRequest(method="watershed"),
        classes=("background", "foreground"),
        target="foreground",
        volume=shape,
        roi=Box.of_shape(shape),
        shard=(256, 256, 256),
        block=(512, 512, 512),
    )
    require_merge(large, available=2**41)
    with pytest.raises(InputError, match=r"(?s)merge would not fit.*--block"):
        require_merge(large, available=2**36)
    require_merge(replace(large, block=(1024, 1024, 1024)), available=2**36)
    with pytest.raises(InputError, match="4,294,967,295 basins at most"):
        require_merge(replace(large, block=(128, 128, 128)), available=2**60)


def test_a_merge_that_does_not_fit_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of()
    assert needs.merge_bytes(plan, 2 * 10**6) > needs.merge_bytes(plan, 10**6) > 2**30
    assert needs.scratch_bytes(plan, needs.basins_at_most(plan)) > 0
    store = start(tmp_path / "labels.zarr", plan)
    monkeypatch.setattr(stages, "NODE_BYTES", 2**40)
    with pytest.raises(StoreError, match="does not fit in memory"):
        go_on(store, plan)
