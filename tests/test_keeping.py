"""Skipping what is empty: kept voxels are as without a mask, all others background, whatever the tiles."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import skimage.measure
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import complete, save_random_model
from strategies import SEEDS, random_network, random_voxels, write_array

from flows.config import SegmentConfig
from flows.segment import plan as plan_command
from flows.summary.plan import plan_document
from unet_core.architecture import UNetSpec
from unet_core.errors import DataError, InputError
from unet_core.geometry import Box, Shape
from unet_core.inference import Predictor, compute_block, read_block
from unet_core.instances import InstanceRequest
from unet_core.keeping import LEFT_OUT, Keeper, KeepPlan, KeepRequest, leave_out, plan_keep, tiles_kept
from unet_core.keeping.grids import by_size, likeliest, steps_that_give
from unet_core.ledger import Ledger, hold
from unet_core.metadata import PyramidLevel
from unet_core.normalisation import Scale
from unet_core.segmentation import SegmentPlan
from unet_core.tiling import Footprint, Tiling
from unet_core.verification import RunOnDisk, verify_block
from unet_core.volumes import Store, Volume, create_multiscale, open_for_writing, write_box

NETWORKS = {
    ndim: random_network(
        UNetSpec.build(ndim=ndim, depth=1, base=2, classes=3, norm="none", in_channels=1), seed=3
    )
    for ndim in (2, 3)
}


def coarser(shape: Shape, steps: Shape) -> Shape:
    return tuple(-(-n // s) for n, s in zip(shape, steps))


def spread_out(cells: NDArray[Any], steps: Shape, shape: Shape) -> NDArray[Any]:
    """Cell m over the voxels [m * step, (m + 1) * step), by numpy alone."""
    for axis, step in enumerate(steps):
        cells = np.repeat(cells, step, axis=axis)
    return cells[tuple(slice(n) for n in shape)]


def dilated(cells: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    padded = np.pad(cells, margin)
    shifts = product(range(2 * margin + 1), repeat=3)
    views = [padded[tuple(slice(s, s + n) for s, n in zip(shift, cells.shape))] for shift in shifts]
    return np.logical_or.reduce(views)


def pyramid(
    to: Path | str, data: NDArray[Any], steps: tuple[Shape, ...] = (), *, unit: str | None = "micrometer"
) -> Volume:
    """(z, y, x) as an OME-Zarr image; coarser levels are means over the given steps, odd ends repeated."""
    levels = [PyramidLevel(0, data.shape, (1, 1, 1))]
    levels += [PyramidLevel(i, coarser(data.shape, s), s) for i, s in enumerate(steps, 1)]
    store = Store(to)
    create_multiscale(
        store,
        kind="image",
        axes="zyx",
        leading=(),
        levels=levels,
        dtype=data.dtype,
        chunk=(8, 8, 8),
        shard=(8, 8, 8),
        voxel_size=(2.0, 0.5, 0.5),
        origin=(0.0,) * 3,
        unit=unit,
        name="image",
    )
    for level in levels:
        box = Box.of_shape(level.shape)
        write_box(open_for_writing(store, str(level.index)), box, mean_of(data, level.factors))
    return Volume.open(str(to))


def mean_of(data: NDArray[Any], steps: Shape) -> NDArray[Any]:
    padded = np.pad(data, [(0, -n % s) for n, s in zip(data.shape, steps)], mode="edge")
    cells = padded.reshape([n for m, s in zip(padded.shape, steps) for n in (m // s, s)])
    return cells.mean(axis=(1, 3, 5)).astype(data.dtype)


def tiling_of(shape: Shape, ndim: int, draw: Any) -> Tiling:
    flat = (1,) * (3 - ndim)
    multiples = st.sampled_from([1, 2, 3])
    tile = (*flat, *(4 * draw(multiples) for _ in range(ndim)))
    block = tuple(t * draw(st.sampled_from([1, 2])) for t in tile)
    corner = tuple(draw(st.integers(0, n - 1)) for n in shape)
    roi = Box(corner, tuple(draw(st.integers(a + 1, n)) for a, n in zip(corner, shape)))
    footprint = Footprint.of(NETWORKS[ndim].spec)
    return Tiling(volume=shape, roi=roi, footprint=footprint, tile=tile, chunk=tile, shard=tile, block=block)


def results(image: Volume, tiling: Tiling, ndim: int, keeper: Keeper | None) -> list[NDArray[np.uint8]]:
    """Classes and probabilities of the whole volume, block by block; 0 outside the ROI."""
    predictor = Predictor(NETWORKS[ndim], scale=Scale((0.0,), (255.0,)), device="cpu")
    classes = np.zeros(image.shape, np.uint8)
    chances = np.zeros((3, *image.shape), np.uint8)
    for index in range(len(tiling.blocks)):
        kept = None if keeper is None else keeper.of(tiling.block_box(index))
        tiles = None if kept is None else tiles_kept(tiling, index, kept)
        source = read_block(image, tiling, index, tiles=tiles)
        block = compute_block(source, tiling, predictor, probabilities=True)
        assert block.probabilities is not None
        if kept is not None:
            leave_out(kept, block.classes, block.probabilities, value=0)
        classes[block.box.slices] = block.classes
        chances[(slice(None), *block.box.slices)] = block.probabilities
    return [classes, chances]


@settings(max_examples=12, deadline=None)
@given(st.data(), st.sampled_from([2, 3]), SEEDS)
def test_kept_voxels_are_as_without_a_mask_and_all_others_background(
    data: st.DataObject, ndim: int, seed: int
) -> None:
    draw = data.draw
    sides = st.integers(3, 20)
    shape = (draw(st.integers(1, 2)) if ndim == 2 else draw(sides), draw(sides), draw(sides))
    rng = np.random.default_rng(seed)
    steps = tuple(draw(st.sampled_from([1, 2, 4])) for _ in range(3))
    cells = rng.random(coarser(shape, steps)) < draw(st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    voxels = random_voxels(shape, np.uint8, seed)
    low, margin = tuple(draw(st.sampled_from([1, 2])) for _ in range(3)), draw(st.integers(0, 2))
    limit = draw(st.sampled_from([90, 140, 200]))
    which = draw(st.sampled_from(["mask", "below", "both"]))
    with TemporaryDirectory() as folder:
        image = pyramid(f"{folder}/image.zarr", voxels, (low,))
        pyramid(f"{folder}/mask.zarr", np.zeros(shape, np.uint16), (steps,))
        zarr.open_array(f"{folder}/mask.zarr/1")[:] = cells * rng.integers(1, 9, cells.shape)
        request = KeepRequest(
            mask=f"{folder}/mask.zarr" if which != "below" else None,
            mask_level=1,
            below=limit if which != "mask" else None,
            level=1,
            margin=margin,
        )
        keeper = Keeper.open(plan_keep(request, image, 0), image)
        kept = np.ones(shape, bool)
        if which != "below":
            kept &= spread_out(cells, steps, shape)
        if which != "mask":
            kept &= spread_out(dilated(mean_of(voxels, low) > limit, margin), low, shape)
        np.testing.assert_array_equal(keeper.of(image.box), kept)
        tiling = tiling_of(shape, ndim, draw)
        for found, whole in zip(results(image, tiling, ndim, keeper), results(image, tiling, ndim, None)):
            np.testing.assert_array_equal(found, np.where(kept, whole, 0))


SHAPE, TILE = (16, 72, 76), (16, 16, 16)  # four blocks


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a volume with a pyramid, a coarse mask over part of it."""
    root = tmp_path_factory.mktemp("keeping")
    voxels = random_voxels(SHAPE, np.uint8, 0) // 4
    voxels[:, 20:30, 10:20] += 150
    pyramid(root / "volume.zarr", voxels, ((2, 2, 2), (4, 4, 4)))
    save_random_model(root / "model", UNetSpec.build(ndim=3, depth=1, base=4, classes=3), seed=1)
    cells = np.zeros((4, 18, 19), np.uint8)
    cells[1:3, 4:12, 1:14] = 7
    cells[2, 6, 3:5] = 0
    write_array(root / "mask.zarr", cells, axes="zyx")
    complete(root, str(root / "whole.zarr"), tile=TILE, probabilities=True)
    return root


def kept_by_mask(work: Path) -> NDArray[np.bool_]:
    return spread_out(zarr.open_array(work / "mask.zarr", mode="r")[:] != 0, (4, 4, 4), SHAPE)


def stored(output: Path | str, path: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(f"{output}/{path}", mode="r")[:])


def sound(output: Path) -> None:
    """Every block reads back as it was committed."""
    run = RunOnDisk.open(Store(output))
    for stage in run.stages:
        part = run.ledger(stage.name).part(0)
        assert part.done.all()
        for index in range(stage.count):
            verify_block(run.store, stage, index, f"{part.digest[index]:016x}")


def test_a_run_with_a_mask_is_the_run_without_one_where_it_keeps(work: Path, tmp_path: Path) -> None:
    keep = KeepRequest(mask=str(work / "mask.zarr"))
    plan = complete(work, str(tmp_path / "kept.zarr"), tile=TILE, probabilities=True, keep=keep)
    assert SegmentPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    kept = kept_by_mask(work)
    for path in ("0", "probabilities/0"):
        expected = np.where(kept, stored(work / "whole.zarr", path), 0)
        np.testing.assert_array_equal(stored(tmp_path / "kept.zarr", path), expected)
    sound(tmp_path / "kept.zarr")
    count = len(plan.tiling.blocks)
    entries = Ledger(Store(tmp_path / "kept.zarr"), "predict", count).read()
    assert entries.empty == sum(not kept[plan.tiling.block_box(i).slices].any() for i in range(count))
    assert 0 < entries.empty < count
    # Stopped now and then, with the seals of new owners between.
    resumed = tmp_path / "resumed.zarr"
    for most in (2, 10**9):
        complete(work, str(resumed), tile=TILE, probabilities=True, keep=keep, most=most)
    np.testing.assert_array_equal(stored(resumed, "0"), stored(tmp_path / "kept.zarr", "0"))
    with hold(Store(resumed)) as lease:
        ledger = Ledger(Store(resumed), "predict", count, lease.epoch)
        ledger.seal()
        again = ledger.read()
    assert (again.empty, again.absent) == (entries.empty, 0)


def test_what_is_left_out_is_neither_read_nor_computed(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every chunk that no kept tile needs is damaged: a read of one would fail the block."""
    (tmp_path / "model").symlink_to(work / "model")
    voxels = zarr.open_array(work / "volume.zarr" / "0", mode="r")[:]
    image = pyramid(tmp_path / "volume.zarr", voxels)
    cells = np.zeros((4, 18, 19), bool)
    cells[0, 0, 0] = True
    write_array(tmp_path / "mask.zarr", cells, axes="zyx")
    keep = KeepRequest(mask=str(tmp_path / "mask.zarr"))
    needed = Footprint.of(UNetSpec.build(ndim=3, depth=1, base=4, classes=3)).upper
    damaged = 0
    for z, y, x in product(range(2), range(9), range(10)):
        if any(a >= 16 + n for a, n in zip((8 * z, 8 * y, 8 * x), needed)):
            chunk = tmp_path / "volume.zarr" / "0" / "c" / str(z) / str(y) / str(x)
            chunk.write_bytes(b"damaged")
            damaged += 1
    assert damaged > 100
    with pytest.raises(DataError):
        image.read(image.box)
    forwards: list[int] = []
    forward = Predictor.start
    monkeypatch.setattr(
        Predictor,
        "start",
        lambda self, *args, **options: (forwards.append(1), forward(self, *args, **options))[1],
    )
    instances = InstanceRequest(foreground=(0, 1, 2))
    to = str(tmp_path / "labels.zarr")
    complete(tmp_path, to, tile=TILE, keep=keep, instances=instances, normalisation="model")
    assert len(forwards) == 1
    found = stored(to, "0")
    assert found[:4, :4, :4].all()
    assert not found[4:].any()
    sound(Path(to))


def skimage_of(classes: NDArray[np.uint8], foreground: tuple[int, ...]) -> NDArray[Any]:
    values = np.zeros(classes.shape, np.uint8)
    for one in foreground:
        values[classes == one] = one + 1
    return np.asarray(skimage.measure.label(values, background=0, connectivity=1))


@pytest.mark.parametrize("threshold", [None, 0.4])
def test_instances_are_those_of_the_masked_classes(
    work: Path, tmp_path: Path, threshold: float | None
) -> None:
    """Also where class 0 is an object, as the inside of cells between boundaries."""
    keep = KeepRequest(mask=str(work / "mask.zarr"))
    foreground = (0, 2)
    options: dict[str, Any] = {"tile": TILE, "probabilities": True}
    to = tmp_path / "labels.zarr"
    request = InstanceRequest(foreground=foreground, threshold=threshold)
    complete(work, str(to), keep=keep, instances=request, **options)
    kept = kept_by_mask(work)
    classes = stored(work / "whole.zarr", "0")
    np.testing.assert_array_equal(stored(to, "classes/0"), np.where(kept, classes, LEFT_OUT))
    if threshold is not None:
        chances = stored(work / "whole.zarr", "probabilities/0")
        best = np.array(foreground, np.uint8)[chances[list(foreground)].argmax(axis=0)]
        sure = chances[list(foreground)].max(axis=0) >= np.ceil(threshold * 255)
        classes = np.where(sure, best, 255).astype(np.uint8)
    expected = skimage_of(np.where(kept, classes, 255).astype(np.uint8), foreground)
    assert expected.max() > 3
    np.testing.assert_array_equal(stored(to, "0"), expected)
    sound(to)


def test_holes_at_what_is_left_out_stay_open(work: Path, tmp_path: Path) -> None:
    """A mask's hole is not filled, nor background that it touches: nobody knows what encloses it there."""
    keep = KeepRequest(mask=str(work / "mask.zarr"))
    kept = kept_by_mask(work)
    request = InstanceRequest(foreground=(1, 2), fill_holes=True)
    to = tmp_path / "labels.zarr"
    complete(work, str(to), tile=TILE, keep=keep, instances=request)
    classes, found = stored(to, "classes/0"), stored(to, "0")
    assert not found[~kept].any()
    # By skimage: holes are background that touches one class alone, and neither face nor what is left out.
    holes = skimage.measure.label(classes == 0, connectivity=3)
    walls = np.where(classes == 0, -1, classes.astype(int))
    filled = classes.copy()
    for region in skimage.measure.regionprops(holes):
        own = np.pad(holes == region.label, 1)
        around = np.zeros_like(own)
        for axis, shift in product(range(3), (-1, 1)):
            around |= np.roll(own, shift, axis)
        touched = np.unique(np.pad(walls, 1, constant_values=LEFT_OUT)[around & ~own])
        if len(touched) == 1 and touched[0] != LEFT_OUT:
            filled[holes == region.label] = touched[0]
    assert (filled != classes).any()
    np.testing.assert_array_equal(found, skimage_of(filled, (1, 2)))


def test_watershed_leaves_out_the_same_voxels(work: Path, tmp_path: Path) -> None:
    keep = KeepRequest(below=100.0, margin=0, level=1)
    request = InstanceRequest(method="watershed", foreground=(0, 1))
    to = tmp_path / "labels.zarr"
    complete(work, str(to), tile=TILE, keep=keep, instances=request)
    kept = spread_out(stored(work / "volume.zarr", "1") > 100, (2, 2, 2), SHAPE)
    classes, found = stored(to, "classes/0"), stored(to, "0")
    np.testing.assert_array_equal(classes == LEFT_OUT, ~kept)
    np.testing.assert_array_equal(found > 0, kept & (classes <= 1))


def test_damage_to_the_mask_fails_the_block_that_needs_it(work: Path, tmp_path: Path) -> None:
    image = Volume.open(str(work / "volume.zarr"))
    cells = np.ones(SHAPE, np.uint8)
    write_array(tmp_path / "mask.zarr", cells, axes="zyx", chunks=(16, 20, 36))
    (tmp_path / "mask.zarr" / "c" / "0" / "1" / "0").write_bytes(b"damaged")
    keeper = Keeper.open(plan_keep(KeepRequest(mask=str(tmp_path / "mask.zarr")), image, 0), image)
    assert keeper.of(Box((0, 0, 0), (16, 20, 36))).all()
    with pytest.raises(DataError, match="c/0/1/0"):
        keeper.of(Box((0, 16, 0), (8, 24, 8)))


def test_voxels_that_are_no_number_are_kept(tmp_path: Path) -> None:
    data = np.zeros((4, 8, 8), np.float32)
    data[0, 0, 0] = np.nan
    image = pyramid(tmp_path / "image.zarr", data, ((2, 2, 2),))
    keeper = Keeper.open(plan_keep(KeepRequest(below=1.0, margin=0), image, 0), image)
    assert keeper.of(image.box).sum() == 8


@pytest.mark.parametrize(
    ("fine", "coarse", "expected"),
    [
        (1000, 500, 2),
        (1000, 250, 4),
        (1001, 501, 2),
        (1001, 500, 2),  # rounded down by others
        (1001, 126, 8),
        (37, 37, 1),
        (50, 1, 50),  # one plane for all
        (9, 3, 3),
        (1000, 9, None),  # 112 to 124, and no power of 2 alone
        (1000, 900, None),
        (10, 11, None),
    ],
)
def test_steps_of_a_grid(fine: int, coarse: int, expected: int | None) -> None:
    steps = steps_that_give(fine, coarse)
    assert (likeliest(steps, fine, coarse) if steps else None) == expected


def test_voxel_sizes_decide_what_shapes_do_not() -> None:
    steps = steps_that_give(9, 3)
    assert [by_size(steps, 9, 3, ratio) for ratio in (3.0, 4.0, 2.0)] == [3, 4, None]
    assert by_size(steps_that_give(1001, 501), 1001, 501, 1001 / 501) == 2


@given(st.integers(1, 400), st.integers(1, 40))
def test_the_true_step_is_always_among_those_found(length: int, step: int) -> None:
    step = min(step, length)
    assert step in steps_that_give(length, -(-length // step))


class TestRefusals:
    def plan(self, work: Path, **asked: Any) -> KeepPlan:
        return plan_keep(KeepRequest(**asked), Volume.open(str(work / "volume.zarr")), 0)

    @pytest.mark.parametrize("shape", [(16, 72, 77), (16, 72, 50), (7, 18, 19)])
    def test_a_mask_of_another_shape(self, work: Path, tmp_path: Path, shape: Shape) -> None:
        write_array(tmp_path / "mask.zarr", np.ones(shape, np.uint8), axes="zyx")
        with pytest.raises(InputError, match="does not cover") as error:
            self.plan(work, mask=str(tmp_path / "mask.zarr"))
        assert "16×72×76" in str(error.value)
        assert "×".join(map(str, shape)) in str(error.value)

    def test_a_mask_whose_step_cannot_be_told(self, work: Path, tmp_path: Path) -> None:
        write_array(tmp_path / "mask.zarr", np.ones((16, 5, 76), np.uint8), axes="zyx")  # or 15, or 17
        found = self.plan(work, mask=str(tmp_path / "mask.zarr")).mask
        assert found is not None
        assert found.factors == (1, 16, 1)
        write_array(tmp_path / "other.zarr", np.ones((16, 72, 6), np.uint8), axes="zyx")
        with pytest.raises(InputError, match=r"(?s)cannot be told.*13 to 15"):
            self.plan(work, mask=str(tmp_path / "other.zarr"))

    def test_voxel_sizes_that_disagree(self, work: Path, tmp_path: Path) -> None:
        pyramid(tmp_path / "mask.zarr", np.ones((8, 36, 38), np.uint8))  # the voxel size of the image itself
        with pytest.raises(InputError, match=r"(?s)disagree.*2×2×2 times"):
            self.plan(work, mask=str(tmp_path / "mask.zarr"))

    def test_levels_margins_and_intensities_that_are_none(self, work: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such pyramid level"):
            self.plan(work, mask=str(work / "volume.zarr"), mask_level=3)
        with pytest.raises(InputError, match="no such pyramid level"):
            self.plan(work, below=1.0, level=3)
        with pytest.raises(InputError, match="negative"):
            self.plan(work, below=1.0, margin=-1)
        with pytest.raises(InputError, match="not an intensity"):
            self.plan(work, below=float("nan"))
        image = Volume.open(str(work / "volume.zarr"), level=1)
        with pytest.raises(InputError, match="finer than the level"):
            plan_keep(KeepRequest(below=1.0, level=0), image, 1)

    def test_a_threshold_without_a_pyramid(self, tmp_path: Path) -> None:
        image = pyramid(tmp_path / "image.zarr", np.ones((4, 8, 8), np.uint8))
        with pytest.raises(InputError, match=r"(?s)no coarser level.*--skip-level 0"):
            plan_keep(KeepRequest(below=1.0), image, 0)
        assert plan_keep(KeepRequest(below=1.0, level=0), image, 0).below is not None

    def test_another_mask_when_it_goes_on(self, work: Path, tmp_path: Path) -> None:
        to = str(tmp_path / "labels.zarr")
        mask = tmp_path / "mask.zarr"
        write_array(mask, np.ones((4, 18, 19), np.uint8), axes="zyx")
        complete(work, to, tile=TILE, keep=KeepRequest(mask=str(mask)), most=1)
        for other in (None, KeepRequest(mask=str(work / "mask.zarr")), KeepRequest(below=4.0)):
            with pytest.raises(InputError, match="begun with another mask"):
                complete(work, to, tile=TILE, keep=other, most=0)
        zarr.open_array(mask)[:] = 0
        with pytest.raises(InputError, match="what it holds has changed"):
            complete(work, to, tile=TILE, keep=KeepRequest(mask=str(mask)), most=0)
        with pytest.raises(InputError, match=r"(?s)begun with another mask.*expected: *no mask"):
            complete(
                work,
                str(work / "whole.zarr"),
                tile=TILE,
                probabilities=True,
                keep=KeepRequest(mask=str(mask)),
            )

    def test_options_that_say_nothing_alone(self, work: Path, tmp_path: Path) -> None:
        common = {"volume": "v", "model": "m", "to": "t"}
        for option, without in (("mask_level", "--mask"), ("skip_level", "--skip-below")):
            with pytest.raises(InputError, match=f"says nothing without {without}"):
                plan_command(SegmentConfig(**common, **{option: 1}))


def test_the_default_level_is_the_coarsest_of_at_most_8_voxels(tmp_path: Path) -> None:
    steps = ((1, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16))
    image = pyramid(tmp_path / "image.zarr", np.ones((16, 64, 64), np.uint8), steps)
    found = plan_keep(KeepRequest(below=0.0), image, 0).below
    assert found is not None
    assert (found.level, found.factors) == (3, (4, 8, 8))
    at_level = plan_keep(KeepRequest(below=0.0), Volume.open(image.url, level=2), 2).below
    assert at_level is not None
    assert (at_level.level, at_level.factors) == (4, (4, 4, 4))


def test_the_plan_says_how_much_is_kept(work: Path, tmp_path: Path) -> None:
    config = SegmentConfig(
        volume=str(work / "volume.zarr"),
        model=str(work / "model"),
        to=str(tmp_path / "labels.zarr"),
        tile="16,16,16",
        mask=str(work / "mask.zarr"),
    )
    keep = plan_document(plan_command(config), workers=1)["keep"]
    assert keep["share_of_voxels"] == pytest.approx(kept_by_mask(work).mean(), abs=1e-4)
    assert 0 < keep["share_of_tiles"] < 1
    assert keep["mask"]["factors"] == (4, 4, 4)
    assert not keep["estimate"]
