"""s3:// goes through the same code as local paths: judged by moto's server on loopback."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import test_instances
import test_watershed_stages
import torch
import zarr
from pipeline import complete, save_random_model
from s3_server import KEY_ID, SECRET

from flows import cli
from unet_core import training
from unet_core.architecture import UNetSpec
from unet_core.checkpoint import load_model
from unet_core.errors import InputError
from unet_core.labelling import LabelledRegion
from unet_core.ledger import Failure, Ledger, Quarantine, hold
from unet_core.verification import verify_block
from unet_core.volumes import Store, Volume

SHAPE = (16, 150, 40)


def segment_here(root: str, to: str) -> None:
    """The whole `segment`, stage by stage, in this process."""
    complete(root, to, tile=(8, 16, 16))


def make_inputs(root: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, SHAPE, dtype="u1")
    zarr.create_array(Store(f"{root}/volume.zarr").zarr(read_only=False), data=image, chunks=(16, 32, 32))
    save_random_model(f"{root}/model", UNetSpec.build(ndim=3, depth=1, base=4), seed=4)


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
    assert count > 1
    assert Ledger(remote, "predict", count).read().done.all()


def test_no_credential_in_what_is_written_or_said(
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Run records, plans, status, errors, logs: everything is searched for the key and its name."""
    caplog.set_level("DEBUG")
    root = f"{bucket}/credentials"
    make_inputs(root)
    segment_here(root, f"{root}/labels.zarr")
    Quarantine(Store(f"{root}/labels.zarr"), "predict").add(
        Failure(stage="predict", index=0, error="e", traceback="t", worker="w", attempts=3)
    )
    segment = ("segment", f"{root}/volume.zarr", "--model", f"{root}/model", "--to")
    for command in (
        (*segment, f"{root}/labels.zarr", "--tile", "8,16,16", "--plan"),
        (*segment, f"{root}/labels.zarr", "--tile", "8,16,32", "--plan", "--json"),
        (*segment, "s3://no-such-bucket/labels.zarr", "--plan"),
        ("status", f"{root}/labels.zarr"),
        ("verify", f"{root}/labels.zarr", "--json"),
        ("clean", f"{root}/labels.zarr"),
    ):
        monkeypatch.setattr(sys, "argv", ["unet-flows", *command])
        cli.run()
    said = "".join(capfd.readouterr()) + caplog.text
    assert "no-such-bucket" in said
    store = Store(root)
    written = [store.read(key) or b"" for key in store.keys() if key.endswith(".json") or "/lease/" in key]  # noqa: SIM118
    assert len(written) > 5
    for secret in (KEY_ID, SECRET):
        assert secret not in said
        assert not any(secret.encode() in document for document in written)


def test_a_training_lives_in_s3(bucket: str) -> None:
    """Images, labels, checkpoints, records and the model; stopped half-way, it goes on from there."""
    root = f"{bucket}/training"
    image = np.random.default_rng(0).integers(0, 255, (12, 24, 24), dtype="u1")
    for name, data in (("image", image), ("labels", image >> 7)):
        zarr.create_array(Store(f"{root}/{name}.zarr").zarr(read_only=False), data=data, chunks=(12, 12, 12))
    whole = LabelledRegion.whole(Volume.open(f"{root}/image.zarr"), Volume.open(f"{root}/labels.zarr"))
    settings = training.TrainSettings(target="foreground", patch=(4, 4, 4), steps=4, validate_every=2)
    spec = UNetSpec.build(ndim=3, depth=1, base=4, norm="batch")
    plan = training.prepare([whole], [], spec, settings)
    store = Store(f"{root}/model")
    with hold(store) as lease:
        checkpoints = training.Checkpoints(store, lease.epoch)
        assert training.run(plan, checkpoints=checkpoints, should_stop=lambda: True).stopped
        trained = training.run(plan, checkpoints=checkpoints)
        training.save(store, trained)
    assert checkpoints.damaged() == []
    stored = load_model(store.url).network().state_dict()
    undisturbed = training.run(plan).network.state_dict()
    assert all(torch.equal(stored[name], undisturbed[name]) for name in undisturbed)
    assert {"README.md", "metrics.csv", "training.png"} <= set(store.keys())


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


def test_instances_are_made_in_s3(bucket: str, tmp_path: Path) -> None:
    """Evidence, ids and tables: the bytes that a disk gets."""

    def made(place: str) -> Store:
        plan = test_watershed_stages.plan_of()
        store = test_watershed_stages.start(place, plan)
        assert test_instances.go_on(store, plan)
        for stage in plan.stages:
            digest = Ledger(store, stage.name, stage.count).part(0).digest[0]
            verify_block(store, stage, 0, f"{digest:016x}")
        return store

    remote, local = made(f"{bucket}/instances.zarr"), made(str(tmp_path / "instances.zarr"))
    assert test_instances.stored(remote) == test_instances.stored(local)
