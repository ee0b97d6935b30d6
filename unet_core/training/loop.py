"""The steps of a training, with validation by exact tiling on regions that they never saw.

Source: Ronneberger 2015, section 3, with AdamW (Loshchilov & Hutter 2019) instead of SGD. A step is
defined by its number: patches, augmentation and learning rate follow from (seed, step), whoever
computes them and whenever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unet_core.architecture import UNetSpec
from unet_core.errors import RunError
from unet_core.evaluation import Scores, confusion_of
from unet_core.inference import Predictor, predict_tiles
from unet_core.loss import cross_entropy
from unet_core.model import UNet, channels_last
from unet_core.sampling import LabelledRegion, generator
from unet_core.training.plan import Plan, prepare
from unet_core.training.settings import TrainSettings, learning_rate

_AHEAD = 3  # batches that are read while the network works


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step, as plain data. `scores` where a validation followed it (`evaluation.Scores.to_dict`)."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    patches_per_second: float
    scores: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """The state after `step` steps: mean loss since the record before, scores on the validation regions."""

    step: int
    loss: float
    learning_rate: float
    scores: Scores | None

    @property
    def foreground_iou(self) -> float:
        """Mean IoU over the classes above 0: what the best weights are chosen by. -1 without validation."""
        if self.scores is None:
            return -1.0
        known = [value for value in self.scores.iou[1:] if value is not None]
        return sum(known) / len(known) if known else 0.0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The network with its best weights (eval mode, on the CPU), and how it got them."""

    plan: Plan
    network: UNet
    history: tuple[Record, ...]
    best: Record
    seconds: float


def train(
    sources: Sequence[LabelledRegion],
    validation: Sequence[LabelledRegion],
    spec: UNetSpec,
    settings: TrainSettings,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train a network; keep the weights that validate best, or the last ones without validation.

    `on_progress` is called in this thread after every step. On a CPU the same arguments and number of
    threads give the same weights to the bit.

    Raises
    ------
    InputError
        See `prepare`; nothing was started.
    RunError
        The loss is not finite, with the step and its patches; `DataError`: unusable data in a patch.
    """
    return run(prepare(sources, validation, spec, settings), on_progress=on_progress)


def run(plan: Plan, *, on_progress: Callable[[Progress], None] | None = None) -> Trained:
    """The steps of a plan; `train` without its checks."""
    device = torch.device(plan.settings.device)
    began = perf_counter()
    # Initial weights and dropout draw from torch's global generators: seeded here, given back after.
    used = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=used):
        torch.manual_seed(plan.settings.seed)
        network = UNet(plan.spec).to(device)
        network = network.to(memory_format=channels_last(plan.spec.ndim))  # type: ignore[call-overload]
        history, best, weights = _steps(plan, network, on_progress)
    network.load_state_dict(weights)
    return Trained(
        plan=plan,
        network=network.cpu().eval(),
        history=history,
        best=best,
        seconds=perf_counter() - began,
    )


def validate(plan: Plan, network: UNet) -> Scores:
    """Count true and predicted classes over the validation regions, tile by tile, exactly."""
    classes = plan.spec.classes
    confusion = np.zeros((classes, classes), np.int64)
    for region, scale in zip(plan.validation, plan.validation_scales):
        predictor = Predictor(network, scale=scale, device=plan.settings.device)
        for box, found in predict_tiles(region.image, plan.validation_tiling(region), predictor):
            confusion += confusion_of(plan.sampler.labelling.read(region, box), found, classes)
    return Scores(confusion, plan.class_names)


@dataclass(frozen=True)
class _Batch:
    """image float32 (item, channel, *spatial) with the network's context, classes uint8 (item, *spatial)."""

    image: Tensor
    classes: Tensor
    places: tuple[str, ...]


def _batch(plan: Plan, step: int) -> _Batch:
    images, classes, places = [], [], []
    for item in range(plan.settings.batch):
        rng = generator(plan.settings.seed, step, item)
        patch = plan.sampler.draw(rng)
        image, truth = plan.augmentation.apply(patch.image, patch.classes, rng)
        images.append(image if plan.spec.ndim == 3 else image[:, 0])
        classes.append(truth if plan.spec.ndim == 3 else truth[0])
        places.append(f"{plan.sampler.sources[patch.source].image.url} in {patch.box}")
    return _Batch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(classes)), tuple(places))


def _batches(plan: Plan) -> Generator[_Batch]:
    """The batches of all steps in order, read and augmented by another thread, a few ahead."""
    waiting: deque[Future[_Batch]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
        try:
            for step in range(1, plan.settings.steps + 1):
                waiting.append(reader.submit(_batch, plan, step))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _steps(
    plan: Plan, network: UNet, on_progress: Callable[[Progress], None] | None
) -> tuple[tuple[Record, ...], Record, dict[str, Tensor]]:
    """All steps: the records, the best of them, and its weights."""
    settings = plan.settings
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    weights = None if plan.class_weights is None else torch.tensor(plan.class_weights, device=settings.device)
    history: list[Record] = []
    best: tuple[Record, dict[str, Tensor]] | None = None
    losses: list[float] = []
    working = 0.0  # seconds spent in steps, without validation
    with closing(_batches(plan)) as batches:
        began = perf_counter()
        for step, batch in enumerate(batches, 1):
            rate = learning_rate(step, settings)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = _step(network.train(), optimiser, batch, weights, settings)
            if not isfinite(loss):
                raise RunError(
                    f"the loss is not finite at step {step} of {settings.steps}",
                    where="; ".join(batch.places),
                    expected="a number",
                    found=loss,
                    fix="lower the learning rate",
                )
            losses.append(loss)
            working += perf_counter() - began
            scores = None
            if step % settings.validate_every == 0 or step == settings.steps:
                scores = validate(plan, network) if plan.validation else None
                mean = sum(losses) / len(losses)
                history.append(Record(step=step, loss=mean, learning_rate=rate, scores=scores))
                losses.clear()
                if best is None or scores is None or history[-1].foreground_iou > best[0].foreground_iou:
                    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
                    best = history[-1], state
            if on_progress is not None:
                on_progress(
                    Progress(
                        step=step,
                        steps=settings.steps,
                        loss=loss,
                        learning_rate=rate,
                        patches_per_second=step * settings.batch / working,
                        scores=None if scores is None else scores.to_dict(),
                    )
                )
            began = perf_counter()
    if best is None:
        raise RunError("no step was done", expected="at least 1", found=settings.steps)
    return tuple(history), *best


def _step(
    network: UNet,
    optimiser: torch.optim.Optimizer,
    batch: _Batch,
    weights: Tensor | None,
    settings: TrainSettings,
) -> float:
    """One forward, backward and update; the loss before it."""
    image = batch.image.to(device=settings.device, memory_format=channels_last(network.spec.ndim))
    classes = batch.classes.to(settings.device)
    logits = network(image)
    # The surplus above the last whole stride has no label: 388 -> 384.
    logits = logits[(..., *(slice(n) for n in classes.shape[1:]))]
    loss = cross_entropy(logits, classes, weights=weights)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
    optimiser.step()
    return loss.item()
