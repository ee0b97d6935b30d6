"""The `segment` flow through Prefect and Dask: the same bytes whatever the blocks, workers and order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tensorstore
import zarr
from numpy.typing import NDArray
from ome_zarr_models.v05.image_label import ImageLabel

from flows import tasks
from flows.blocks import run_stage
from flows.segment import segment
from unet_core.architecture import UNetSpec
from unet_core.checkpoint import ModelCard, save_model
from unet_core.errors import InputError, RunError
from unet_core.ledger import Ledger, read_status
from unet_core.model import UNet
from unet_core.normalisation import NormalisationRule, Scale
from unet_core.volumes import Store

SHAPE = (37, 70, 61)  # a multiple of nothing
TILE = "16,16,16"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, and a volume with structure in it."""
    import torch

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
    spec = UNetSpec.build(ndim=3, depth=1, base=16, classes=3)
    torch.manual_seed(1)
    card = ModelCard(
        spec=spec,
        class_names=("background", "one", "two"),
        target="semantic",
        normalisation=NormalisationRule(),
        scale=Scale((0.0,), (255.0,)),
    )
    save_model(Store(root / "model"), card, UNet(spec))
    return root


@pytest.fixture(scope="module", autouse=True)
def prefect_server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def run(work: Path, name: str, **options: Any) -> Path:
    output = work / name
    parameters = {"tile": TILE, "probabilities": True, **options}
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


def backwards(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    return indices[::-1]


@pytest.fixture(scope="module")
def reference(work: Path) -> Path:
    return run(work, "reference.zarr")


def test_same_bytes_whatever_the_workers_blocks_and_order(
    work: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = chunks(reference)
    assert sum(name.startswith("0/c/") for name in expected) > 1, "more than one shard"
    two_workers = run(work, "two.zarr", workers=2)
    large_blocks = run(work, "large.zarr", block="48,128,64")
    monkeypatch.setattr(tasks, "run_stage", partial(run_stage, order=backwards))
    middle_blocks_backwards = run(work, "backwards.zarr", block="96,64,128", workers=2)
    for other in (two_workers, large_blocks, middle_blocks_backwards):
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
        to=str(reference),
        tile=TILE,
        probabilities=True,
    )
    assert all(s["done"] == 0 and s["skipped"] == s["total"] for s in result["stages"].values())
    assert chunks(reference) == before


def test_missing_blocks_are_done_again_with_the_same_bytes(work: Path, reference: Path) -> None:
    output = run(work, "lost.zarr")
    for entry in list((output / ".unet-flows" / "ledger" / "predict").iterdir())[:1]:
        entry.unlink()
    result = segment(
        volume=str(work / "volume.zarr"),
        model=str(work / "model"),
        to=str(output),
        tile=TILE,
        probabilities=True,
    )
    assert result["stages"]["predict"]["done"] == 1
    assert chunks(output) == chunks(reference)


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

    def spoil(planned: Any) -> Any:
        """The voxel turns bad after the plan and the intensity scale have looked at the volume."""
        plan = original(planned)
        source[8, 190, 20] = np.nan
        return plan

    parameters = {"volume": str(work / "float.zarr"), "model": str(work / "model"), "to": str(output)}
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
    from flows.config import ClusterConfig

    with open_client(ClusterConfig(workers=1)) as client:
        pids = {psutil.Process().pid, *client.run(lambda: psutil.Process().pid).values()}
        addresses = {
            connection.laddr.ip
            for connection in psutil.net_connections(kind="tcp")
            if connection.pid in pids and connection.status == psutil.CONN_LISTEN
        }
    assert addresses == {"127.0.0.1"}


def test_blocks_run_the_same_in_this_process(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    ledger = Ledger(store, "stage", 5)
    ledger.commit(1, "0")
    seen: list[int] = []

    def block(base: int, index: int) -> int:
        if index == 3:
            raise ValueError("no")
        seen.append(index)
        return base + index

    result = run_stage(block, (10,), ledger)
    assert seen == [0, 2, 4]
    assert (result.done, result.skipped, result.voxels) == (3, 1, 36)
    assert [(f.index, f.error) for f in result.failed] == [(3, "ValueError: no")]
    assert not result.complete
