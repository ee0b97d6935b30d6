"""Pictures show what they say, large enough, from the shown planes alone; tables hold the scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from flows.report.batch import batch_picture
from flows.report.objects import coloured, named_alike, write_object_picture
from flows.report.panels import (
    BOTH,
    CLASS_COLOURS,
    CONFUSED,
    ONLY_PREDICTED,
    ONLY_TRUE,
    ORANGE,
    differences,
    overlay,
)
from flows.report.picture import Plane, picture_png, write_picture
from flows.report.tables import comparison_table, scores_table
from unet_core.errors import InputError
from unet_core.evaluation import Scores
from unet_core.geometry import Box
from unet_core.sampling import Patch
from unet_core.targets import IGNORE
from unet_core.tiling import Footprint
from unet_core.volumes import Volume

Save = Callable[..., Volume]
DATA = Path(__file__).parent / "data"


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def stored(name: str, data: Any, chunks: Any = None) -> Volume:
        path = tmp_path / f"{name}.zarr"
        zarr.create_array(str(path), data=np.asarray(data), chunks=chunks or np.shape(data))
        return Volume.open(str(path))

    return stored


def pixels(path: Path) -> NDArray[np.int_]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "RGB"
        return np.asarray(picture).astype(int)


def has(image: NDArray[Any], colour: tuple[int, int, int], tolerance: int = 2) -> bool:
    return bool((np.abs(image - np.array(colour)).max(axis=-1) <= tolerance).any())


def test_a_real_crop_makes_a_readable_picture(save: Save, tmp_path: Path) -> None:
    with h5py.File(DATA / "fib25" / "fib25_crop.h5") as file:
        raw, ids = file["raw"][:8, :96, :100], file["label"][:8, :96, :100]
    assert (raw.dtype, ids.dtype) == (np.uint8, np.uint16)
    image, truth = save("image", raw), save("truth", ids)
    labels = save("labels", (raw < 100).astype(np.uint8))
    path = write_picture(
        tmp_path / "picture.png", image=image, labels=labels, truth=truth, target="boundary", planes=[1, 6]
    )
    picture = pixels(path)
    # Four panels of 100 x 96 voxels, three times enlarged; two rows, and lines of text below.
    assert picture.shape[1] == 8 + 4 * (300 + 8)
    assert 2 * 288 < picture.shape[0] < 2 * 288 + 200
    assert has(picture, ORANGE)
    panels = picture[31 : 31 + 288, 8:].reshape(288, 4, 308, 3)[:, :, :300]
    assert (panels[:, 0] == panels[:, 0, :, :1]).all(), "raw is grey"
    assert {int(panels[:, 0].min()), int(panels[:, 0].max())} == {0, 255}, "raw is stretched"
    assert not np.array_equal(panels[:, 0], panels[:, 1])
    assert path.stat().st_size < 2_000_000


def test_without_a_truth_there_are_two_panels(save: Save, tmp_path: Path) -> None:
    image = save("image", np.arange(300, dtype=np.uint16).reshape(1, 10, 30))
    labels = save("labels", np.ones((1, 10, 30), np.uint8))
    picture = pixels(write_picture(tmp_path / "p.png", image=image, labels=labels))
    assert picture.shape[1] == 8 + 2 * (270 + 8)


def test_large_planes_are_cut_and_nothing_else_is_read(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = save("image", np.zeros((5, 1000, 900), np.uint8), (1, 100, 100))
    labels = save("labels", np.zeros((5, 1000, 900), np.uint8), (1, 100, 100))
    seen: list[Box] = []
    read = Volume.read
    monkeypatch.setattr(Volume, "read", lambda self, box: seen.append(box) or read(self, box))
    write_picture(tmp_path / "p.png", image=image, labels=labels, truth=labels)
    assert set(seen) == {Box((2, 116, 66), (3, 884, 834))}
    seen.clear()
    write_picture(tmp_path / "p.png", image=image, labels=labels, roi=Box((3, 10, 20), (5, 40, 90)))
    assert set(seen) == {Box((4, 10, 20), (5, 40, 90))}


def test_rgb_float_and_constant_images_are_shown(save: Save, tmp_path: Path) -> None:
    with Image.open(DATA / "dsb2018" / "0d3640c1f1b8.png") as file:
        rgb = np.asarray(file)
    with Image.open(DATA / "dsb2018" / "0d3640c1f1b8_label.png") as file:
        ids = np.asarray(file)
    assert (rgb.shape, ids.max()) == ((256, 320, 3), 21)
    image = save("image", np.moveaxis(rgb, -1, 0)[:, np.newaxis])
    picture = pixels(
        write_picture(
            tmp_path / "p.png",
            image=image,
            labels=save("labels", (ids > 0).astype(np.uint8)[np.newaxis]),
            truth=save("truth", ids[np.newaxis].astype(np.int32)),
            target="foreground",
        )
    )
    assert np.array_equal(picture[31 : 31 + 256, 8 : 8 + 320], rgb)
    flat = save("flat", np.full((1, 8, 8), np.nan, np.float32))
    blank = save("blank", np.zeros((1, 8, 8), np.uint8))
    write_picture(tmp_path / "q.png", image=flat, labels=blank)


def test_many_classes_have_names_that_fit_the_page(save: Save, tmp_path: Path) -> None:
    classes = np.arange(12, dtype=np.uint8).repeat(12).reshape(1, 12, 12)
    labels = save("labels", classes)
    names = [f"a class with the long name {k}" for k in range(12)]
    picture = pixels(
        write_picture(tmp_path / "p.png", image=labels, labels=labels, truth=labels, class_names=names)
    )
    assert picture.shape[0] > 264 + 31 + 5 * 23, "the legend takes several lines"
    assert all(has(picture, colour) for colour in CLASS_COLOURS)


def test_differences_are_told_apart() -> None:
    raw = np.zeros((1, 6, 3), np.uint8)
    truth = np.array([[0, 1, 0, 1, 2, IGNORE]], np.uint8)
    predicted = np.array([[0, 1, 1, 0, 1, 1]], np.uint8)
    shown = differences(raw, truth, predicted)[0].tolist()
    faded = [[round(0.85 * c) for c in colour] for colour in (BOTH, ONLY_PREDICTED, ONLY_TRUE, CONFUSED)]
    assert shown[0] == shown[5] == [0, 0, 0]
    assert np.abs(np.array(shown[1:5]) - faded).max() <= 1
    assert differences(raw, truth, predicted, agreement=False)[0, 1].tolist() == [0, 0, 0]


def test_colours_stay_apart_with_common_colour_blindness() -> None:
    """Machado, Oliveira, Fernandes 2009, severity 1: protanopia, deuteranopia, tritanopia."""
    vision = {
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    }
    errors = np.array([BOTH, ONLY_PREDICTED, ONLY_TRUE, CONFUSED]) / 255
    for name, matrix in vision.items():
        linear = np.where(errors <= 0.04045, errors / 12.92, ((errors + 0.055) / 1.055) ** 2.4)
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.4)
        distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(4, 1)]
        assert distances.min() > 0.2, name


def test_background_and_unlabelled_voxels_stay_raw() -> None:
    raw = np.full((1, 3, 3), 77, np.uint8)
    shown = overlay(raw, np.array([[0, IGNORE, 1]], np.uint8))
    assert shown[0, :2].tolist() == [[77] * 3] * 2
    assert shown[0, 2].tolist() != [77] * 3


def test_what_cannot_be_shown_is_refused(save: Save, tmp_path: Path) -> None:
    image, labels = save("image", np.zeros((3, 8, 8), np.uint8)), save("labels", np.ones((3, 8, 8), np.uint8))

    def refused(match: str, **options: Any) -> None:
        given: dict[str, Any] = {"image": image, "labels": labels, **options}
        with pytest.raises(InputError, match=match):
            write_picture(tmp_path / "p.png", **given)

    refused("different shapes", image=save("other", np.zeros((3, 8, 9), np.uint8)))
    refused("different shapes", truth=save("another", np.zeros((3, 8, 9), np.uint8)))
    refused("prediction must hold integers", labels=save("float", np.zeros((3, 8, 8), np.float32)))
    refused("no such plane", planes=[3])
    refused("no such plane", planes=[])
    refused("ROI is not inside", roi=Box((0, 0, 0), (3, 8, 9)))
    refused("prediction holds values beyond", labels=save("ids", np.full((3, 8, 8), 99, np.uint8)))
    refused("truth holds values beyond", truth=save("ids2", np.full((3, 8, 8), 99, np.uint8)))
    with pytest.raises(InputError, match="cannot be written"):
        write_picture(tmp_path / "nowhere" / "p.png", image=image, labels=labels)


def printed(table: Any) -> str:
    console = Console(width=120, record=True, quiet=False, file=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_tables_hold_the_scores() -> None:
    scores = Scores(np.array([[90, 5, 0], [5, 0, 0], [0, 0, 0]]), ("background", "membrane", "synapse"))
    text = printed(scores_table(scores, title="prediction"))
    for expected in ("prediction", "membrane", "0.900", "0.000", "95.0 %", "mean IoU 0.450", "10.0 %", "100"):
        assert expected in text
    assert next(line for line in text.splitlines() if "synapse" in line).count(" - ") == 2
    text = printed(comparison_table({"network": scores, "most frequent class": scores}))
    assert "most frequent class" in text
    assert "IoU membrane" in text
    assert "0.450" in text
    assert printed(comparison_table({}))


def test_pictures_of_arrays_are_those_of_volumes(save: Save, tmp_path: Path) -> None:
    """Several sizes, numbered, with their long titles below; the panels are the same pixels."""
    with h5py.File(DATA / "fib25" / "fib25_crop.h5") as file:
        raw = file["raw"][:2, :90, :100]
    classes = (raw < 100).astype(np.uint8)
    truth = (raw < 120).astype(np.uint8)
    volumes = {"image": save("i", raw), "labels": save("l", classes), "truth": save("t", truth)}
    stored = pixels(write_picture(tmp_path / "p.png", planes=[0], **volumes))
    planes = [
        Plane("s3://bucket/a long name.zarr, z = 0", raw[:1], classes[0], truth[0]),
        Plane("another", raw[1:, :50, :60], classes[1, :50, :60], truth[1, :50, :60]),
    ]
    (tmp_path / "q.png").write_bytes(picture_png(planes, ("background", "class 1")))
    shown = pixels(tmp_path / "q.png")
    assert shown.shape[1] == stored.shape[1]
    panels = slice(31, 31 + 3 * 90)
    # Truth, prediction and differences; the raw panel is stretched over both planes.
    assert np.abs(shown[panels, 8 + 308 :] - stored[panels, 8 + 308 :]).max() < 40
    assert not (shown[31 + 270 + 31 : 31 + 270 + 31 + 150, 8 : 8 + 180] == 255).all()


def test_large_planes_of_arrays_are_cut(tmp_path: Path) -> None:
    image = np.zeros((1, 1000, 900), np.uint8)
    plane = Plane("large", image, image[0], image[0])
    (tmp_path / "q.png").write_bytes(picture_png([plane], ("a", "b")))
    assert pixels(tmp_path / "q.png").shape[1] == 8 + 4 * (768 + 8)


def test_objects_have_colours_of_their_own_and_outlines(save: Save, tmp_path: Path) -> None:
    ids = np.zeros((12, 40), np.uint64)
    for k in range(10):
        ids[2:10, 4 * k : 4 * k + 4] = 2**40 + k  # ids that touch, one beside the other
    raw = np.full((*ids.shape, 3), 100, np.uint8)
    shown = coloured(raw, ids).astype(int)
    assert (shown[ids == 0] == 100).all()
    middles = shown[5, 1::4]
    distances = np.abs(middles[:, None] - middles[None]).sum(-1)
    assert distances[np.triu_indices(10, 1)].min() > 10
    assert np.abs(np.diff(middles, axis=0)).sum(1).min() > 60, "neighbours"
    outline = np.abs(shown[5, 3:39:4] - middles[:9]).sum(1)
    assert (outline > 40).all()

    path = write_object_picture(
        tmp_path / "objects.png",
        image=save("raw", np.full((3, 12, 40), 100, np.uint8)),
        labels=save("labels", np.stack([ids] * 3)),
        truth=save("truth", np.stack([ids] * 3) > 0),
        planes=[0, 2],
    )
    with Image.open(path) as picture:
        assert picture.size[0] > 3 * 256
    with pytest.raises(InputError, match="no such plane"):
        write_object_picture(
            tmp_path / "no.png", image=save("raw2", ids[None]), labels=save("labels2", ids[None]), planes=[3]
        )


def test_an_object_that_both_agree_on_has_one_colour() -> None:
    truth = np.zeros((2, 6, 9), np.int64)
    truth[0, :, :4], truth[0, :, 4:], truth[1] = 7, 3, 2**40
    objects = np.zeros((2, 6, 9), np.uint32)
    objects[0, :, :3], objects[0, :3, 5:], objects[1] = 3, 7, 1
    named = named_alike(truth, objects)
    assert np.unique(named[objects == 3]) == [7]
    assert np.unique(named[objects == 1]) == [2**40]
    assert np.unique(named[objects == 0]) == [0]
    (other,) = np.unique(named[objects == 7])  # less than half of what is 3 in truth
    assert other not in (0, *np.unique(truth))
    assert not named_alike(truth, np.zeros_like(objects)).any()


def test_before_and_after_lie_side_by_side() -> None:
    classes = np.zeros((1, 20, 30), np.uint8)
    footprint = Footprint(stride=(1, 1, 1), lower=(0, 0, 0), upper=(0, 0, 0))

    def patch(value: float) -> Patch:
        return Patch(
            0, Box.of_shape(classes.shape), np.full((1, 1, 20, 30), value, np.float32), classes, None
        )

    picture = batch_picture([patch(0.2)], [patch(0.6)], footprint=footprint, class_names=("a", "b"))
    width = (picture.width - 8) // 4
    middles = np.asarray(picture)[8 + 23 + 90, 8 + 100 :: width][:4, 0]
    assert middles.tolist() == [51, 153, 51, 153]
