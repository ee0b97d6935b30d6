"""Whatever is done to an output's bytes is found, and repaired by doing those blocks again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pipeline
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from pipeline import save_random_model

from flows.cluster import open_client
from flows.config import Local
from flows.inspection import clean, status, verify
from unet_core.architecture import UNetSpec
from unet_core.errors import InputError, StoreError
from unet_core.geometry import Box
from unet_core.ledger import Failure, Ledger, Quarantine, RunRecord, begin, hold, read_status
from unet_core.metadata import PyramidLevel
from unet_core.pyramid import PyramidPlan
from unet_core.segmentation import pyramid_block
from unet_core.verification import RunOnDisk, stages_of
from unet_core.volumes import Store

SHAPE = (20, 150, 70)
TILE = (8, 16, 16)


def complete(root: Path, to: Path) -> None:
    pipeline.complete(root, str(to), tile=TILE, probabilities=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a volume, a model and a complete output of several blocks and levels."""
    root = tmp_path_factory.mktemp("made")
    image = np.random.default_rng(0).integers(0, 255, SHAPE, dtype="u1")
    zarr.create_array(root / "volume.zarr", data=image, chunks=(16, 32, 32), dimension_names=list("zyx"))
    save_random_model(root / "model", UNetSpec.build(ndim=3, depth=1, base=2, classes=3), seed=1)
    complete(root, root / "labels.zarr")
    return root


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "labels.zarr", tmp_path / "labels.zarr")


def voxels(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and "/c/" in str(path)
    }


def shard(output: Path, level: str = "0") -> Path:
    return sorted(path for path in (output / level / "c").rglob("*") if path.is_file())[0]


def test_an_untouched_output_is_sound(output: Path) -> None:
    found = verify(str(output))
    assert found.sound
    assert sum(found.checked.values()) > 3
    assert (found.status, found.problems, found.leftovers) == ("complete", [], [])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(bytes(data))


def zeros(path: Path) -> None:
    """What an XFS disk may hold after a power cut: the right length, and nothing in it."""
    path.write_bytes(bytes(path.stat().st_size))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip, zeros, truncate, Path.unlink, lambda p: p.write_bytes(b"")])
@pytest.mark.parametrize("array", ["0", "probabilities/0", "1"])
def test_damage_is_found_and_repaired(
    damage: Callable[[Path], object], array: str, output: Path, made: Path
) -> None:
    damage(shard(output, array))
    found = verify(str(output))
    assert not found.sound
    assert sum(found.damaged.values()) == 1
    assert not found.reopened, "looking changes nothing"
    stage = "pyramid-1" if array == "1" else "predict"
    assert found.damaged[stage] == 1
    assert found.problems[0]["stage"] == stage
    repaired = verify(str(output), repair=True)
    assert repaired.reopened[stage] == 1
    assert read_status(Store(output)) == {"status": "partial"}
    complete(made, output)
    assert voxels(output) == voxels(made / "labels.zarr")
    assert verify(str(output)).sound


def test_another_voxel_behind_good_checksums_is_found(output: Path) -> None:
    array = zarr.open_array(output / "0", mode="r+")
    array[3, 4, 5] = (array[3, 4, 5] + 1) % 3
    found = verify(str(output))
    assert found.damaged["predict"] == 1
    assert "not those that were committed" in found.problems[0]["error"]


def test_what_was_made_from_a_hole_is_done_again(output: Path, made: Path) -> None:
    """A block was lost in a power cut, and the pyramid was made before anybody noticed."""
    victim = shard(output)
    victim.unlink()
    with hold(Store(output)) as lease:
        plan = stages_of_pyramid(output)
        for level in plan.levels[1:]:
            for index in range(plan.count(level.index)):
                pyramid_block(str(output), plan, level.index, index, epoch=lease.epoch)
    assert voxels(output) != voxels(made / "labels.zarr")
    found = verify(str(output), repair=True)
    assert found.damaged["pyramid-1"] == 0, "it is what was committed"
    assert found.reopened["pyramid-1"] >= 1
    complete(made, output)
    assert voxels(output) == voxels(made / "labels.zarr")


def stages_of_pyramid(output: Path) -> PyramidPlan:
    from unet_core.ledger import read_record

    record = read_record(Store(output))
    assert record is not None
    return PyramidPlan.from_dict(record.plan["pyramid"])


def test_a_missing_array_is_found_and_made_again(output: Path, made: Path) -> None:
    shutil.rmtree(output / "1")
    found = verify(str(output), repair=True)
    assert "no array at 1" in found.problems[0]["error"]
    complete(made, output)
    assert voxels(output) == voxels(made / "labels.zarr")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_damaged_group_metadata_is_found_and_made_again(text: str, output: Path, made: Path) -> None:
    (output / "zarr.json").write_text(text)
    found = verify(str(output), repair=True)
    assert "zarr.json is damaged" in found.problems[0]["error"]
    complete(made, output)
    assert verify(str(output)).sound
    ours, whole = (zarr.open_group(path, mode="r").attrs["ome"] for path in (output, made / "labels.zarr"))
    assert ours["multiscales"] == whole["multiscales"]


def test_a_damaged_status_vouches_for_nothing(output: Path) -> None:
    (output / ".unet-flows" / "status.json").write_text("")
    assert "damaged" in status(str(output))["status"]
    assert not verify(str(output)).sound


def test_what_was_verified_before_it_was_finished_is_looked_at_again(output: Path, made: Path) -> None:
    """In one process, whose worker functions remember digests."""
    with hold(Store(output)) as lease:
        RunOnDisk.open(Store(output)).ledger("predict", epoch=lease.epoch).seal(without=[1])
    assert verify(str(output)).missing["predict"] == 1
    complete(made, output)
    assert verify(str(output)).sound


def test_repair_that_is_killed_leaves_nothing_made_from_a_hole(
    output: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(output).unlink()
    seal, calls = Ledger.seal, []

    def killed(ledger: Ledger, **options: object) -> object:
        calls.append(ledger.stage)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return seal(ledger, **options)

    monkeypatch.setattr(Ledger, "seal", killed)
    with pytest.raises(KeyboardInterrupt):
        verify(str(output), repair=True)
    monkeypatch.setattr(Ledger, "seal", seal)
    assert (
        status(str(output))["stages"]["pyramid-1"]["done"]
        < status(str(output))["stages"]["pyramid-1"]["total"]
    )
    assert verify(str(output), repair=True).reopened["predict"] == 1
    complete(made, output)
    assert voxels(output) == voxels(made / "labels.zarr")


def test_a_damaged_shard_that_an_roi_cuts_is_mended(made: Path, tmp_path: Path) -> None:
    to = tmp_path / "roi.zarr"
    cut = Box((1, 3, 2), (19, 140, 60))
    pipeline.complete(made, str(to), tile=TILE, roi=cut)
    whole = voxels(to)
    flip(shard(to))
    assert verify(str(to), repair=True).reopened["predict"] == 1
    pipeline.complete(made, str(to), tile=TILE, roi=cut)
    assert voxels(to) == whole


def test_a_complete_run_with_a_gap_is_not_sound(output: Path) -> None:
    with hold(Store(output)) as lease:
        count = status(str(output))["stages"]["predict"]["total"]
        Ledger(Store(output), "predict", count, lease.epoch).seal(without=[1])
    found = verify(str(output))
    assert found.missing["predict"] == 1
    assert not found.sound
    assert "the status is complete and blocks are missing" in found.problems[0]["error"]


def test_leftovers_are_listed_and_cleaned_and_nothing_else(output: Path) -> None:
    staging = output / "0" / "c" / "0" / "0" / "0#1"
    staging.write_bytes(b"half a shard")
    mine = output / "0" / "notes.txt"
    mine.write_bytes(b"mine")
    before = voxels(output)
    assert [Path(name).name for name in verify(str(output)).leftovers] == ["0#1"]
    quarantine = Quarantine(Store(output), "predict")
    quarantine.add(Failure(stage="predict", index=0, error="e", traceback="t", worker="w", attempts=3))
    removed = clean(str(output))
    assert (removed["leftovers_removed"], removed["failure_records_removed"]) == (1, 1)
    assert not staging.exists()
    assert mine.read_bytes() == b"mine"
    before.pop("0/c/0/0/0#1")
    assert voxels(output) == before
    assert verify(str(output)).sound


@pytest.mark.parametrize("command", [status, verify, clean])
def test_what_is_no_output_is_refused(command: Callable[[str], object], tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="no run of unet-flows is here"):
            command(str(folder))
    assert not (tmp_path / "absent").exists()
    begin(Store(tmp_path / "odd"), RunRecord("dance", {}, {}))
    with pytest.raises(InputError, match="not known"):
        command(str(tmp_path / "odd"))


@pytest.mark.parametrize("command", [verify, clean])
def test_an_output_at_work_is_left_alone(command: Callable[[str], object], output: Path) -> None:
    with hold(Store(output), every=0.05), pytest.raises(InputError, match="another run is at work"):
        command(str(output))


def test_status_says_who_is_at_work_and_how_far(output: Path) -> None:
    assert status(str(output))["held_by"] is None
    with hold(Store(output), every=3600) as lease:
        lease.report({"stage": "predict", "done": 1})
        lease.beat()
        document = status(str(output))
    assert "process" in document["held_by"]
    assert document["progress"] == {"stage": "predict", "done": 1}
    assert document["status"] == "complete"
    assert all(stage["done"] == stage["total"] for stage in document["stages"].values())


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    shard=st.tuples(*[st.sampled_from([4, 8, 16])] * 3),
    data=st.data(),
)
def test_every_voxel_of_every_level_has_one_block(
    shape: tuple[int, ...], shard: tuple[int, ...], data: st.DataObject
) -> None:
    """What `verify` reads is the whole extent, once."""
    factors = data.draw(st.tuples(*[st.sampled_from([1, 2])] * 3))
    coarse = tuple(-(-n // f) for n, f in zip(shape, factors))
    levels = (PyramidLevel(0, shape, (1, 1, 1)), PyramidLevel(1, coarse, factors))
    plan = PyramidPlan(levels=levels, shard=shard, method="mode", extent=Box.of_shape(shape), timepoints=2)
    seen = np.zeros((2, *coarse), np.uint8)
    (stage,) = plan.stages
    for index in range(stage.count):
        timepoint, box = stage.target(index)
        seen[(timepoint, *box.slices)] += 1
    assert (seen == 1).all()


def test_stages_of_a_record_are_the_plans(output: Path) -> None:
    from unet_core.ledger import read_record

    record = read_record(Store(output))
    assert record is not None
    names = [stage.name for stage in stages_of(record)]
    assert names[0] == "predict"
    assert names[1:] == [f"pyramid-{level}" for level in range(1, len(names))]


def test_workers_find_what_this_process_finds(output: Path) -> None:
    flip(shard(output))
    with open_client(Local(workers=1)) as client:
        assert verify(str(output), client=client) == verify(str(output))


def test_an_output_on_a_read_only_disk_can_be_verified(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("the file system is read-only")

    monkeypatch.setattr(Store, "create", refuse)
    assert verify(str(output)).sound
    with pytest.raises(StoreError, match="read-only"):
        verify(str(output), repair=True)
