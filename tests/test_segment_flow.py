"""The `segment` flow through Prefect and Dask: the same bytes whatever the blocks, workers and order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tensorstore
import zarr
from killing import dask_cluster
from ome_zarr_models.v05.image_label import ImageLabel
from pipeline import save_random_model

from flows import blocks, tasks
from flows.inspection import status, verify
from flows.segment import segment
from flows.stitch import stitch
from unet_core.architecture import UNetSpec
from unet_core.errors import InputError, RunError
from unet_core.geometry import Box
from unet_core.instances.foreground import by_class
from unet_core.instances.in_memory import label_components
from unet_core.ledger import Flags, hold, read_status
from unet_core.normalisation import Scale
from unet_core.query import Labels
from unet_core.verification import RunOnDisk
from unet_core.volumes import Store, Volume

pytestmark = pytest.mark.usefixtures("in_prefect")
SHAPE = (37, 70, 61)  # a multiple of nothing
TILE = "16,16,16"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small model, a volume with structure in it, and a cluster of two workers."""
    root = tmp_path_factory.mktemp("segment")
    rng = np.random.default_rng(0)
    image = rng.normal(120, 30, SHAPE)
    image[8:20, 20:50, 10:40] += 60
    zarr.create_array(
        root / "volume.zarr",
        data=image.clip(0, 255).astype("u1"),
        chunks=(16, 32, 32),
        dimension_names=list("zyx"),
    )
    save_random_model(root / "model", UNetSpec.build(ndim=3, depth=1, base=16, classes=3), seed=1)
    # Most runs share these workers: starting some for each would take most of the time.
    with dask_cluster(root, workers=2) as (_, file):
        file.rename(root / "cluster.toml")
        yield root


def run(work: Path, name: str, **options: Any) -> Path:
    output = work / name
    parameters = {"tile": TILE, "probabilities": True, **options}
    if "workers" not in options:
        parameters["cluster"] = str(work / "cluster.toml")
    result = segment(
        volume=str(work / "volume.zarr"), model=str(work / "model"), to=str(output), **parameters
    )
    assert result["status"] == "complete"
    return output


def chunks(output: Path) -> dict[str, str]:
    """Digest of every stored object that holds voxels or describes them."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
        and ".unet-flows" not in path.parts
        and path.parent != output
        and path != output / "probabilities" / "zarr.json"
    }


def backwards(done: Flags, *_: Any, **__: Any) -> Iterator[int]:
    return reversed(list(done.missing()))


@pytest.fixture(scope="module")
def reference(work: Path) -> Path:
    return run(work, "reference.zarr")


def test_same_bytes_whatever_the_workers_blocks_and_order(
    work: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = chunks(reference)
    assert sum(name.startswith("0/c/") for name in expected) > 1, "more than one shard"
    one_worker = run(work, "one.zarr", workers=1)  # the cluster has two
    large_blocks = run(work, "large.zarr", block="48,128,64")
    monkeypatch.setattr(blocks, "_order", backwards)
    middle_blocks_backwards = run(work, "backwards.zarr", block="96,64,128")
    for other in (one_worker, large_blocks, middle_blocks_backwards):
        assert chunks(other) == expected


def test_equals_the_whole_volume_in_one_pass(work: Path, reference: Path) -> None:
    import torch

    from unet_core.checkpoint import load_model
    from unet_core.ledger import read_record

    record = read_record(Store(reference))
    assert record is not None
    scale = Scale.from_dict(record.plan["scale"])
    image = zarr.open_array(work / "volume.zarr", mode="r")[:]
    network = load_model(str(work / "model")).network()
    lower, upper = network.spec.context
    write = tuple(-(-n // s) * s for n, s in zip(SHAPE, network.spec.stride))
    pad = [(a, w - n + b) for a, b, w, n in zip(lower, upper, write, SHAPE)]
    padded = np.pad(image, pad, mode="reflect")
    with torch.inference_mode():
        logits = network(torch.from_numpy(scale.apply(padded[None]))[None])[0].numpy()
    logits = logits[:, : SHAPE[0], : SHAPE[1], : SHAPE[2]]
    labels = zarr.open_array(reference / "0", mode="r")[:]
    best = np.sort(logits, axis=0)
    close = best[-1] - best[-2] < 2e-5 * np.abs(logits).max()
    assert ((logits.argmax(0) == labels) | close).all()
    assert len(np.unique(labels)) > 1
    p = np.exp(logits - logits.max(0))
    p /= p.sum(0)
    stored = zarr.open_array(reference / "probabilities" / "0", mode="r")[:]
    assert np.abs(stored / 255 - p).max() < 0.5 / 255 + 1e-4


def test_anyone_can_read_the_output(reference: Path) -> None:
    group = zarr.open_group(reference, mode="r")  # warnings are errors
    names = {name for name, _ in group.members(max_depth=None)}
    assert {"0", "probabilities", "probabilities/0"} <= names
    ImageLabel.from_zarr(group)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(reference / "0")}}
    by_tensorstore = tensorstore.open(spec, open=True, read=True).result().read().result()
    array = group["0"]
    assert isinstance(array, zarr.Array)
    assert array.shape == SHAPE
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(by_tensorstore, array[:])
    document = json.loads((reference / "0" / "zarr.json").read_text())
    assert "crc32c" in json.dumps(document["codecs"])


def test_the_same_command_again_skips_everything(work: Path, reference: Path) -> None:
    before = chunks(reference)
    result = segment(
        volume=str(work / "volume.zarr"),
        model=str(work / "model"),
        cluster=str(work / "cluster.toml"),
        to=str(reference),
        tile=TILE,
        probabilities=True,
    )
    assert all(s["done"] == 0 and s["skipped"] == s["total"] for s in result["stages"].values())
    assert chunks(reference) == before


def test_missing_blocks_are_done_again_with_the_same_bytes(work: Path, reference: Path) -> None:
    output = run(work, "lost.zarr")
    with hold(Store(output)) as lease:
        RunOnDisk.open(Store(output)).ledger("predict", epoch=lease.epoch).seal(without=[1])
    result = segment(
        volume=str(work / "volume.zarr"),
        model=str(work / "model"),
        cluster=str(work / "cluster.toml"),
        to=str(output),
        tile=TILE,
        probabilities=True,
    )
    assert result["stages"]["predict"]["done"] == 1
    assert chunks(output) == chunks(reference)


def test_instances_are_components_of_the_classes_and_can_be_merged_anew(work: Path, reference: Path) -> None:
    """Through Dask workers, with a pyramid; then by `stitch`, and damage found by `verify`."""
    options = {"instances": "components", "foreground": "0,2", "connectivity": "full", "fill_holes": True}
    options["block"] = "48,64,64"
    output = run(work, "instances.zarr", min_size=4, roi="0:37,3:70,0:61", **options)
    classes = zarr.open_array(output / "classes" / "0", mode="r")[:]
    np.testing.assert_array_equal(classes[:, 3:], zarr.open_array(reference / "0", mode="r")[:, 3:])
    values = by_class(classes[:, 3:], (0, 2))
    rules: dict[str, Any] = {"block": (64, 80, 64), "connectivity": "full", "fill_holes": True}
    found = zarr.open_array(output / "0", mode="r")[:]
    np.testing.assert_array_equal(found[:, 3:], label_components(values, min_size=4, **rules))
    assert found.dtype == np.uint32
    assert found.max() > 300
    ImageLabel.from_zarr(zarr.open_group(output, mode="r"))
    assert status(str(output))["status"] == "complete"
    other = work / "stitched.zarr"
    stitched = stitch(labels=str(output), to=str(other), min_size=1, cluster=str(work / "cluster.toml"))
    assert stitched["status"] == "complete"
    assert "predict" not in stitched["stages"]
    again = zarr.open_array(other / "0", mode="r")[:]
    np.testing.assert_array_equal(again[:, 3:], label_components(values, min_size=1, **rules))
    assert verify(str(other)).sound
    image = Volume.open(str(work / "volume.zarr")).read(Box.of_shape(found.shape))[0]
    for path, ids in ((output, found), (other, again)):
        labels = Labels.open(str(path))
        assert labels.info()["objects"] == ids.max()
        largest = labels.objects(sort="-voxels", limit=1).to_pylist()[0]
        inside = ids == largest["id"]
        assert largest["voxels"] == inside.sum() == np.bincount(ids[ids > 0]).max()
        assert largest["mean_0"] == pytest.approx(image[inside].mean())
        assert labels.at(np.argwhere(inside)[0].tolist()) == largest["id"]
    (output / "evidence" / "seams" / "000000" / "1").unlink()
    checked = verify(str(output), repair=True)
    assert checked.damaged["seams"] == 1
    assert checked.reopened["merge"] == 1
    before = chunks(output)
    with pytest.raises(InputError, match="not complete"):
        stitch(labels=str(output), to=str(work / "never.zarr"), workers=1)
    run(work, "instances.zarr", min_size=4, roi="0:37,3:70,0:61", **options)
    assert before.items() <= chunks(output).items()
    with pytest.raises(InputError, match="begun with instances"):
        run(work, "instances.zarr", roi="0:37,3:70,0:61")
    moved = output.rename(work / "moved.zarr")
    with pytest.raises(InputError, match="elsewhere when this merge began"):
        stitch(labels=str(moved), to=str(other), min_size=1, workers=1)
    record = json.loads((moved / ".unet-flows" / "run.json").read_text())
    record["identity"]["volume"]["content"][0] = "of another image"
    (moved / ".unet-flows" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="not the one that was segmented"):
        stitch(labels=str(moved), to=str(work / "never.zarr"), workers=1)
    with pytest.raises(InputError, match="none are asked for"):
        run(work, "never.zarr", min_size=4)


def test_roi_keeps_the_shape_and_the_voxels_of_the_whole(work: Path, reference: Path) -> None:
    output = run(work, "roi.zarr", roi="5:30,11:47,3:60")
    whole = zarr.open_array(reference / "0", mode="r")[:]
    part = zarr.open_array(output / "0", mode="r")[:]
    inside = np.zeros(SHAPE, bool)
    inside[5:30, 11:47, 3:60] = True
    np.testing.assert_array_equal(part[inside], whole[inside])
    assert not part[~inside].any()


def test_a_failing_block_fails_the_run_by_name_and_the_rest_is_done(work: Path) -> None:
    image = np.random.default_rng(0).random((16, 200, 40), np.float32)
    source = zarr.create_array(work / "float.zarr", data=image, chunks=(16, 16, 16))
    output = work / "nan.zarr"
    original = tasks.start

    def spoil(*arguments: Any) -> None:
        """The voxel turns bad after the plan and the intensity scale have looked at the volume."""
        original(*arguments)
        source[8, 190, 20] = np.nan

    parameters = {"volume": str(work / "float.zarr"), "model": str(work / "model"), "to": str(output)}
    parameters["cluster"] = str(work / "cluster.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "start", spoil)
        with pytest.raises(RunError, match="NaN or infinite intensity"):
            segment(**parameters, tile=TILE)
    status = read_status(Store(output))
    assert status is not None
    assert status["status"] == "failed"
    predict = status["stages"]["predict"]
    assert predict["total"] == 2
    assert len(predict["failed"]) == 1
    assert "(8, 190, 20)" in predict["failed"][0]["error"]
    assert predict["done"] == predict["total"] - 1
    with pytest.raises(InputError, match="not complete"):
        segment(volume=str(output), model=str(work / "model"), to=str(work / "next.zarr"))
    source[8, 190, 20] = 0.5
    again = segment(**parameters, tile=TILE)
    assert again["stages"]["predict"]["done"] == 1


def test_workers_listen_on_loopback_only(work: Path) -> None:
    from flows.cluster import open_client
    from flows.config import Local

    with open_client(Local(workers=1)) as client:
        pids = {psutil.Process().pid, *client.run(lambda: psutil.Process().pid).values()}
        addresses = {
            connection.laddr.ip
            for connection in psutil.net_connections(kind="tcp")
            if connection.pid in pids and connection.status == psutil.CONN_LISTEN
        }
    assert addresses == {"127.0.0.1"}


# --- what goes wrong with a block's input ------------------------------------------------------------------


@pytest.fixture
def planes(work: Path, tmp_path: Path) -> Path:
    """A volume of one chunk per block of 16 planes; sampling looks at all its chunks but one."""
    image = np.random.default_rng(0).integers(0, 255, (16 * 40, 16, 16), dtype="u1")
    zarr.create_array(tmp_path / "volume.zarr", data=image, chunks=(16, 16, 16), dimension_names=list("zyx"))
    return tmp_path


def test_a_corrupt_chunk_is_set_aside_and_a_missing_one_is_counted(work: Path, planes: Path) -> None:
    parameters: dict[str, Any] = {
        "volume": str(planes / "volume.zarr"),
        "model": str(work / "model"),
        "cluster": str(work / "cluster.toml"),
        "tile": TILE,
        "normalisation": "model",
    }
    (planes / "volume.zarr" / "c" / "9" / "0" / "0").unlink()
    reference = segment(to=str(planes / "reference.zarr"), **parameters)
    assert reference["stages"]["predict"]["absent_chunks"] == 1, "neighbours read it too, as context"
    corrupt = planes / "volume.zarr" / "c" / "6" / "0" / "0"
    kept = corrupt.read_bytes()
    corrupt.write_bytes(b"not a chunk")
    with pytest.raises(RunError) as failed:
        segment(to=str(planes / "labels.zarr"), **parameters)
    assert "c/6/0/0" in str(failed.value)
    document = failed.value.document
    stage = document["stages"]["predict"]
    assert document["status"] == "failed"
    assert len(stage["failed"]) >= 1
    assert stage["done"] == stage["total"] - len(stage["failed"])
    there = status(str(planes / "labels.zarr"))
    assert there["status"] == "failed"
    assert [failure["index"] for failure in there["failed"]] == [f["block"] for f in stage["failed"]]
    assert "Traceback" in there["failed"][0]["traceback"]
    group = zarr.open_group(planes / "labels.zarr", mode="r")
    assert group.attrs["unet-flows"]["status"] == "failed"
    corrupt.write_bytes(kept)
    again = segment(to=str(planes / "labels.zarr"), retry_failed=True, **parameters)
    assert again["stages"]["predict"]["done"] == len(stage["failed"])
    assert again["stages"]["predict"]["absent_chunks"] == 1
    assert chunks(planes / "labels.zarr") == chunks(planes / "reference.zarr")
    with pytest.raises(InputError, match="no block of this output is in quarantine"):
        segment(to=str(planes / "labels.zarr"), retry_failed=True, **parameters)


def test_restart_takes_the_old_run_away(work: Path) -> None:
    old = run(work, "restarted.zarr", roi="0:16,0:16,0:16")
    with pytest.raises(InputError, match="begun with other parameters") as refused:
        run(work, "restarted.zarr", roi="16:32,0:16,0:16")
    assert "--restart" in str(refused.value.fix)
    before = chunks(old)
    again = run(work, "restarted.zarr", roi="16:32,0:16,0:16", restart=True)
    assert chunks(again) != before
    assert chunks(run(work, "fresh.zarr", roi="16:32,0:16,0:16")) == chunks(again)


def test_a_worker_of_another_kind_is_refused(work: Path, reference: Path) -> None:
    """The run was begun where the same network gives other bits: as a record from other hardware says."""
    output = work / "foreign.zarr"
    run(work, "foreign.zarr")
    path = output / ".unet-flows" / "run.json"
    record = json.loads(path.read_text())
    record["plan"]["probe"].update(hardware="GPU of another kind", digest="0" * 16)
    path.write_text(json.dumps(record))
    with hold(Store(output)) as lease:
        RunOnDisk.open(Store(output)).ledger("predict", epoch=lease.epoch).seal(without=[0, 1])
    with pytest.raises(RunError, match="the run stopped") as stopped:
        run(work, "foreign.zarr", workers=1)
    assert "other results" in str(stopped.value) or "no worker is left" in str(stopped.value)
    assert stopped.value.document["stages"]["predict"]["done"] == 0
