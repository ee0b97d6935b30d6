"""Instances: one table whatever the blocks, every measure equal to its definition and to other judges'.

The brute-force versions here count voxels and pairs one by one; they share nothing with what they judge.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import grey_erosion
from scipy.optimize import linear_sum_assignment
from skimage.metrics import adapted_rand_error, variation_of_information
from skimage.segmentation import relabel_sequential

from flows import cli
from unet_core.errors import InputError
from unet_core.evaluation import (
    Contingency,
    InstanceComparison,
    InstanceScores,
    Overlaps,
    evaluate_instances,
)
from unet_core.evaluation.partitions import adapted_rand, v_info, v_rand
from unet_core.evaluation.partitions import variation_of_information as variation
from unet_core.geometry import Box
from unet_core.volumes import Volume

DATA = Path(__file__).parent / "data"
THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
Ids = NDArray[np.int64]
Pair = tuple[Ids, Ids]


@st.composite
def label_pairs(draw: st.DrawFn, *, most: int = 9) -> Pair:
    """True and predicted ids (z, y, x), 2D and 3D: few coarse objects, copied with errors, and noise."""
    depth = draw(st.sampled_from([1, 1, 2, 3]))
    shape = (depth, draw(st.integers(1, most)), draw(st.integers(1, most)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = rng.integers(0, draw(st.integers(1, 7)), tuple(-(-n // 2) for n in shape))
    true = coarse
    for axis in range(3):
        true = true.repeat(2, axis=axis)
    true = true[tuple(slice(n) for n in shape)]
    renamed = rng.permutation(int(true.max()) + 1 + draw(st.integers(0, 2)))
    predicted = renamed[true]
    wrong = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.3, 1.0]))
    predicted = np.where(wrong, rng.integers(0, int(renamed.max()) + 1, shape), predicted)
    return true.astype(np.int64), predicted.astype(np.int64)


def scores_of(true: NDArray[Any], predicted: NDArray[Any], **options: Any) -> InstanceScores:
    return InstanceScores.of(Contingency.of(true, predicted, **options))


def stored(folder: Path | str, name: str, data: NDArray[Any], chunks: Any = None) -> Volume:
    path = Path(folder) / f"{name}.zarr"
    zarr.create_array(str(path), data=data, chunks=chunks or data.shape, overwrite=True)
    return Volume.open(str(path))


# The table


@settings(max_examples=60)
@given(
    pair=label_pairs(),
    dtypes=st.tuples(*[st.sampled_from([np.uint8, np.int16, np.uint32, np.int64, np.uint64])] * 2),
    planar=st.booleans(),
    ignore=st.sampled_from([None, 0, 2, 77, -1]),
    image=st.integers(0, 2**40),
    piece=st.integers(1, 40),
)
def test_the_table_counts_every_voxel(
    pair: Pair, dtypes: Any, planar: bool, ignore: int | None, image: int, piece: int
) -> None:
    true, predicted = pair[0].astype(dtypes[0]), pair[1].astype(dtypes[1])
    if ignore == -1 and dtypes[0] in (np.int16, np.int64):
        true = np.where(true == 1, np.asarray(-1, dtypes[0]), true)
    expected: Counter[tuple[int, int, int]] = Counter()
    for z, y, x in product(*map(range, true.shape)):
        if true[z, y, x] != ignore:
            expected[image + z * planar, int(true[z, y, x]), int(predicted[z, y, x])] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_core.evaluation.contingency._PIECE", piece)
        table = Contingency.of(true, predicted, planar=planar, image=image, ignore=ignore)
    rows = zip(table.image.tolist(), table.true.tolist(), table.predicted.tolist())
    assert dict(zip(rows, table.voxels.tolist())) == dict(expected)
    assert len(table) == len(expected)
    assert [c.dtype for c in (table.image, table.true, table.predicted, table.voxels)] == [
        np.dtype(t) for t in ("i8", "u8", "u8", "i8")
    ]


@settings(max_examples=40)
@given(st.lists(label_pairs(most=4), min_size=3, max_size=3), st.randoms())
def test_tables_add_up_in_any_order(pairs: list[Pair], random: Any) -> None:
    a, b, c = (Contingency.of(*pair, image=k % 2) for k, pair in enumerate(pairs))
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Contingency.empty() == a
    several = [a, b, c, Contingency.empty(), a]
    random.shuffle(several)
    assert Contingency.merge(several) == a + b + c + a
    assert a != "a table"


def test_many_tables_merge_to_their_sum() -> None:
    """More pairs than wait at a time."""
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 60, (40, 30, 30)), rng.integers(0, 60, (40, 30, 30))
    parts = (Contingency.of(t, p) for t, p in zip(true, predicted))
    assert Contingency.merge(parts) == Contingency.of(true, predicted)


@settings(max_examples=25)
@given(
    pair=label_pairs(),
    chunks=st.tuples(*[st.integers(1, 6)] * 6),
    block_voxels=st.sampled_from([1, 5, 30, 200, 2**24]),
    planar=st.booleans(),
    ignore=st.sampled_from([None, 0, 2]),
    seed=st.integers(0, 2**16),
)
def test_blocks_of_any_shape_in_any_order_equal_the_whole(
    pair: Pair, chunks: Any, block_voxels: int, planar: bool, ignore: int | None, seed: int
) -> None:
    true, predicted = pair
    rng = np.random.default_rng(seed)
    lower = tuple(int(rng.integers(0, n)) for n in true.shape)
    roi = Box(lower, tuple(int(rng.integers(a + 1, n + 1)) for a, n in zip(lower, true.shape)))
    whole = Contingency.of(
        true[roi.slices], predicted[roi.slices], planar=planar, ignore=ignore, image=lower[0] * planar
    )
    with TemporaryDirectory() as folder:
        comparison = InstanceComparison(
            labels=stored(folder, "labels", predicted.astype("u8"), chunks[:3]),
            truth=stored(folder, "truth", true.astype("u2"), chunks[3:]),
            roi=roi,
            planar=planar,
            ignore=ignore,
            block_voxels=block_voxels,
        )
        order = rng.permutation(len(comparison.blocks))
        total = Contingency.merge(comparison.table(int(index)) for index in order)
        assert total == whole
        if not len(whole):
            with pytest.raises(InputError, match="no voxel of this region is labelled"):
                comparison.finish(total)
            return
        scores = comparison.finish(total)
        assert scores == InstanceScores.of(whole)
        assert scores == evaluate_instances(
            comparison.labels,
            comparison.truth,
            roi=roi,
            planar=planar,
            ignore=ignore,
            block_voxels=block_voxels,
        )


def close(a: Any, b: Any) -> bool:
    """Equal but for the order of summing."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b or (a is not None and b is not None and a == pytest.approx(b, abs=1e-12))


@settings(max_examples=30)
@given(pair=label_pairs(), seed=st.integers(0, 2**16), planar=st.booleans())
def test_names_of_objects_do_not_matter_however_large(pair: Pair, seed: int, planar: bool) -> None:
    rng = np.random.default_rng(seed)
    renamed = []
    for ids in pair:
        names = np.unique(rng.integers(2**63, 2**64, 100, dtype=np.uint64))
        rng.shuffle(names)
        renamed.append(np.where(ids == 0, np.uint64(0), names[ids]))
    expected, found = scores_of(*pair, planar=planar), scores_of(*renamed, planar=planar)
    assert close(found.to_dict(), expected.to_dict())


@settings(max_examples=30)
@given(pair=label_pairs(), ignore=st.integers(0, 3))
def test_ignored_voxels_count_nowhere(pair: Pair, ignore: int) -> None:
    true, predicted = pair
    known = true != ignore
    assert Contingency.of(true, predicted, ignore=ignore) == Contingency.of(true[known], predicted[known])


# Partitions


@settings(max_examples=60)
@given(label_pairs())
def test_rand_and_variation_equal_skimage(pair: Pair) -> None:
    true, predicted = pair
    table = Contingency.of(true, predicted)
    found = adapted_rand(table)
    with np.errstate(all="ignore"):
        # What skimage 0.26 calls precision is recall by its own documentation (its issue 6485).
        error, recall, precision = adapted_rand_error(true, predicted)
    for figure, expected in (
        (found.error, error),
        (found.precision, precision),
        (found.recall, recall),
    ):
        assert figure is None if np.isnan(expected) else figure == pytest.approx(float(expected), abs=1e-12)
    whole = variation(table)
    assert (whole.split, whole.merge) == pytest.approx(tuple(variation_of_information(true, predicted)))
    if (true > 0).any():
        restricted = variation(table, foreground=True)
        assert (restricted.split, restricted.merge) == pytest.approx(
            tuple(variation_of_information(true, predicted, ignore_labels=[0])), abs=1e-12
        )


def challenge_segments(true: Ids, predicted: Ids) -> tuple[list[int], list[int]]:
    """The voxels that count for ISBI 2012; each that is predicted 0 gets an id of its own."""
    pairs = [(t, p) for t, p in zip(true.ravel().tolist(), predicted.ravel().tolist()) if t != 0]
    own = (-k for k in range(1, len(pairs) + 1))
    return [t for t, _ in pairs], [p if p != 0 else next(own) for _, p in pairs]


@settings(max_examples=60)
@given(label_pairs(most=5))
def test_v_rand_is_drawing_two_voxels(pair: Pair) -> None:
    true, predicted = challenge_segments(*pair)
    found = v_rand(Contingency.of(*pair))
    if not true:
        assert found.split is found.merge is found.f_score is None
        return
    voxels = range(len(true))
    drawn = [(true[a] == true[b], predicted[a] == predicted[b]) for a in voxels for b in voxels]
    both, in_truth = sum(t and p for t, p in drawn), sum(t for t, _ in drawn)
    in_prediction = sum(p for _, p in drawn)
    assert found.split == pytest.approx(both / in_truth)
    assert found.merge == pytest.approx(both / in_prediction)
    assert found.f_score == pytest.approx(2 * both / (in_truth + in_prediction))


def entropy(items: list[Any]) -> float:
    return sum(-n / len(items) * math.log2(n / len(items)) for n in Counter(items).values())


@settings(max_examples=60)
@given(label_pairs())
def test_v_info_is_mutual_information_over_entropy(pair: Pair) -> None:
    true, predicted = challenge_segments(*pair)
    found = v_info(Contingency.of(*pair))
    if not true:
        assert found.split is found.merge is found.f_score is None
        return
    of_truth, of_prediction = entropy(true), entropy(predicted)
    mutual = of_truth + of_prediction - entropy(list(zip(true, predicted)))

    def over(whole: float) -> Any:
        return pytest.approx(mutual / whole if whole else 1.0, abs=1e-9)

    assert found.split == over(of_prediction)
    assert found.merge == over(of_truth)
    assert found.f_score == over((of_truth + of_prediction) / 2)
    assert all(0 <= score <= 1 for score in (found.split, found.merge, found.f_score) if score is not None)


def test_splits_cost_split_and_recall_merges_cost_merge_and_precision() -> None:
    one, four = np.ones((1, 4, 4), np.int64), np.arange(1, 17).reshape(1, 4, 4) // 5 + 1
    split, merged = Contingency.of(one, four), Contingency.of(four, one)
    for table, worse, better in ((split, "split", "merge"), (merged, "merge", "split")):
        assert getattr(variation(table), worse) > 1
        assert getattr(variation(table), better) == 0
        for score in (v_rand(table), v_info(table)):
            assert getattr(score, worse) < 0.5
            assert getattr(score, better) == 1
    assert adapted_rand(split).precision == adapted_rand(merged).recall == 1
    assert adapted_rand(split).recall == adapted_rand(merged).precision < 0.5


# Objects


def dense_iou(true: Ids, predicted: Ids) -> NDArray[np.float64]:
    """IoU of every true with every predicted object."""
    rows, columns = ([k for k in np.unique(ids) if k] for ids in (true, predicted))
    iou = np.zeros((len(rows), len(columns)))
    for (a, t), (b, p) in product(enumerate(rows), enumerate(columns)):
        iou[a, b] = ((true == t) & (predicted == p)).sum() / ((true == t) | (predicted == p)).sum()
    return iou


@settings(max_examples=60)
@given(label_pairs())
def test_matching_equals_stardist_and_cellpose(pair: Pair) -> None:
    iou = dense_iou(*pair)
    overlaps = Overlaps.of(Contingency.of(*pair))
    for threshold in (0.1, 0.3, *THRESHOLDS):
        found = overlaps.match(threshold)
        # The cost matrix of both packages: as many matches as can be, then the highest IoU.
        cost = -(iou >= threshold).astype(float) - iou / (2 * max(1, min(iou.shape)))
        rows, columns = linear_sum_assignment(cost)
        ok = iou[rows, columns] >= threshold
        tp = int(ok.sum())
        fp, fn = iou.shape[1] - tp, iou.shape[0] - tp
        assert (found.true_positives, found.false_positives, found.false_negatives) == (tp, fp, fn)
        if tp + fp + fn == 0:
            assert found.average_precision is found.f1 is found.mean_matched_iou is None
            continue
        assert found.average_precision == pytest.approx(tp / (tp + fp + fn))
        assert found.f1 == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert found.precision == pytest.approx(tp / max(1, tp + fp))
        assert found.recall == pytest.approx(tp / max(1, tp + fn))
        if threshold >= 0.5:  # below, the packages also weigh pairs that do not count
            summed = float(iou[rows, columns][ok].sum())
            assert found.mean_matched_iou == pytest.approx(summed / max(1, tp))
            assert found.panoptic_quality == pytest.approx(summed / (tp + fp / 2 + fn / 2))


@settings(max_examples=40)
@given(pair=label_pairs(most=6), threshold=st.sampled_from([0.01, 0.1, 0.2, 0.3, 0.5]))
def test_no_assignment_is_better(pair: Pair, threshold: float) -> None:
    iou = dense_iou(*pair)
    iou = iou if iou.shape[0] <= iou.shape[1] else iou.T
    assume(iou.shape[0] <= 5)
    counted = np.where(iou >= threshold, iou, 0)
    best = max(
        (int(np.count_nonzero(chosen)), round(float(chosen.sum()), 9))
        for columns in permutations(range(iou.shape[1]), iou.shape[0])
        for chosen in [counted[np.arange(iou.shape[0]), list(columns)]]
    )
    found = Overlaps.of(Contingency.of(*pair)).match(threshold)
    assert (found.true_positives, round(found.iou_sum, 9)) == best


@settings(max_examples=40)
@given(label_pairs())
def test_panoptic_quality_is_its_definition(pair: Pair) -> None:
    iou = dense_iou(*pair)
    matched = iou[iou > 0.5]  # unique by the paper's theorem
    fp, fn = (n - matched.size for n in (iou.shape[1], iou.shape[0]))
    found = scores_of(*pair).to_dict()["panoptic"]
    if not sum(iou.shape):
        assert set(found.values()) == {None}
        return
    assert found["quality"] == pytest.approx(float(matched.sum()) / (matched.size + fp / 2 + fn / 2))
    assert found["segmentation"] == pytest.approx(float(matched.mean()) if matched.size else 0.0)
    assert found["quality"] == pytest.approx(found["segmentation"] * found["recognition"])


@settings(max_examples=60)
@given(pair=label_pairs(), planar=st.booleans())
def test_seg_is_the_challenges(pair: Pair, planar: bool) -> None:
    true, predicted = pair
    frames = list(zip(true, predicted)) if planar else [(true, predicted)]
    jaccards = []
    for t, p in frames:
        for k in np.unique(t[t > 0]):
            inside = Counter(p[t == k].tolist())
            best, common = max(inside.items(), key=lambda item: item[1])
            covers = best != 0 and common > 0.5 * (t == k).sum()
            jaccards.append(common / int(((t == k) | (p == best)).sum()) if covers else 0.0)
    found = scores_of(true, predicted, planar=planar).seg
    assert found is None if not jaccards else found == pytest.approx(float(np.mean(jaccards)))


@settings(max_examples=30)
@given(label_pairs())
def test_foreground_dice_is_that_of_two_masks(pair: Pair) -> None:
    true, predicted = pair[0] > 0, pair[1] > 0
    whole = true.sum() + predicted.sum()
    found = scores_of(*pair).dice
    assert found is None if not whole else found == pytest.approx(float(2 * (true & predicted).sum() / whole))


def test_an_object_cut_in_halves_is_found_once_and_not_by_panoptic_quality() -> None:
    scores = scores_of(np.array([[7, 7, 7, 7]]), np.array([[1, 1, 2, 2]]))
    half = scores.matchings[0]
    assert (half.threshold, half.true_positives, half.false_positives, half.false_negatives) == (0.5, 1, 1, 0)
    assert half.mean_matched_iou == 0.5
    assert scores.panoptic.true_positives == 0
    assert scores.seg == 0  # covers half, not more than half


def test_matching_takes_more_pairs_before_better_ones() -> None:
    """1 and 3 overlap best, but then 2 and 4 are left alone."""
    true = np.array([[1] * 8 + [2] * 2])
    predicted = np.array([[4] * 2 + [3] * 8])
    iou = dense_iou(true, predicted)
    assert iou == pytest.approx(np.array([[6 / 10, 2 / 8], [2 / 8, 0]]))
    found = Overlaps.of(Contingency.of(true, predicted)).match(0.2)
    assert found.true_positives == 2
    assert found.iou_sum == pytest.approx(2 / 8 + 2 / 8)


def test_three_voxels_of_five_reach_a_threshold_of_0_6() -> None:
    scores = scores_of(np.array([1, 1, 1, 1, 1]), np.array([2, 2, 2, 0, 0]))
    assert [m.threshold for m in scores.matchings] == THRESHOLDS
    assert [m.true_positives for m in scores.matchings] == [1, 1, 1] + 7 * [0]
    assert scores.mean_average_precision == pytest.approx(0.3)


# Stacks of planes


@settings(max_examples=40)
@given(label_pairs())
def test_planes_are_images_of_their_own(pair: Pair) -> None:
    true, predicted = pair
    stack = scores_of(true, predicted, planar=True)
    planes = [scores_of(t, p) for t, p in zip(true, predicted)]
    assert stack.images == len(planes)

    def mean(values: list[float | None]) -> Any:
        known = [value for value in values if value is not None]
        return pytest.approx(float(np.mean(known)), abs=1e-12) if known else None

    document, documents = stack.to_dict(), [plane.to_dict() for plane in planes]
    for measure in (
        "adapted_rand",
        "variation_of_information",
        "variation_of_information_foreground",
        "v_rand",
        "v_info",
    ):
        for key, value in document[measure].items():
            assert value == mean([d[measure][key] for d in documents])
    assert stack.true_objects == sum(plane.true_objects for plane in planes)
    for k, found in enumerate(stack.matchings):
        assert found.true_positives == sum(plane.matchings[k].true_positives for plane in planes)
        assert found.false_positives == sum(plane.matchings[k].false_positives for plane in planes)


def test_one_id_in_two_planes_is_two_objects() -> None:
    true = np.array([[[1, 1, 0]], [[1, 1, 0]]])
    predicted = np.array([[[1, 1, 0]], [[0, 0, 0]]])
    volume, stack = scores_of(true, predicted), scores_of(true, predicted, planar=True)
    assert (volume.images, volume.true_objects, volume.seg) == (1, 1, 0.0)
    assert (stack.images, stack.true_objects, stack.seg) == (2, 2, 0.5)


# Nothing to measure


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        ([], [], dict.fromkeys(["seg", "dice", "error", "v_rand", "split", "ap", "quality"])),
        (
            [0, 0],
            [0, 0],
            {**dict.fromkeys(["seg", "dice", "error", "v_rand", "ap", "quality"]), "split": 0},
        ),
        (
            [0, 0],
            [5, 5],
            {"seg": None, "dice": 0, "error": None, "v_rand": None, "split": 0, "ap": 0, "quality": 0},
        ),
        (
            [5, 5],
            [0, 0],
            {"seg": 0, "dice": 0, "error": 0, "v_rand": 2 / 3, "split": 0, "ap": 0, "quality": 0},
        ),
        ([5], [6], {"seg": 1, "dice": 1, "error": None, "v_rand": 1, "split": 0, "ap": 1, "quality": 1}),
        ([5, 5], [6, 6], {"seg": 1, "dice": 1, "error": 0, "v_rand": 1, "split": 0, "ap": 1, "quality": 1}),
    ],
)
def test_what_is_not_defined_is_null_and_never_nan(
    true: list[int], predicted: list[int], expected: dict[str, float | None]
) -> None:
    document = scores_of(np.array(true, int), np.array(predicted, int)).to_dict()
    json.dumps(document, allow_nan=False)
    found = {
        "seg": document["seg"],
        "dice": document["dice"],
        "error": document["adapted_rand"]["error"],
        "v_rand": document["v_rand"]["f_score"],
        "split": document["variation_of_information"]["split"],
        "ap": document["mean_average_precision"],
        "quality": document["panoptic"]["quality"],
    }
    assert found == {key: None if v is None else pytest.approx(v) for key, v in expected.items()}


# Real labels


def nuclei() -> Ids:
    """Three images as a stack of planes."""
    names = ("00071198d059", "0d3640c1f1b8", "7b5987a24dd5")
    planes = []
    for name in names:
        with Image.open(DATA / "dsb2018" / f"{name}_label.png") as file:
            planes.append(np.asarray(file).astype(np.int64)[:256, :256])
    size = np.min([plane.shape for plane in planes], axis=0)
    return np.stack([plane[: size[0], : size[1]] for plane in planes])


def neurons() -> Ids:
    with h5py.File(DATA / "fib25" / "fib25_crop.h5") as file:
        return np.asarray(file["label"][:40]).astype(np.int64)


REAL = pytest.mark.parametrize(("load", "planar"), [(nuclei, True), (neurons, False)])


@REAL
def test_real_objects_cut_joined_and_eroded(load: Callable[[], Ids], planar: bool) -> None:
    truth = relabel_sequential(load())[0]
    same = scores_of(truth, truth[...], planar=planar)
    assert same.adapted_rand.error == same.variation.total == 0
    assert same.v_rand.f_score == same.v_info.f_score == same.seg == same.dice == 1
    assert same.mean_average_precision == same.panoptic.panoptic_quality == 1

    # Cut at planes of equal x: nothing is joined.
    x = np.arange(truth.shape[-1]) // (truth.shape[-1] // 8)
    cut = scores_of(truth, truth * 8 + x.clip(max=7) * (truth > 0), planar=planar)
    assert cut.variation_foreground.merge == pytest.approx(0, abs=1e-12)
    assert cut.v_rand.merge == cut.adapted_rand.precision == 1
    assert cut.variation_foreground.split > 0.1
    assert cut.v_rand.split < 1
    assert cut.predicted_objects > cut.true_objects
    assert cut.dice == 1

    # Ids 1 and 2, 3 and 4, ... joined: nothing is cut.
    joined = scores_of(truth, (truth + 1) // 2, planar=planar)
    assert joined.variation_foreground.split == pytest.approx(0, abs=1e-12)
    assert joined.v_rand.split == joined.adapted_rand.recall == 1
    assert joined.variation_foreground.merge > 0.1
    assert joined.v_rand.merge < 1
    assert joined.predicted_objects < joined.true_objects

    # Ever smaller objects: every measure of fit falls, none rises.
    before, worn = same, truth
    for _ in range(3):
        size = (1, 3, 3)
        whole = grey_erosion(worn, size) == np.where(worn > 0, worn, -1)
        worn = np.where(whole & (-grey_erosion(-worn, size) == worn), worn, 0)
        eroded = scores_of(truth, worn, planar=planar)
        assert eroded.seg < before.seg
        assert eroded.dice < before.dice
        assert eroded.v_rand.split < before.v_rand.split
        assert eroded.mean_average_precision < before.mean_average_precision
        assert eroded.panoptic.panoptic_quality < before.panoptic.panoptic_quality
        precisions = [m.average_precision for m in eroded.matchings]
        assert precisions == sorted(precisions, reverse=True)
        before = eroded


def test_real_neurons_equal_skimage() -> None:
    truth = neurons()
    predicted = np.roll(truth, 5, axis=2)
    found = scores_of(truth, predicted)
    small, small_predicted = relabel_sequential(truth)[0], relabel_sequential(predicted)[0]
    error, recall, precision = adapted_rand_error(small, small_predicted)
    rand = found.adapted_rand
    assert (rand.error, rand.precision, rand.recall) == pytest.approx((error, precision, recall))
    assert (found.variation.split, found.variation.merge) == pytest.approx(
        tuple(variation_of_information(small, small_predicted))
    )


def test_memory_does_not_grow_with_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    read = Volume.read
    monkeypatch.setattr(Volume, "read", lambda self, box: seen.append(box.size) or read(self, box))
    labels = stored(tmp_path, "labels", np.ones((32, 64, 64), "u8"), (8, 8, 8))
    evaluate_instances(labels, labels, block_voxels=4096)
    assert max(seen) <= 4096
    assert sum(seen) == 2 * 32 * 64 * 64


# The command, and what it refuses

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["unet-flows", "evaluate", *map(str, arguments), "--instances"])
        code = cli.run()
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def volumes(tmp_path: Path) -> tuple[Path, Path]:
    """Labels and truth of three planes, in which 255 marks what nobody labelled."""
    truth = nuclei()
    stored(tmp_path, "labels", grey_erosion(truth, (1, 3, 3)).astype("u4"), (1, 100, 100))
    truth[:, :40] = 255
    stored(tmp_path, "truth", truth.astype("u2"), (3, 64, 64))
    return tmp_path / "labels.zarr", tmp_path / "truth.zarr"


def test_the_command_prints_one_document(run: Run, volumes: tuple[Path, Path]) -> None:
    code, out, err = run(*volumes, "--planar", "--ignore", 255, "--roi", "0:2,0:200,0:256", "--json")
    assert code == 0, err
    document = json.loads(out)
    labels, truth = (np.asarray(zarr.open_array(path)[:2, :200]) for path in volumes)
    expected = scores_of(truth, labels, planar=True, ignore=255).to_dict()
    assert document == {
        "command": "evaluate",
        "labels": str(volumes[0]),
        "truth": str(volumes[1]),
        "roi": "0:2,0:200,0:256",
        "planar": True,
        "ignore": 255,
        **json.loads(json.dumps(expected)),
        "notes": [],
    }
    assert document["images"] == 2
    assert document["voxels"] == 2 * 160 * 256


def test_the_command_prints_tables_for_people(run: Run, volumes: tuple[Path, Path]) -> None:
    code, out, err = run(*volumes, "--planar", "--ignore", 255)
    assert code == 0, err
    for words in ("adapted Rand error", "V-Rand", "V-Info", "panoptic quality", "SEG", "0.50", "mean AP"):
        assert words in out
    assert "in 3 planes" in out


def test_what_cannot_be_compared_is_refused(run: Run, volumes: tuple[Path, Path], tmp_path: Path) -> None:
    labels, truth = volumes
    stored(tmp_path, "float", np.ones((3, 256, 256), "f4"))
    stored(tmp_path, "small", np.ones((3, 256, 255), "u1"))
    stored(tmp_path, "negative", np.full((3, 256, 256), -1, "i4"))

    def refused(*arguments: object) -> str:
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), err
        return err

    assert "the truth must hold integers" in refused(labels, tmp_path / "float.zarr")
    assert "the prediction must hold integers" in refused(tmp_path / "float.zarr", truth)
    assert "(3, 256, 255)" in refused(labels, tmp_path / "small.zarr")
    message = refused(labels, tmp_path / "negative.zarr")
    assert "true ids must not be negative" in message
    assert "--ignore" in message
    assert "predicted ids must not be negative" in refused(tmp_path / "negative.zarr", truth)
    assert "other than -1" in refused(labels, tmp_path / "negative.zarr", "--ignore", -1)
    assert "ROI is not inside" in refused(labels, truth, "--roi", "0:4,0:10,0:10")
    assert "compares ids as they are" in refused(labels, truth, "--target", "foreground")
    assert "no such volume" in refused(labels, tmp_path / "absent.zarr")


def test_tables_refuse_what_is_not_a_pair_of_labels() -> None:
    whole = np.zeros((2, 2), np.int64)
    with pytest.raises(InputError, match="different shapes"):
        Contingency.of(whole, whole[:1])
    with pytest.raises(InputError, match="must be integers"):
        Contingency.of(whole, whole.astype(float))
    overlaps = Overlaps.of(Contingency.of(whole, whole))
    for threshold in (0.0, 1.1, math.nan):
        with pytest.raises(InputError, match=r"\(0, 1\]"):
            overlaps.match(threshold)
