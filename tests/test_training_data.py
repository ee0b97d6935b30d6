"""From what people write in a training file to regions, network and settings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import write_array

from flows.config import AugmentConfig, TrainConfig, validate
from flows.training_data import labelled_regions, settings_of, spec_of
from unet_core import training
from unet_core.augment import AugmentSettings
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.training import Optimisation


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three 2D images of different sizes, in a folder, with labels beside them."""
    for number, size in enumerate((20, 30, 40)):
        image = np.full((size, size + 2), number, np.uint8)
        write_array(tmp_path / f"image-{number}.zarr", image, axes="yx")
        write_array(tmp_path / f"labels-{number}.zarr", image > 0, axes="yx")
    return tmp_path


def config(**values: Any) -> TrainConfig:
    return validate(TrainConfig, {"to": "model", **values})


def test_the_augment_table_says_what_the_settings_do():
    assert AugmentConfig().model_dump() == asdict(AugmentSettings())


def test_defaults_of_the_optimiser_are_the_cores():
    wanted = config(image="i", labels="l")
    flat = {k: v for k, v in asdict(Optimisation()).items() if k != "warm_up"}
    assert {name: getattr(wanted, name) for name in flat} == flat


def test_a_folder_of_images_is_a_set_of_volumes(frames):
    paths = {"image": f"{frames}/image-*.zarr", "labels": f"{frames}/labels-*.zarr"}
    pair = {**paths, "weight": 2.0, "ignore": 9}
    sources, weights, held_out = labelled_regions(config(pairs=[pair], ndim=2))
    assert [source.region.shape for source in sources] == [(1, 20, 22), (1, 30, 32), (1, 40, 42)]
    assert weights == [2.0] * 3
    assert {source.ignore for source in sources} == {9}
    assert held_out == []


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images", "masks"),
        ("images/*.zarr", "masks/*.zarr"),
        ("images", "masks/*"),
        ("images/*.zarr", "named/*_mask.zarr"),
        ("samples/*/raw.zarr", "samples/*/ids.zarr"),
    ],
)
def test_sets_are_paired_by_name(tmp_path, monkeypatch, image, labels):
    monkeypatch.chdir(tmp_path)
    for number in (2, 10, 1):
        shape = (8, 10 + number)
        for path in (f"images/a{number}.zarr", f"samples/a{number}/raw.zarr"):
            write_array(tmp_path / path, np.full(shape, number, np.uint8), axes="yx")
        for path in (f"masks/a{number}.zarr", f"named/a{number}_mask.zarr", f"samples/a{number}/ids.zarr"):
            write_array(tmp_path / path, np.ones(shape, np.uint8), axes="yx")
    (tmp_path / "images" / ".hidden.zarr").mkdir()
    sources, _, _ = labelled_regions(config(image=image, labels=labels, ndim=2))
    assert [source.image.shape[2] for source in sources] == [11, 20, 12]  # a1, a10, a2
    assert all(source.labels.shape == source.image.shape for source in sources)


def test_what_has_no_partner_is_named(frames, monkeypatch):
    monkeypatch.chdir(frames)
    write_array(frames / "labels-7.zarr", np.ones((4, 4), np.uint8), axes="yx")
    write_array(frames / "image-8.zarr", np.ones((4, 4), np.uint8), axes="yx")
    with pytest.raises(InputError, match="do not go in pairs") as refused:
        labelled_regions(config(image="image-*.zarr", labels="labels-*.zarr"))
    assert refused.value.found.splitlines() == [
        "1 images without labels: image-8.zarr",
        "1 labels without an image: labels-7.zarr",
    ]
    write_array(frames / "image-8.ome.zarr", np.ones((4, 4), np.uint8), axes="yx")
    with pytest.raises(InputError, match="one name"):
        labelled_regions(config(image="image-*.zarr", labels="labels-*.zarr"))
    (frames / "empty").mkdir()
    with pytest.raises(InputError, match="no volume lies in this folder") as refused:
        labelled_regions(config(image="empty", labels="empty"))
    assert refused.value.where == "empty"


def test_images_smaller_than_a_patch_are_told_in_one_sentence(frames):
    paths = {"image": f"{frames}/image-*.zarr", "labels": f"{frames}/labels-*.zarr"}
    wanted = config(pairs=[paths], ndim=2, depth=1, base=2, patch="34,34")
    sources, weights, held_out = labelled_regions(wanted)
    spec = spec_of(wanted, sources)
    plan = training.prepare(sources, held_out, spec, settings_of(wanted, spec), weights=weights)
    (said,) = (note for note in training.notes(plan) if "smaller than a patch" in note)
    assert "image-0.zarr is smaller than a patch along y (20 of 34), x (22 of 34)" in said
    assert "(and 1 more of the 3 regions): it is mirrored there" in said


def test_a_plane_takes_a_box_of_y_and_x(frames):
    pair = {"image": f"{frames}/image-1.zarr", "labels": f"{frames}/labels-1.zarr"}
    sources, _, held_out = labelled_regions(
        config(**pair, region="0:20,0:32", validation_region="20:30,0:32", ignore=5)
    )
    assert sources[0].region == Box((0, 0, 0), (1, 20, 32))
    assert held_out[0].region == Box((0, 20, 0), (1, 30, 32))
    assert sources[0].ignore == 5


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "one way to name"),
        ({"image": "a"}, "needs its labels"),
        ({"image": "a", "labels": "b", "pairs": [{"image": "a", "labels": "b"}]}, "both"),
        ({"pairs": [{"image": "none-*.zarr", "labels": "x-*.zarr"}]}, "no volume matches"),
        ({"pairs": [{"image": "s3://bucket/*.zarr", "labels": "x-*.zarr"}]}, "local folders"),
        ({"pairs": [{"image": "a-*.zarr", "labels": "x.zarr"}]}, "beside a single one"),
        ({"image": "missing.zarr", "labels": "missing.zarr"}, "no such volume"),
    ],
)
def test_data_that_is_not_there_or_named_twice_is_refused(values, says):
    with pytest.raises(InputError, match=says):
        labelled_regions(config(**values))


def test_classes_follow_the_target(frames):
    pair = {"image": f"{frames}/image-1.zarr", "labels": f"{frames}/labels-1.zarr"}
    for target, classes in (("semantic", 2), ("separated", 2), ("interior-boundary", 3)):
        wanted = config(**pair, target=target, ndim=2)
        sources, _, _ = labelled_regions(wanted)
        assert spec_of(wanted, sources).classes == classes


@pytest.mark.parametrize(("text", "found"), [("none", None), ("balanced", "balanced"), ("1,3.5", (1.0, 3.5))])
def test_class_weights_by_name_or_number(frames, text, found):
    pair = {"image": f"{frames}/image-1.zarr", "labels": f"{frames}/labels-1.zarr"}
    wanted = config(**pair, class_weights=text, ndim=2)
    sources, _, _ = labelled_regions(wanted)
    assert settings_of(wanted, spec_of(wanted, sources)).class_weights == found
    with pytest.raises(InputError, match="class-weights"):
        settings_of(config(**pair, class_weights="much"), spec_of(wanted, sources))
