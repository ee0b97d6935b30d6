"""`evaluate` says what it cannot use before it compares, not after hours of reading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from strategies import write_array
from test_cli import refused, run  # noqa: F401

import flows.evaluate


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shape in (("labels", (4, 8, 8)), ("image", (4, 8, 8)), ("other", (4, 8, 9))):
        write_array(tmp_path / f"{name}.zarr", np.ones(shape, np.uint8))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--image", "image.zarr"], ["the image is not needed", "--trivial or --picture"]),
        (["--picture", "p.png"], ["the image is needed"]),
        (["--image", "missing.zarr", "--picture", "p.png"], ["no such volume"]),
        (["--image", "other.zarr", "--picture", "p.png"], ["different shapes"]),
        (["--image", "image.zarr", "--picture", "no/p.png"], ["picture cannot be written", "no/p.png"]),
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
