"""Training learns, repeats itself to the bit, validates exactly, and refuses what it cannot do."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from scipy import ndimage
from skimage.segmentation import find_boundaries
from strategies import mirror, write_array

from unet_core.architecture import UNetSpec
from unet_core.augment import AugmentSettings
from unet_core.checkpoint import load_model
from unet_core.errors import DataError, InputError, RunError
from unet_core.geometry import Box, round_up
from unet_core.loss import balanced_weights, cross_entropy, weight_sum
from unet_core.sampling import LabelledRegion
from unet_core.targets import IGNORE
from unet_core.training import TrainSettings, learning_rate, prepare, run, save, train, validate
from unet_core.volumes import Store, Volume

TINY = UNetSpec.build(ndim=3, depth=1, base=4, norm="batch")
QUICK = TrainSettings(target="foreground", patch=(4, 4, 4), steps=3, batch=2, validate_every=2)
CALM = AugmentSettings(brightness=0.05, contrast=0.05, noise=0.0)


def blobs(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of smooth blobs, and an image whose noise no threshold on single voxels sees through."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), [0 if n == 1 else 2.5 for n in shape])
    inside = smooth > np.quantile(smooth, 0.6)
    ids, _ = ndimage.label(inside)
    image = 100 + 60 * inside + rng.normal(0, 25, shape)
    return image.clip(0, 255).astype(np.uint8), ids.astype(np.uint16)


@pytest.fixture
def halves(tmp_path: Path):
    """Training and validation halves of one synthetic volume."""
    image, ids = blobs((24, 24, 24), seed=0)
    return split(tmp_path, image, ids)


def split(folder: Path, image: np.ndarray, labels: np.ndarray) -> tuple[LabelledRegion, LabelledRegion]:
    """Cut along x."""
    volumes = [
        Volume.open(str(write_array(folder / f"{name}.zarr", data)))
        for name, data in (("image", image), ("labels", labels))
    ]
    shape = image.shape
    cut = shape[2] * 2 // 3
    regions = Box((0, 0, 0), (*shape[:2], cut)), Box((0, 0, cut), shape)
    first, second = (LabelledRegion(image=volumes[0], labels=volumes[1], region=r) for r in regions)
    return first, second


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values())
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("shape", "spec", "patch"),
    [
        ((24, 24, 48), UNetSpec.build(ndim=3, depth=1, base=16, norm="batch", dropout=0.0), (12, 12, 12)),
        (  # with surplus output above the patch: labels on the wrong voxels would not reach 0.9
            (4, 64, 128),
            UNetSpec.build(ndim=2, depth=2, base=16, norm="batch", dropout=0.0, upsampling="nearest"),
            (1, 40, 40),
        ),
    ],
    ids=["3d", "2d"],
)
def test_a_small_network_learns_what_no_threshold_tells(tmp_path, shape, spec, patch):
    image, ids = blobs(shape, seed=3) if spec.ndim == 3 else stack_of_blobs(shape)
    source, held_out = split(tmp_path, image, ids)
    settings = TrainSettings(
        target="foreground", patch=patch, steps=60, batch=2, learning_rate=1e-2, augment=CALM
    )
    trained = train([source], [held_out], spec, settings)
    truth = ids[held_out.region.slices] > 0
    guesses = [image[held_out.region.slices] > t for t in range(80, 200, 5)]
    best_threshold = max((g & truth).sum() / (g | truth).sum() for g in guesses)
    assert best_threshold < 0.83
    assert trained.best.foreground_iou > 0.9


def stack_of_blobs(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Planes that have nothing to do with each other."""
    planes = [blobs((1, *shape[1:]), seed) for seed in range(shape[0])]
    image, ids = (np.concatenate(parts) for parts in zip(*planes))
    return image, ids


def test_the_same_seed_gives_the_same_weights_and_another_does_not(halves):
    source, held_out = halves
    spec = replace(TINY, dropout=0.5)
    first = train([source], [held_out], spec, QUICK)
    torch.rand(1)  # nothing that others draw matters
    second = train([source], [held_out], spec, QUICK)
    assert same_weights(first.network, second.network)
    assert [r.loss for r in first.history] == [r.loss for r in second.history]
    assert first.history[-1].scores == second.history[-1].scores
    other = train([source], [held_out], spec, replace(QUICK, seed=1))
    assert not same_weights(first.network, other.network)
    before = torch.get_rng_state()
    train([source], [], spec, QUICK)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("target", ["foreground", "boundary"])
def test_validation_is_that_of_the_whole_volume(halves, target):
    """One forward pass over the mirrored whole, skimage's boundaries: no tile in sight."""
    source, held_out = halves
    spec = UNetSpec.build(ndim=3, depth=1, base=4, upsampling="nearest")
    plan = prepare([source], [held_out], spec, replace(QUICK, target=target))
    network = run(plan).network
    image, ids = (volume.read(volume.box)[0] for volume in (held_out.image, held_out.labels))
    whole = Box((0, 0, 0), tuple(round_up(n, s) for n, s in zip(image.shape, spec.stride)))
    read = mirror(image[None], whole.grow(*spec.context))
    with torch.no_grad():
        logits = network(torch.from_numpy(plan.validation_scales[0].apply(read))[None])[0]
    found = logits.argmax(dim=0).numpy()[held_out.region.slices].astype(bool)
    truth = ids > 0 if target == "foreground" else find_boundaries(ids, mode="thick", connectivity=1)
    truth = truth[held_out.region.slices]
    expected = [[((truth == t) & (found == p)).sum() for p in (False, True)] for t in (False, True)]
    assert 0 < found.sum() < found.size
    np.testing.assert_array_equal(validate(plan, network).confusion, expected)


def test_the_best_weights_are_kept_and_saved(halves, tmp_path):
    source, held_out = halves
    settings = replace(QUICK, steps=8, validate_every=1, learning_rate=0.05)
    reports = []
    trained = train([source], [held_out], TINY, settings, on_progress=reports.append)
    scores = [record.foreground_iou for record in trained.history]
    assert [record.step for record in trained.history] == list(range(1, 9))
    assert trained.best.foreground_iou == max(scores) > min(scores)
    assert trained.best.step < 8  # else this test would not see that weights are put back
    assert validate(trained.plan, trained.network) == trained.best.scores

    assert [r.step for r in reports] == list(range(1, 9))
    assert all(r.steps == 8 and r.patches_per_second > 0 and np.isfinite(r.loss) for r in reports)
    assert json.loads(json.dumps(reports[-1].scores)) == trained.history[-1].scores.to_dict()

    save(Store(tmp_path / "model"), trained)
    stored = load_model(str(tmp_path / "model"))
    assert same_weights(stored.network(), trained.network)
    assert stored.card.class_names == ("background", "foreground")
    assert stored.card.scale == trained.plan.scale
    record = json.loads((tmp_path / "model" / "training.json").read_bytes())
    assert record["settings"]["learning_rate"] == 0.05
    assert record["data"]["training"][0]["region"] == str(source.region)
    assert record["best"]["scores"]["confusion"] == trained.best.scores.confusion.tolist()


def test_validation_images_are_normalised_by_their_own_scale(halves, tmp_path):
    """The held-out image is the same one, darker and with less contrast: nothing may change."""
    source, held_out = halves
    image, ids = (volume.read(volume.box)[0] for volume in (held_out.image, held_out.labels))
    _, darker = split(tmp_path / "darker", image.astype(np.float32) * 0.25 - 100, ids)
    trained = train([source], [held_out], TINY, QUICK)
    plan = prepare([source], [darker], TINY, QUICK)
    assert plan.validation_scales[0] != plan.scale
    expected = trained.best.scores
    differ = np.abs(validate(plan, trained.network).confusion - expected.confusion).sum()
    assert differ < 0.01 * expected.voxels  # rounding of float bins
    assert expected.predicted_voxels[1] > 0


def test_without_validation_the_last_weights_are_kept(halves):
    trained = train([halves[0]], [], TINY, QUICK)
    assert [record.step for record in trained.history] == [2, 3]
    assert trained.best == trained.history[-1]
    assert trained.best.scores is None


def test_the_stored_scale_is_the_mean_by_region(tmp_path):
    rng = np.random.default_rng(0)
    sources = []
    for name, width, bright in (("a", 8, 100), ("b", 24, 200)):
        image = rng.integers(bright, bright + 11, (8, 8, width)).astype(np.uint8)
        sources.append(split(tmp_path / name, image, np.ones_like(image))[0])
    plan = prepare(sources, [], TINY, QUICK)
    first, second = plan.sampler.scales
    sizes = [source.region.size for source in sources]
    expected = np.average([first.offset[0], second.offset[0]], weights=sizes)
    assert plan.scale.offset[0] == pytest.approx(expected)
    assert abs(first.offset[0] - second.offset[0]) > 50


def test_learning_rate_rises_then_falls_to_nearly_nothing():
    settings = replace(QUICK, steps=100, learning_rate=0.01)
    rates = [learning_rate(step, settings) for step in range(1, 101)]
    assert np.argmax(rates) == 9
    assert max(rates) == pytest.approx(0.01)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[9:]) < 0).all()
    assert 0 < rates[-1] < 1e-4
    assert learning_rate(1, replace(QUICK, steps=1)) > 0


def test_loss_is_the_weighted_mean_over_what_is_labelled():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, 4, 5), generator=generator)
    classes = torch.randint(0, 3, (2, 4, 5), generator=generator).to(torch.uint8)
    classes[0, :2] = IGNORE
    weights = torch.tensor([1.0, 4.0, 0.5])
    total = norm = 0.0
    for place in np.argwhere(classes.numpy() != IGNORE):
        n, y, x = (int(i) for i in place)
        k = int(classes[n, y, x])
        total -= float(weights[k] * torch.log_softmax(logits[n, :, y, x], dim=0)[k])
        norm += float(weights[k])
    assert float(cross_entropy(logits, classes, weights=weights)) == pytest.approx(total / norm, rel=1e-5)
    assert float(weight_sum(classes, weights=weights)) == pytest.approx(norm)
    scaled = cross_entropy(logits, classes, weights=7 * weights)
    assert float(scaled) == pytest.approx(total / norm, rel=1e-5)


def test_loss_without_labels_is_zero_with_zero_gradient():
    logits = torch.randn((1, 2, 3, 3), requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 3, 3), IGNORE, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_balanced_weights_favour_the_rare_class():
    weights = balanced_weights([900, 100])
    assert weights[1] / weights[0] == pytest.approx(3)
    assert (900 * weights[0] + 100 * weights[1]) / 1000 == pytest.approx(1)
    assert np.isfinite(balanced_weights([900, 100, 0])).all()


def test_a_loss_that_is_not_finite_stops_with_step_and_place(tmp_path):
    image = np.random.default_rng(0).random((12, 12, 18)).astype(np.float32)
    image[::6, ::6, ::6] = 3e38  # finite, until it is multiplied
    source, _ = split(tmp_path, image, np.ones(image.shape, np.uint8))
    with pytest.raises(RunError, match="step 1 of 3") as caught:
        train([source], [], replace(TINY, norm="none"), QUICK)
    assert "image.zarr in " in caught.value.where
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_unusable_data_met_later_ends_the_run_by_name(halves):
    source, _ = halves
    plan = prepare([source], [], TINY, QUICK)
    zarr.open_array(source.labels.url, mode="r+")[...] = 1
    run(plan)
    semantic = prepare([source], [], TINY, replace(QUICK, target="semantic", class_names=("a", "b")))
    zarr.open_array(source.labels.url, mode="r+")[...] = 2
    with pytest.raises(DataError, match="class 2"):
        run(semantic)
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch": (4, 5, 4)}, "stride"),
        ({"target": "semantic"}, "class"),
        ({"class_weights": (1.0, 1.0, 1.0)}, "one entry per class"),
        ({"class_names": ("only",)}, "one entry per class"),
    ],
)
def test_settings_that_do_not_fit_are_refused(halves, changes, says):
    source, held_out = halves
    with pytest.raises(InputError, match=says):
        prepare([source], [held_out], TINY, replace(QUICK, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"patch": (4, 4)}, "patch"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"foreground": 1.5}, "foreground"),
        ({"class_weights": "even"}, "class_weights"),
        ({"class_weights": (0.0, 0.0)}, "class_weights"),
        ({"device": "gpu"}, "device"),
        ({"target": "membrane"}, "target"),
    ],
)
def test_settings_out_of_range_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        replace(QUICK, **changes)


def test_a_gpu_that_is_not_there_is_refused(halves, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="GPU"):
        prepare([halves[0]], [], TINY, replace(QUICK, device="cuda"))


def test_regions_that_cannot_serve_are_refused(halves, tmp_path):
    source, held_out = halves
    with pytest.raises(InputError, match="nothing to train on"):
        prepare([], [held_out], TINY, QUICK)
    with pytest.raises(InputError, match="share voxels"):
        prepare([source], [replace(held_out, region=held_out.region.shift((0, 0, -1)))], TINY, QUICK)
    with pytest.raises(InputError, match="number of channels"):
        prepare([source], [], replace(TINY, in_channels=3), QUICK)
    flat = UNetSpec.build(ndim=2, depth=1, base=4)
    with pytest.raises(InputError, match="stride"):
        prepare([source], [], flat, QUICK)
    empty, _ = split(tmp_path / "empty", np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8, 8), np.uint8))
    with pytest.raises(InputError, match="only background"):
        prepare([empty], [], TINY, QUICK)
    with pytest.raises(InputError, match="only background"):
        prepare([source], [empty], TINY, QUICK)


def test_nan_in_the_image_is_refused_before_the_first_step(tmp_path):
    image = np.ones((12, 12, 12), np.float32)
    image[1, 2, 3] = np.nan
    source, _ = split(tmp_path, image, np.ones(image.shape, np.uint8))
    with pytest.raises(InputError, match=r"\(1, 2, 3\)"):
        prepare([source], [], TINY, QUICK)
