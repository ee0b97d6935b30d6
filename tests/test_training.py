"""Training learns, repeats itself to the bit, validates exactly, and refuses what it cannot do."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import find_boundaries
from strategies import mirror, seen_from, write_array

from unet_core.architecture import UNetSpec
from unet_core.augment import AugmentSettings
from unet_core.checkpoint import load_model
from unet_core.errors import DataError, InputError, RunError
from unet_core.evaluation import Scores
from unet_core.geometry import Box, round_up
from unet_core.labelling import LabelledRegion
from unet_core.ledger import hold
from unet_core.loss import LossSettings
from unet_core.model import UNet
from unet_core.records import rows_of
from unet_core.training import (
    Checkpoints,
    History,
    Optimisation,
    Plan,
    Ranks,
    Trained,
    TrainSettings,
    network_of,
    notes,
    prepare,
    preview,
    run,
    save,
    trained_by_others,
    validate,
)
from unet_core.training.batches import batches
from unet_core.training.trainer import Trainer
from unet_core.training.validation import Validation
from unet_core.volumes import Store, Volume
from unet_core.weight_map import BorderWeight

TINY = UNetSpec.build(ndim=3, depth=1, base=4, norm="batch")
QUICK = TrainSettings(target="foreground", patch=(4, 4, 4), steps=3, batch=2, validate_every=2)
CALM = AugmentSettings(deformed=0.0, brightness=0.05, contrast=0.05, gamma=0.0, noise=0.0, blur=0.0)


def train(sources, validation, spec: UNetSpec, settings: TrainSettings, **options) -> Trained:
    return run(prepare(sources, validation, spec, settings), **options)


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
    recipe = TrainSettings(target="foreground", patch=patch, steps=60, batch=2, augment=CALM)
    trained = train([source], [held_out], spec, recipe)
    truth = ids[held_out.region.slices] > 0
    guesses = [image[held_out.region.slices] > t for t in range(80, 200, 5)]
    best_threshold = max((g & truth).sum() / (g | truth).sum() for g in guesses)
    assert best_threshold < 0.83
    assert trained.history.best_score > 0.9


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
    assert [r["loss"] for r in first.history.rows] == [r["loss"] for r in second.history.rows]
    assert first.history.best["scores"] == second.history.best["scores"]
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
    plan = prepare([source], [held_out], spec, replace(QUICK, target=target, steps=10, augment=CALM))
    network = run(plan).network
    image, ids = (volume.read(volume.box)[0] for volume in (held_out.image, held_out.labels))
    whole = Box((0, 0, 0), tuple(round_up(n, s) for n, s in zip(image.shape, spec.stride)))
    read = mirror(image[None], whole.grow(*spec.context))
    with torch.no_grad():
        logits = network(torch.from_numpy(plan.validation_scales[0].apply(read))[None])[0]
    found = logits.argmax(dim=0).numpy()[held_out.region.slices].astype(bool)
    region = held_out.region
    around = seen_from(region, ids)
    truth = around > 0 if target == "foreground" else find_boundaries(around, mode="thick", connectivity=1)
    truth = truth[1:-1, 1:-1, 1:-1]
    expected = [[((truth == t) & (found == p)).sum() for p in (False, True)] for t in (False, True)]
    assert 0 < found.sum() < found.size
    np.testing.assert_array_equal(validate(plan, network).scores.confusion, expected)


def test_the_best_weights_are_kept_and_saved(halves, tmp_path):
    source, held_out = halves
    wild = Optimisation(learning_rate=0.05)
    recipe = replace(QUICK, steps=8, validate_every=1, optimisation=wild)
    reports, before = [], time.time()
    plain = replace(TINY, norm="none")
    trained = train([source], [held_out], plain, recipe, on_progress=reports.append)
    history = trained.history
    scores = [row["scores"]["foreground_iou"] for row in history.rows]
    assert [row["step"] for row in history.rows] == list(range(1, 9))
    assert history.best_score == max(scores) > min(scores)
    assert history.best_step < 8  # else this test would not see that weights are put back
    found = validate(trained.plan, trained.network)
    assert found.to_dict() == history.best["scores"]

    assert [r.step for r in reports] == list(range(1, 9))
    times = [row.time for row in rows_of(history.rows)]
    assert before <= times[0] <= times[-1] <= time.time()
    assert all(r.steps == 8 and r.patches_per_second > 0 and np.isfinite(r.loss) for r in reports)
    assert json.loads(json.dumps(reports[-1].scores)) == history.rows[-1]["scores"]

    save(Store(tmp_path / "model"), trained)
    stored = load_model(str(tmp_path / "model"))
    assert same_weights(stored.network(), trained.network)
    assert stored.card.class_names == ("background", "foreground")
    assert stored.card.scale == trained.plan.scale
    assert stored.card.threshold == found.thresholds.best().probability
    record = json.loads((tmp_path / "model" / "training.json").read_bytes())
    assert record["settings"]["optimisation"]["learning_rate"] == 0.05
    assert record["data"]["training"][0]["region"] == str(source.region)
    assert record["best"]["scores"]["confusion"] == found.scores.confusion.tolist()
    assert len((tmp_path / "model" / "metrics.csv").read_text().splitlines()) == 9
    assert "foreground" in (tmp_path / "model" / "README.md").read_text()


def test_validation_images_are_normalised_by_their_own_scale(halves, tmp_path):
    """The held-out image is the same one, darker and with less contrast: nothing may change."""
    source, held_out = halves
    image, ids = (volume.read(volume.box)[0] for volume in (held_out.image, held_out.labels))
    _, darker = split(tmp_path / "darker", image.astype(np.float32) * 0.25 - 100, ids)
    trained = train([source], [held_out], TINY, QUICK)
    plan = prepare([source], [darker], TINY, QUICK)
    assert plan.validation_scales[0] != plan.scale
    expected = validate(trained.plan, trained.network).scores
    differ = np.abs(validate(plan, trained.network).scores.confusion - expected.confusion).sum()
    assert differ < 0.01 * expected.voxels  # rounding of float bins
    assert expected.predicted_voxels[1] > 0


def test_without_validation_the_last_weights_are_kept(halves):
    trained = train([halves[0]], [], TINY, QUICK)
    assert trained.history.best_step == 3
    assert "scores" not in trained.history.best


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


class KilledError(Exception):
    """Stands for the end of the process: nothing after it is written."""


RECIPES = {
    "adamw": replace(QUICK, optimisation=Optimisation(ema=0.9)),
    "sgd, dice": replace(
        QUICK,
        optimisation=Optimisation(optimiser="sgd", schedule="polynomial"),
        loss=LossSettings(kind="cross_entropy+dice"),
        class_weights="balanced",
        augment=AugmentSettings(noise=0.1),
    ),
    "border": replace(QUICK, target="separated", border=BorderWeight(sigma=2.0), batch=3, accumulate=2),
}


@settings(max_examples=6)
@given(kills=st.lists(st.integers(1, 7), max_size=3), recipe=st.sampled_from(sorted(RECIPES)))
def test_a_killed_training_ends_as_one_that_was_not(tmp_path_factory, kills, recipe):
    """k steps, a kill, and the rest, from whatever checkpoint there was: n steps, bit for bit."""
    folder = tmp_path_factory.mktemp("killed")
    source, held_out = split(folder, *blobs((12, 12, 24), seed=0))
    spec = replace(TINY, dropout=0.3)
    wanted = replace(RECIPES[recipe], steps=7, validate_every=3, checkpoint_every=2)
    plan = prepare([source], [held_out], spec, wanted)
    whole = run(plan)
    with hold(Store(folder / "model"), every=60) as lease:
        checkpoints = Checkpoints(Store(folder / "model"), lease.epoch)
        for kill in kills:

            def die(now, kill=kill):
                if now.step == kill:
                    raise KilledError

            # A process that is begun anew knows the plan from the run record alone.
            again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
            with contextlib.suppress(KilledError):
                run(again, checkpoints=checkpoints, on_progress=die)
        resumed = run(plan, checkpoints=checkpoints)
    assert same_weights(resumed.network, whole.network)
    assert without_times(resumed) == without_times(whole)


def without_times(trained: Trained) -> list[dict]:
    times = {"seconds", "time", "patches_per_second"}
    return [{k: v for k, v in row.items() if k not in times} for row in trained.history.rows]


def test_asked_to_stop_it_leaves_a_checkpoint_and_goes_on(halves, tmp_path):
    source, held_out = halves
    # It is asked where a validation is due: that one must not be left out.
    wanted = replace(QUICK, steps=5, validate_every=2, checkpoint_every=100)
    plan = prepare([source], [held_out], TINY, wanted)
    with hold(Store(tmp_path / "model")) as lease:
        checkpoints = Checkpoints(Store(tmp_path / "model"), lease.epoch)
        seen = []
        stops = iter([False, True])
        first = run(plan, checkpoints=checkpoints, should_stop=lambda: next(stops), on_progress=seen.append)
        assert first.stopped
        assert checkpoints.steps() == [2]
        second = run(plan, checkpoints=checkpoints, on_progress=seen.append)
    assert not second.stopped
    assert [now.step for now in seen] == [1, 2, 3, 4, 5]
    whole = run(plan)
    assert same_weights(second.network, whole.network)
    assert without_times(second) == without_times(whole)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_stopped_before_the_first_validation_it_can_go_on(halves, tmp_path, ema):
    """Also where so many steps make a row that there is none yet."""
    source, held_out = halves
    wanted = replace(QUICK, steps=4001, validate_every=100, optimisation=Optimisation(ema=ema))
    plan = prepare([source], [held_out], TINY, wanted)
    with hold(Store(tmp_path / "model")) as lease:
        checkpoints = Checkpoints(Store(tmp_path / "model"), lease.epoch)
        first = run(plan, checkpoints=checkpoints, should_stop=lambda: True)
    assert (first.step, first.stopped, first.history.best_step, first.history.rows) == (1, True, 0, [])
    assert first.history.best == {}
    again = trained_by_others(plan, checkpoints, stopped=True)
    assert replace(again, network=first.network) == first
    assert same_weights(again.network, first.network)


def test_it_ends_early_when_nothing_gets_better(halves):
    source, held_out = halves
    hopeless = Optimisation(learning_rate=1e-9, weight_decay=0.0)
    wanted = replace(QUICK, steps=50, validate_every=1, early_stop=3, optimisation=hopeless)
    trained = train([source], [held_out], replace(TINY, norm="none"), wanted)
    assert trained.history.rows[-1]["step"] == trained.history.best_step + 3 < 50
    trained = train([source], [held_out], TINY, replace(wanted, steps=12))
    assert trained.history.best_step >= trained.plan.settled_from == 10


def test_a_step_in_parts_is_the_same_step(halves):
    """Accumulating gradients changes the memory, not the training."""
    source, _ = halves
    plain = replace(TINY, norm="none", dropout=0.0)
    # Not AdamW: it makes a full step of a gradient that is all rounding error.
    sgd = Optimisation(optimiser="sgd", momentum=0.9)
    both = LossSettings(kind="cross_entropy+dice")
    wanted = replace(QUICK, batch=5, steps=4, loss=both, optimisation=sgd)
    whole = train([source], [], plain, wanted)
    parts = train([source], [], plain, replace(wanted, accumulate=3))
    for one, other in zip(whole.network.parameters(), parts.network.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_trains_float32_weights(halves):
    source, held_out = halves
    plan = prepare([source], [held_out], TINY, replace(QUICK, dtype="bfloat16"))
    trained = run(plan)
    assert {p.dtype for p in trained.network.parameters()} == {torch.float32}
    exact = run(replace(plan, settings=replace(plan.settings, dtype="float32")))
    losses = [[row["loss"] for row in t.history.rows] for t in (trained, exact)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.05)


def test_fine_tuning_begins_with_the_models_weights(halves, tmp_path):
    source, held_out = halves
    trained = train([source], [held_out], TINY, QUICK)
    save(Store(tmp_path / "model"), trained)
    still = replace(QUICK, steps=1, optimisation=Optimisation(learning_rate=1e-9, weight_decay=0.0))
    three = replace(TINY, classes=3)
    wanted = replace(still, target="interior-boundary")
    plan = prepare([source], [held_out], three, wanted, fine_tunes=str(tmp_path / "model"))
    tuned = run(plan).network
    for name, weight in trained.network.named_parameters():
        if not name.startswith("head"):
            torch.testing.assert_close(dict(tuned.named_parameters())[name], weight, rtol=1e-4, atol=1e-6)
    assert tuned.head.out_channels == 3


def test_a_preview_shows_what_validation_scored(halves):
    source, held_out = halves
    trained = train([source], [held_out], TINY, QUICK)
    shown = preview(trained.plan, trained.network)
    middle = (held_out.region.lower[0] + held_out.region.upper[0]) // 2
    ids = held_out.labels.read(held_out.region)[0]
    np.testing.assert_array_equal(shown.truth, ids[middle - held_out.region.lower[0]] > 0)
    assert shown.image.shape[1:] == shown.found.shape == held_out.region.shape[1:]
    again = network_of(trained.plan, trained.network.state_dict())
    np.testing.assert_array_equal(preview(trained.plan, again).found, shown.found)


def test_a_loss_that_is_not_finite_stops_with_step_and_place(tmp_path):
    image = np.random.default_rng(0).random((12, 12, 18)).astype(np.float32)
    image[::6, ::6, ::6] = 3e38  # finite, until it is multiplied
    source, _ = split(tmp_path, image, np.ones(image.shape, np.uint8))
    with pytest.raises(RunError, match="step 1 of 3") as caught:
        train([source], [], replace(TINY, norm="none"), QUICK)
    everything = caught.value.where
    assert everything.count("image.zarr in ") == QUICK.batch
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]
    with pytest.raises(RunError, match="step 1 of 3") as caught:
        train([source], [], replace(TINY, norm="none"), QUICK, ranks=OneOfSeveral())
    assert caught.value.where == everything


def test_weights_that_are_not_finite_are_not_kept(halves, tmp_path, monkeypatch):
    """The loss of a step is that of the weights before it: finite where the step's gradient was not."""
    source, held_out = halves
    wanted = replace(QUICK, steps=6, validate_every=2, checkpoint_every=2)
    plan = prepare([source], [held_out], replace(TINY, norm="none"), wanted)
    step = Trainer.step

    def overflow(self, number, batches):
        loss = step(self, number, batches)
        if number == 4:
            next(self.network.parameters()).data[0] = torch.inf
        return loss

    with hold(Store(tmp_path / "model")) as lease, monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", overflow)
        checkpoints = Checkpoints(Store(tmp_path / "model"), lease.epoch)
        with pytest.raises(RunError, match="step 4 of 6"):
            run(plan, checkpoints=checkpoints)
        assert checkpoints.steps() == [2]
        patched.undo()
        assert same_weights(run(plan, checkpoints=checkpoints).network, run(plan).network)


class OneOfSeveral(Ranks):
    """A rank with the last patch of a step, whose partners add nothing."""

    def share(self, count: int) -> range:
        return range(count - 1, count)


class OthersAhead(Ranks):
    """Stands for ranks that found another checkpoint than this one."""

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 4


def test_ranks_that_would_go_on_from_different_steps_do_not(halves):
    plan = prepare([halves[0]], [], TINY, QUICK)
    with pytest.raises(RunError, match="different checkpoints"):
        run(plan, ranks=OthersAhead())


def test_settings_without_effect_are_told(halves):
    source, held_out = halves
    idle = replace(QUICK, early_stop=2, loss=LossSettings(kind="dice"), class_weights="balanced")
    said = " ".join(notes(prepare([source], [], TINY, idle)))
    assert "early_stop" in said
    assert "class_weights" in said
    assert list(notes(prepare([source], [held_out], TINY, replace(QUICK, early_stop=2)))) == []


def test_every_step_of_a_training_has_the_same_arithmetic(halves, monkeypatch):
    """Validation makes numbers exact on GPUs: the steps before the first one must be so, too."""
    source, held_out = halves
    plan = prepare([source], [held_out], TINY, QUICK)
    cudnn = torch.backends.cudnn
    for name, value in (("allow_tf32", True), ("deterministic", False)):
        monkeypatch.setattr(cudnn, name, value)
    seen = []
    step = Trainer.step

    def watched(self, number, batches):
        seen.append((cudnn.allow_tf32, cudnn.deterministic))
        return step(self, number, batches)

    monkeypatch.setattr(Trainer, "step", watched)
    run(plan)
    assert seen == [(False, True)] * QUICK.steps


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
        ({"accumulate": 3}, "accumulate"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"early_stop": -1}, "early_stop"),
        ({"dtype": "float64"}, "dtype"),
        ({"balance": "volume"}, "balance"),
        ({"target": "semantic", "border": BorderWeight()}, "border"),
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


def test_batch_norm_does_as_in_inference_after_its_share_of_the_steps(halves):
    """Its statistics are then the averages of those that were measured, and training computes with them."""
    half = Optimisation(freeze_norm=0.5)
    plan = prepare([halves[0]], [], TINY, replace(QUICK, steps=6, optimisation=half))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trainer = Trainer(plan, UNet(plan.spec), Ranks())
        statistics, averages = [], []
        for step, parts in enumerate(batches(plan, range(2), first=1, threads=1), 1):
            averages.append(trainer.weights()["down.0.1.running_mean"].clone())
            trainer.step(step, parts)
            statistics.append(trainer.network.state_dict()["down.0.1.running_mean"].clone())
    assert not torch.equal(statistics[1], statistics[2])
    assert all(torch.equal(found, averages[3]) for found in statistics[3:])
    assert not torch.equal(averages[3], statistics[2])


def test_what_is_loaded_lies_in_memory_as_it_did(halves):
    """On a GPU another memory format means other kernels, which may round otherwise."""
    plan = prepare([halves[0]], [], TINY, QUICK)
    with torch.random.fork_rng(devices=[]):
        first, second = (Trainer(plan, UNet(plan.spec), Ranks()) for _ in range(2))
        for step, parts in enumerate(batches(plan, range(2), first=1, threads=1), 1):
            first.step(step, parts)
    tensors, facts = first.state()
    second.load({name: tensor.contiguous() for name, tensor in tensors.items()}, facts)
    loaded, _ = second.state()
    assert any(not tensor.is_contiguous() for tensor in tensors.values())
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
        assert loaded[name].stride() == tensor.stride(), name


def test_a_score_from_before_batch_norm_was_settled_is_not_kept():
    def scored(iou: int) -> Validation:
        return Validation(Scores(np.array([[0, 100 - iou], [0, iou]]), ("background", "foreground")), None)

    history = History()
    kept = [
        history.add_validation(step, scored(iou), settled_from=4)
        for step, iou in [(2, 50), (3, 90), (5, 60), (6, 55), (7, 70)]
    ]
    assert kept == [True, True, True, False, True]
    assert (history.best_step, history.since_best) == (7, 0)
