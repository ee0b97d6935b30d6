"""`evaluate` says what it cannot use before it compares, not after hours of reading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from strategies import write_array
from test_cli import refused, run  # noqa: F401

import flows.evaluate
from flows.config import IngestConfig
from flows.ingest import plan
from unet_core.ingestion import create_output, write_slab
from unet_core.ledger import begin, set_status
from unet_core.volumes import Store, open_for_writing


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shape in (("labels", (4, 8, 8)), ("image", (4, 8, 8)), ("other", (4, 8, 9))):
        write_array(tmp_path / f"{name}.zarr", np.ones(shape, np.uint8))
    (tmp_path / "there.png").touch()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--image", "image.zarr"], ["the image is not needed", "--trivial or --picture"]),
        (["--picture", "p.png"], ["the image is needed"]),
        (["--image", "missing.zarr", "--picture", "p.png"], ["no such volume"]),
        (["--image", "other.zarr", "--picture", "p.png"], ["different shapes"]),
        (["--image", "image.zarr", "--picture", "no/p.png"], ["picture cannot be written", "no/p.png"]),
        (["--image", "image.zarr", "--picture", "p.xyz"], ["picture cannot be written", ".xyz", ".png"]),
        (
            ["--image", "image.zarr", "--picture", "labels.zarr/p"],
            ["picture cannot be written", "without .png"],
        ),
        (["--image", "image.zarr", "--picture", "there.png"], ["there is something already", "--picture"]),
        (["--image", "image.zarr", "--trivial", "0:2,0:8"], ["the training region", "0:2,0:8"]),
        (["--image", "image.zarr", "--trivial", "much"], ["not a box"]),
        (["--probabilities"], ["no probabilities", "segment with --probabilities"]),
    ],
)
def test_before_it_compares(run, monkeypatch, options, facts):  # noqa: F811
    def compared(*_: object, **__: object) -> None:
        raise AssertionError("compared already")

    monkeypatch.setattr(flows.evaluate, "compare", compared)
    refused(run("evaluate", "labels.zarr", "labels.zarr", *options), *facts)


@pytest.mark.usefixtures("here")
def test_an_image_is_no_answer_and_ids_are_no_classes(run, tmp_path):  # noqa: F811
    rng = np.random.default_rng(0)
    array = rng.integers(0, 20, (4, 8, 8), np.uint8)
    write_array(tmp_path / "ids.zarr", array)
    (tmp_path / "a.npy").touch()
    np.save(tmp_path / "a.npy", array)
    for kind in ("image", "labels"):
        planned = plan(IngestConfig(sources=["a.npy"], to=f"as_{kind}.zarr", kind=kind))
        with planned.source as source:
            store = Store(f"as_{kind}.zarr")
            begin(store, planned.record)
            create_output(planned.plan, store)
            write_slab(planned.plan, source, open_for_writing(store, "0"), 0)
            set_status(store, "complete")
    said = "was ingested as an image", "--as labels"
    for options in ([], ["--instances"]):
        refused(run("evaluate", "as_image.zarr", "ids.zarr", *options), "the prediction", *said)
        refused(run("evaluate", "as_labels.zarr", "as_image.zarr", *options), "the truth", *said)
    assert "note" not in run("evaluate", "as_labels.zarr", "ids.zarr", "--instances")[2]
    code, out, err = run("evaluate", "labels.zarr", "as_labels.zarr", "--json")
    assert code == 0, err
    assert err == f"note: {json.loads(out)['notes'][0]}\n"
    assert "19 values above 0 and the prediction 1" in err
    assert "--target" in err


def test_a_plane_takes_a_box_of_y_and_x(run, tmp_path):  # noqa: F811
    """As training and segmentation do."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_array(tmp_path / f"{name}.zarr", rng.integers(0, 2, (9, 8), np.uint8), axes="yx")
    both = [tmp_path / f"{name}.zarr" for name in ("a", "b")]
    classes = ["--target", "foreground"]
    for options in (classes, ["--instances"], [*classes, "--image", tmp_path / "a.zarr", "--trivial"]):
        found = []
        for box in ("2:9,0:5", "0:1,2:9,0:5"):
            trivial = [box] if "--trivial" in options else []
            code, out, err = run("evaluate", *both, "--roi", box, *options, *trivial, "--json")
            assert code == 0, err
            found.append({key: value for key, value in json.loads(out).items() if key != "roi"})
        assert found[0] == found[1]
        assert found[0]["voxels"] == 35
