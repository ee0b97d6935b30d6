"""Thresholds of a probability: every one as if it had been tried, from a histogram that adds up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import complete, save_random_model

from flows import cli
from unet_core.architecture import UNetSpec
from unet_core.errors import InputError
from unet_core.evaluation import Thresholds, Truth, evaluate_thresholds
from unet_core.geometry import Box
from unet_core.targets import IGNORE
from unet_core.volumes import Volume


@st.composite
def blocks(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Classes with and without unlabelled voxels, and probabilities that know something of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.lists(st.integers(1, 8), min_size=2, max_size=3)))
    classes = rng.choice(np.array([0, 1, IGNORE], np.uint8), shape, p=draw(st.sampled_from(SHARES)))
    levels = draw(st.sampled_from([2, 5, 256]))
    values = rng.integers(0, levels, shape) * 255 // (levels - 1)
    shifted = values + np.where(classes == 1, draw(st.integers(0, 100)), 0)
    return classes, shifted.clip(0, 255).astype(np.uint8)


SHARES = [(0.5, 0.5, 0), (0.6, 0.2, 0.2), (1, 0, 0), (0, 1, 0), (0, 0, 1)]


@settings(max_examples=40)
@given(blocks())
def test_every_threshold_scores_what_it_scores_when_tried(
    block: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    classes, values = block
    found = Thresholds.of(classes, values)
    known = classes != IGNORE
    truth = classes[known] == 1
    assert found.voxels == known.sum()
    tried: dict[str, list[float]] = {"iou": [], "dice": [], "pixel_error": []}
    for threshold in range(257):
        predicted = values[known].astype(int) >= threshold
        both, either = int((truth & predicted).sum()), int((truth | predicted).sum())
        tried["iou"].append(both / either if either else np.nan)
        tried["dice"].append(2 * both / (both + either) if either else np.nan)
        tried["pixel_error"].append(float((truth != predicted).mean()) if truth.size else np.nan)
    for name, expected in tried.items():
        np.testing.assert_allclose(getattr(found, name), expected)
        best = found.best(name)  # type: ignore[arg-type]
        if not truth.size or (name != "pixel_error" and not truth.any()):
            assert best is None
            continue
        assert best is not None
        aim = min(expected) if name == "pixel_error" else max(expected)
        assert best.score == pytest.approx(aim)
        nearest = min(abs(t - 128) for t in range(257) if expected[t] == pytest.approx(aim, abs=1e-12))
        assert abs(best.value - 128) == nearest
        assert expected[best.value] == pytest.approx(aim)
    json.dumps(found.to_dict(), allow_nan=False)


@settings(max_examples=25)
@given(blocks(), st.integers(1, 30), st.randoms())
def test_histograms_add_up_in_any_order(
    block: tuple[NDArray[np.uint8], NDArray[np.uint8]], piece: int, random: Any
) -> None:
    classes, values = (data.reshape(-1) for data in block)
    whole = Thresholds.of(*block)
    starts = list(range(0, classes.size, piece))
    random.shuffle(starts)
    total = Thresholds.empty()
    for start in starts:
        total += Thresholds.of(classes[start : start + piece], values[start : start + piece])
    assert total == whole
    assert total.histogram.dtype == np.int64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_core.evaluation.thresholds._PIECE", piece)  # as if the blocks were large
        assert Thresholds.of(*block) == whole


def test_of_equal_thresholds_the_one_nearest_one_half_is_taken() -> None:
    classes = np.array([0, 0, 1, 1], np.uint8)

    def best(values: list[int]) -> Any:
        return Thresholds.of(classes, np.array(values, np.uint8)).best()

    assert best([10, 20, 200, 220]).value == 128
    assert best([10, 20, 60, 220]).value == 60
    assert best([10, 180, 200, 220]).value == 181
    assert best([10, 180, 200, 220]).to_dict() == {
        "value": 181,
        "probability": 181 / 255,
        "criterion": "iou",
        "score": 1.0,
    }


def test_what_is_no_histogram_of_two_classes_is_refused() -> None:
    plane = np.zeros((2, 2), np.uint8)
    with pytest.raises(InputError, match="differ in shape"):
        Thresholds.of(plane, plane[:1])
    with pytest.raises(InputError, match="uint8"):
        Thresholds.of(plane, plane.astype(np.float32))
    with pytest.raises(InputError, match="two classes"):
        Thresholds.of(plane + 2, plane)
    with pytest.raises(InputError, match="256 values"):
        Thresholds(np.zeros((3, 256), np.int64))
    with pytest.raises(InputError, match="criterion"):
        Thresholds.empty().best("accuracy")  # type: ignore[arg-type]
    assert Thresholds.empty() != "a histogram"


# The command, on probabilities that `segment` wrote


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels with probabilities of two classes, and a truth that is often the same."""
    root = tmp_path_factory.mktemp("probabilities")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (12, 20, 24), dtype="u1")
    zarr.create_array(root / "volume.zarr", data=image, chunks=(12, 20, 24), dimension_names=list("zyx"))
    save_random_model(root / "model", UNetSpec.build(ndim=3, depth=1, base=2, classes=2))
    complete(root, str(root / "labels.zarr"), tile=(8, 8, 8), probabilities=True)
    second = zarr.open_array(root / "labels.zarr" / "probabilities" / "0")[1]
    truth = (second > np.median(second)) ^ (rng.random(second.shape) < 0.1)
    zarr.create_array(root / "truth.zarr", data=truth.astype("u1"), chunks=(5, 7, 9))
    return root


def test_the_command_scores_every_threshold(
    segmented: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*options: str) -> tuple[int, str, str]:
        volumes = (str(segmented / name) for name in ("labels.zarr", "truth.zarr"))
        monkeypatch.setattr("sys.argv", ["unet-flows", "evaluate", *volumes, *options])
        code = cli.run()
        return code, *capsys.readouterr()

    code, out, err = run("--probabilities", "--json", "--roi", "1:10,2:20,0:17")
    assert code == 0, err
    box = np.s_[1:10, 2:20, 0:17]
    values = zarr.open_array(segmented / "labels.zarr" / "probabilities" / "0")[1][box]
    truth = zarr.open_array(segmented / "truth.zarr")[box]
    document = json.loads(out)
    assert document["thresholds"] == json.loads(json.dumps(Thresholds.of(truth, values).to_dict()))
    assert document["thresholds"]["best"]["pixel_error"]["score"] <= document["pixel_error"]
    code, out, err = run("--probabilities")
    assert code == 0, err
    assert "best thresholds" in out
    assert json.loads(run("--json")[1])["thresholds"] is None
    corner = str(zarr.open_array(segmented / "truth.zarr")[0, 0, 0])
    code, out, err = run("--probabilities", "--roi", "0:1,0:1,0:1", "--ignore", corner)
    assert code == 2
    assert "no voxel of this region is labelled" in err


def test_classes_are_refused_as_instances(
    segmented: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, truth = (str(segmented / name) for name in ("labels.zarr", "truth.zarr"))
    for what, order in (("the prediction", (labels, truth)), ("the truth", (truth, labels))):
        monkeypatch.setattr("sys.argv", ["unet-flows", "evaluate", *order, "--instances"])
        assert cli.run() == 2
        message = capsys.readouterr().err
        assert f"{what} holds classes, not instances" in message
        assert "LABELS TRUTH" in message


def test_probabilities_that_are_not_those_of_two_classes_are_refused(segmented: Path) -> None:
    truth = Volume.open(str(segmented / "truth.zarr"))
    probabilities = Volume.open(str(segmented / "labels.zarr" / "probabilities"))
    two = Truth(volume=truth, names=("background", "foreground"))
    blockwise = evaluate_thresholds(probabilities, two, block_voxels=100)
    assert blockwise == Thresholds.of(truth.read(truth.box)[0], probabilities.read(truth.box)[1])
    for wrong, known in (
        (truth, two),
        (replace(probabilities, channels=(1,)), two),
        (probabilities, Truth(volume=truth)),
    ):
        with pytest.raises(InputError, match="probabilities of two classes"):
            evaluate_thresholds(wrong, known)
    with pytest.raises(InputError, match="ROI is not inside"):
        evaluate_thresholds(probabilities, two, roi=Box((0, 0, 0), (99, 1, 1)))
