"""Scores: equal to their definitions, the same whatever the blocks, clear about what cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries
from strategies import seen_from

from unet_core.errors import InputError
from unet_core.evaluation import Comparison, Scores, Truth, blocks_of, confusion_of, evaluate, trivial_scores
from unet_core.geometry import Box
from unet_core.targets import IGNORE
from unet_core.volumes import Volume

Save = Callable[..., Volume]
DATA = Path(__file__).parent / "data"


def stored(folder: Path | str, name: str, data: NDArray[Any], chunks: Any = None) -> Volume:
    path = Path(folder) / f"{name}.zarr"
    zarr.create_array(str(path), data=data, chunks=chunks or data.shape, overwrite=True)
    return Volume.open(str(path))


@pytest.fixture
def save(tmp_path: Path) -> Save:
    return lambda name, data, chunks=None: stored(tmp_path, name, np.asarray(data), chunks)


def by_hand(truth: NDArray[Any], predicted: NDArray[Any], classes: int) -> list[list[int]]:
    """One voxel after the other."""
    counts = [[0] * classes for _ in range(classes)]
    for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist()):
        counts[t][p] += 1
    return counts


labelled = st.integers(1, 4).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=7).flatmap(
            lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.integers(0, classes - 1))] * 2)
        ),
    )
)


@settings(max_examples=50, deadline=None)
@given(labelled)
def test_scores_equal_their_definitions(case: tuple[int, tuple[NDArray[Any], NDArray[Any]]]) -> None:
    classes, (truth, predicted) = case
    confusion = confusion_of(truth, predicted, classes)
    assert confusion.dtype == np.int64
    assert confusion.tolist() == by_hand(truth, predicted, classes)
    scores = Scores(confusion, tuple(f"class {k}" for k in range(classes)))
    assert scores.pixel_error == pytest.approx(float((truth != predicted).mean()))
    for k in range(classes):
        t, p = truth == k, predicted == k
        if not (t | p).any():
            assert scores.iou[k] is None
            assert scores.dice[k] is None
            continue
        iou = float((t & p).sum() / (t | p).sum())
        assert scores.iou[k] == pytest.approx(iou)
        precision, recall = (t & p).sum() / max(p.sum(), 1), (t & p).sum() / max(t.sum(), 1)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert scores.dice[k] == pytest.approx(float(f1))
        assert scores.dice[k] == pytest.approx(2 * iou / (1 + iou))
    present = [value for value in scores.iou if value is not None]
    assert scores.mean_iou == pytest.approx(float(np.mean(present)))


@pytest.mark.parametrize(
    ("target", "ignore"),
    [
        ("semantic", None),
        ("semantic", 2),
        ("foreground", None),
        ("foreground", 2),
        ("boundary", None),
        ("interior-boundary", None),
    ],
)
@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(2, 13), st.integers(2, 13)),
    chunks=st.tuples(*[st.integers(1, 6)] * 6),
    block_voxels=st.sampled_from([1, 7, 64, 500, 2**24]),
    seed=st.integers(0, 2**16),
)
def test_blockwise_equals_whole(
    target: Any, ignore: int | None, shape: Any, chunks: Any, block_voxels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, 2, shape, dtype=np.uint8)
    classes = {"semantic": 4, "interior-boundary": 3}.get(target, 2)
    truth = rng.integers(0, 4, shape).astype(np.int32)
    lower = tuple(int(rng.integers(0, n)) for n in shape)
    roi = Box(lower, tuple(int(rng.integers(a + 1, n + 1)) for a, n in zip(lower, shape)))
    if target == "semantic":
        expected = truth.copy()
    elif target == "foreground":
        expected = (truth > 0).astype(np.int32)
    else:
        expected = np.zeros(shape, np.int32)
        found = find_boundaries(seen_from(roi, truth), mode="thick", connectivity=1)
        expected[roi.slices] = found[1:-1, 1:-1, 1:-1]
    if target == "interior-boundary":
        expected = (truth > 0) * (1 + expected)
    if ignore is not None:
        expected[truth == ignore] = IGNORE
    with TemporaryDirectory() as folder:
        a = stored(folder, "a", predicted, tuple(min(c, n) for c, n in zip(chunks[:3], shape)))
        b = stored(folder, "b", truth, tuple(min(c, n) for c, n in zip(chunks[3:], shape)))
        names = tuple(map(str, range(classes)))
        options: dict[str, Any] = {"target": target, "class_names": names, "ignore": ignore, "roi": roi}
        known = expected[roi.slices] != IGNORE
        if not known.any():
            with pytest.raises(InputError, match="no voxel of this region is labelled"):
                evaluate(a, b, **options)
            return
        scores = evaluate(a, b, block_voxels=block_voxels, **options)
    whole = by_hand(expected[roi.slices][known], predicted[roi.slices][known], classes)
    assert scores.confusion.tolist() == whole


def test_blocks_in_any_order_add_up(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    labels = save("labels", rng.integers(0, 2, (8, 20, 20), dtype=np.uint8), (4, 8, 8))
    truth = save("truth", rng.integers(0, 50, (8, 20, 20), dtype=np.uint16), (8, 8, 8))
    comparison = Comparison(labels=labels, truth=Truth(volume=truth, target="boundary"), block_voxels=512)
    assert len(comparison.blocks) == 9
    whole = evaluate(labels, truth, target="boundary")
    monkeypatch.setattr("unet_core.evaluation.scores._PIECE", 100)  # as if the blocks were large
    total = Scores(np.zeros((2, 2), np.int64), ("interior", "boundary"))
    for index in rng.permutation(9):
        total += comparison.score(int(index))
    assert comparison.finish(total) == whole


def test_blocks_are_whole_chunks_and_bounded(save: Save) -> None:
    labels = save("labels", np.zeros((64, 100, 100), np.uint8), (8, 16, 16))
    truth = save("truth", np.zeros((64, 100, 100), np.uint8), (16, 16, 32))
    grid = blocks_of([labels, truth], None, 2**16)
    assert all(cell % chunk == 0 for cell, chunk in zip(grid.cell, (16, 16, 32)))
    assert np.prod(grid.cell) <= 2**16
    huge = blocks_of([save("huge", np.zeros((64, 100, 100), np.uint8))], None, 1000)
    assert np.prod(huge.cell) <= 1000
    assert sum(block.intersect(huge.extent).size for block in huge) == 64 * 100 * 100


def test_planes_are_images_of_their_own_where_a_2d_network_is_judged(save: Save) -> None:
    truth = np.repeat(np.arange(1, 5, dtype=np.uint16), 25).reshape(4, 5, 5)
    labels = save("labels", np.zeros((4, 5, 5), np.uint8))
    flat = evaluate(labels, save("truth", truth), target="boundary", planar=True)
    deep = evaluate(labels, save("truth", truth), target="boundary")
    assert flat.true_voxels == (100, 0)
    assert deep.true_voxels == (0, 100)


def test_absent_classes_are_null_and_json_is_strict(save: Save) -> None:
    labels = save("labels", np.zeros((1, 4, 4), np.uint8))
    scores = evaluate(labels, labels, class_names=["background", "synapse"])
    assert scores.iou == scores.dice == (1.0, None)
    assert scores.mean_iou == 1.0
    document = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert document["classes"]["synapse"] == {
        "iou": None,
        "dice": None,
        "true_voxels": 0,
        "predicted_voxels": 0,
    }
    assert document["pixel_error"] == 0.0
    assert document["confusion"] == [[16, 0], [0, 0]]


def test_scores_of_nothing_are_null() -> None:
    scores = Scores(np.zeros((2, 2), np.int64), ("a", "b"))
    assert scores.pixel_error is None
    assert scores.mean_iou is None


def test_scores_add_up_only_for_the_same_classes() -> None:
    a = Scores(np.array([[1, 2], [3, 4]]), ("a", "b"))
    assert (a + a).confusion.tolist() == [[2, 4], [6, 8]]
    assert a != "scores"
    with pytest.raises(InputError, match="different classes"):
        a + Scores(a.confusion, ("a", "c"))
    with pytest.raises(InputError, match="one row and one column per class"):
        Scores(a.confusion, ("a",))


def test_unnamed_classes_are_those_that_occur(save: Save) -> None:
    labels = save("labels", np.array([[[0, 1, 1, 0]]], np.uint8))
    truth = save("truth", np.array([[[0, 1, 3, 0]]], np.int16))
    scores = evaluate(labels, truth)
    assert scores.class_names == ("background", "class 1", "class 2", "class 3")
    assert scores.iou == (1.0, 0.5, None, 0.0)


def test_real_labels_against_themselves(tmp_path: Path) -> None:
    """Real nuclei with int8 ids, a channel axis and a sharded layout that others wrote."""
    truth = Volume.open(str(DATA / "omezarr" / "6001240_v0.5.zarr" / "labels" / "0"))
    ids = truth.read(truth.box)[0]
    labels = stored(tmp_path, "labels", (ids > 0).astype(np.uint8))
    scores = evaluate(labels, truth, target="foreground")
    assert scores.iou == (1.0, 1.0)
    assert scores.true_voxels[1] == np.count_nonzero(ids)


def test_what_cannot_be_compared_is_refused(save: Save) -> None:
    labels = save("labels", np.ones((4, 6, 6), np.uint8))
    truth = save("truth", np.full((4, 6, 6), 398, np.uint16))

    def refused(match: str, *args: Volume, **options: Any) -> str:
        with pytest.raises(InputError, match=match) as caught:
            evaluate(*args, **options)
        return str(caught.value)

    other = save("other", np.ones((4, 6, 5), np.uint8))
    message = refused("different shapes", labels, other)
    assert "(4, 6, 6)" in message
    assert "(4, 6, 5)" in message
    assert "398" in refused("truth holds values beyond", labels, truth)
    message = refused("truth holds values beyond", labels, truth, class_names=["a", "b"])
    assert "--target foreground" in message
    refused("truth holds values beyond", labels, save("negative", np.full((4, 6, 6), -1, np.int8)))
    refused("prediction holds values beyond", truth, labels)
    refused("prediction must hold integers", save("float", np.ones((4, 6, 6), np.float32)), labels)
    refused("truth must hold integers", labels, save("float", np.ones((4, 6, 6), np.float32)))
    refused("truth must have one channel", labels, save("channels", np.ones((2, 4, 6, 6), np.uint8)))
    refused("ROI is not inside", labels, labels, roi=Box((0, 0, 0), (5, 6, 6)))
    refused("ROI is not inside", labels, labels, roi=Box((0, 0, 0), (0, 6, 6)))
    refused("ROI is not inside", labels, labels, roi=Box((0, 0), (6, 6)))
    refused("target is not known", labels, truth, target="nuclei")
    refused("two classes", labels, truth, target="boundary", class_names=["a", "b", "c"])
    refused("wrong number of classes", labels, truth, class_names=[])
    refused("no voxel of this region is labelled", labels, truth, target="foreground", ignore=398)


def test_memory_does_not_grow_with_the_volume(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    read = Volume.read
    monkeypatch.setattr(Volume, "read", lambda self, box: seen.append(box.size) or read(self, box))
    labels = save("labels", np.zeros((32, 64, 64), np.uint8), (8, 8, 8))
    evaluate(labels, labels, block_voxels=4096)
    assert max(seen) <= 4096
    assert sum(seen) == 2 * 32 * 64 * 64


def brute_threshold(data: NDArray[Any], truth: NDArray[Any], classes: int) -> float:
    """Mean IoU of the best single threshold, tried one by one."""
    best = 0.0
    for value in np.unique(data):
        for below in range(classes):
            for above in range(classes):
                if below != above:
                    predicted = np.where(data <= value, below, above)
                    c = np.array(by_hand(truth, predicted, classes))
                    iou = Scores(c, tuple(map(str, range(classes)))).iou
                    present = [v for k, v in enumerate(iou) if v is not None and (truth == k).any()]
                    best = max(best, float(np.sum(present)) / len(np.unique(truth)))
    return best


@settings(max_examples=15, deadline=None)
@given(
    classes=st.integers(2, 3),
    dtype=st.sampled_from([np.uint8, np.int16, np.float32]),
    seed=st.integers(0, 2**16),
)
def test_trivial_answers_are_the_best_of_their_kind(classes: int, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (4, 6, 6), dtype=np.uint8)
    # Few different values, so that the float image's bins separate what integers' do.
    data = (rng.integers(0, 6, truth.shape) + 3 * truth).astype(dtype)
    train = Box((0, 0, 0), (3, 6, 6))
    names = tuple(map(str, range(classes)))
    with TemporaryDirectory() as folder:
        image, labels = stored(folder, "image", data, (2, 4, 4)), stored(folder, "truth", truth, (4, 3, 6))
        found = trivial_scores(image, labels, train=train, roi=train, class_names=names, block_voxels=30)
        other = trivial_scores(image, labels, train=train, class_names=names)
    assert found.rule == other.rule
    counts = np.bincount(truth[train.slices].ravel(), minlength=classes)
    assert found.majority_class == counts.argmax()
    assert found.majority.pixel_error == pytest.approx(1 - counts.max() / counts.sum())
    iou = [v or 0.0 for v in found.threshold.iou]
    assert sum(iou) / len(np.unique(truth[train.slices])) == pytest.approx(
        brute_threshold(data[train.slices], truth[train.slices], classes)
    )
    assert other.threshold.confusion.tolist() == by_hand(truth, found.rule.apply(data[np.newaxis]), classes)
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_threshold_finds_its_channel_and_side(save: Save) -> None:
    truth = np.zeros((2, 8, 8), np.uint16)
    truth[:, :3] = 7
    image = np.stack([np.random.default_rng(0).normal(size=truth.shape), 100.0 - truth]).astype(np.float32)
    found = trivial_scores(
        save("image", image), save("truth", truth), train=Box((0, 0, 0), (1, 8, 8)), target="foreground"
    )
    assert (found.rule.channel, found.rule.below, found.rule.above) == (1, 1, 0)
    assert 93.0 <= found.rule.value < 100.0
    assert found.threshold.pixel_error == 0.0
    assert found.majority_class == 0


def test_trivial_answers_refuse_what_they_cannot_use(save: Save) -> None:
    image = save("image", np.ones((2, 4, 4), np.float32))
    truth = save("truth", np.ones((2, 4, 4), np.uint8))
    train = Box((0, 0, 0), (1, 4, 4))
    constant = trivial_scores(image, truth, train=train, target="foreground")
    assert constant.threshold.pixel_error == 0.0

    def refused(match: str, image: Volume, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            trivial_scores(image, truth, **{"train": train, "target": "foreground", **options})

    refused("need names", image, target=None)
    refused("different shapes", save("other", np.ones((2, 4, 5), np.uint8)))
    refused("training region is not inside", image, train=Box((0, 0, 0), (3, 4, 4)))
    refused("ROI is not inside", image, roi=Box((0, 0, 0), (3, 4, 4)))
    refused("NaN or infinite", save("nan", np.full((2, 4, 4), np.nan, np.float32)))
    refused("no voxel of the training region is labelled", image, ignore=1)
    part = np.ones((2, 4, 4), np.uint8)
    part[1] = 9
    roi = Box((1, 0, 0), (2, 4, 4))
    with pytest.raises(InputError, match="no voxel of this region is labelled"):
        trivial_scores(image, save("part", part), train=train, roi=roi, target="foreground", ignore=9)
