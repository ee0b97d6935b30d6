"""s3:// goes through the same code as local paths: judged by moto's server on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from unet_core.architecture import UNetSpec
from unet_core.checkpoint import ModelCard, save_model
from unet_core.errors import InputError
from unet_core.ledger import Ledger, set_status
from unet_core.model import UNet
from unet_core.normalisation import NormalisationRule, Scale
from unet_core.segmentation import BlockWorker, SegmentRequest, plan_segmentation, pyramid_block, start
from unet_core.volumes import Store, Volume

SHAPE = (16, 150, 40)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty bucket on a server of its own; AWS_* point to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test-id",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    try:
        for _ in range(300):
            try:
                request = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        else:
            pytest.fail("moto's server did not start")
        yield "s3://bucket"
    finally:
        patch.undo()
        server.terminate()
        server.wait()


def segment_here(root: str, to: str) -> None:
    """The whole `segment`, stage by stage, in this process."""
    planned = plan_segmentation(
        SegmentRequest(volume=f"{root}/volume.zarr", model=f"{root}/model", to=to, tile=(8, 16, 16))
    )
    plan = start(planned)
    for index in range(len(plan.tiling.blocks)):
        BlockWorker(to, plan).predict(index)
    for level in plan.pyramid.levels[1:]:
        for index in range(plan.pyramid.count(level.index)):
            pyramid_block(to, plan.pyramid, level.index, index)
    set_status(Store(to), "complete")


def make_inputs(root: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, SHAPE, dtype="u1")
    zarr.create_array(Store(f"{root}/volume.zarr").zarr(read_only=False), data=image, chunks=(16, 32, 32))
    spec = UNetSpec.build(ndim=3, depth=1, base=4)
    torch.manual_seed(0)
    card = ModelCard(
        spec=spec,
        class_names=("background", "foreground"),
        target="foreground",
        normalisation=NormalisationRule(),
        scale=Scale((0.0,), (255.0,)),
    )
    save_model(Store(f"{root}/model"), card, UNet(spec))


def test_the_same_objects_in_s3_as_on_disk(bucket: str, tmp_path: Path) -> None:
    for root in (bucket, str(tmp_path)):
        make_inputs(root)
        segment_here(root, f"{root}/labels.zarr")
    remote, local = Store(f"{bucket}/labels.zarr"), Store(tmp_path / "labels.zarr")
    keys = sorted(local.keys())
    assert sorted(remote.keys()) == keys
    voxels = [key for key in keys if "/c/" in key]
    assert len(voxels) > 1
    for key in voxels:
        assert remote.read(key) == local.read(key), key
    count = len([key for key in keys if "ledger/predict" in key])
    assert Ledger(remote, "predict", count).done().all()


def test_no_credential_in_what_is_written(bucket: str) -> None:
    store = Store(bucket)
    keys = list(store.keys())
    documents = [store.read(key) or b"" for key in keys if key.endswith(".json")]
    assert documents
    assert not any(b"test-secret" in document or b"test-id" in document for document in documents)


def test_a_volume_that_is_not_there(bucket: str) -> None:
    with pytest.raises(InputError, match="no such volume"):
        Volume.open(f"{bucket}/absent.zarr")


def test_credentials_in_a_url_are_refused() -> None:
    with pytest.raises(InputError, match="must not hold credentials") as refused:
        Store("s3://id:secret@bucket/volume.zarr")
    assert "secret@" not in str(refused.value)


def test_create_is_exclusive(bucket: str, tmp_path: Path) -> None:
    for store in (Store(f"{bucket}/x"), Store(tmp_path / "x")):
        assert store.create("lease", b"mine")
        assert not store.create("lease", b"yours")
        assert store.read("lease") == b"mine"
        assert list(store.keys()) == ["lease"]
