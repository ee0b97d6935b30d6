"""From the parameters of `train` to what `unet_core.training` takes: regions, a network, settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from flows.config import Pair, TrainConfig
from flows.pairs import expanded, pairs_of
from flows.parsing import parse_box, parse_integers, parse_numbers, parse_shape
from unet_core import training
from unet_core.architecture import UNetSpec
from unet_core.augment import AugmentSettings
from unet_core.geometry import Shape, round_up
from unet_core.labelling import LabelledRegion
from unet_core.ledger import require_complete
from unet_core.loss import LossSettings
from unet_core.targets import DERIVED
from unet_core.tiling import Footprint
from unet_core.volumes import Store, Volume
from unet_core.weight_map import BorderWeight


def labelled_regions(
    config: TrainConfig,
) -> tuple[list[LabelledRegion], list[float], list[LabelledRegion]]:
    """Regions to train on, how often each is drawn relative to its size, and regions to validate on.

    Raises
    ------
    InputError
        No pair or two ways to name it, a region beside several, volumes that are missing or not complete,
        regions that do not fit.
    """
    pairs, held_out = pairs_of(config)
    channels = parse_integers("--channels", config.channels) if config.channels is not None else None

    def opened(pair: Pair) -> LabelledRegion:
        return _open(pair, channels, ignore=config.ignore, partial=config.partial)

    pairs = [one for pair in pairs for one in expanded(pair)]
    held_out = [one for pair in held_out for one in expanded(pair)]
    return list(map(opened, pairs)), [pair.weight for pair in pairs], list(map(opened, held_out))


def spec_of(config: TrainConfig, sources: Sequence[LabelledRegion]) -> UNetSpec:
    """The network that the parameters describe."""
    derived = DERIVED.get(config.target)
    return UNetSpec.build(
        ndim=config.ndim,
        depth=config.depth,
        base=config.base,
        in_channels=len(sources[0].image.channels),
        classes=config.classes or (len(derived) if derived else 2),
        anisotropic_levels=config.anisotropic_levels,
        upsampling=config.upsampling,
        dropout=config.dropout,
        norm=config.norm,
    )


def settings_of(config: TrainConfig, spec: UNetSpec) -> training.TrainSettings:
    """How to train; device and dtype "auto" stand as the CPU's until a worker was asked."""
    weight = config.border_weight
    return training.TrainSettings(
        target=config.target,
        patch=_patch(config, spec),
        steps=config.steps,
        batch=config.batch,
        accumulate=config.accumulate,
        optimisation=training.Optimisation(
            optimiser=config.optimiser,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            schedule=config.schedule,
            gradient_clip=config.gradient_clip,
            ema=config.ema,
            freeze_norm=config.freeze_norm,
        ),
        loss=LossSettings(kind=config.loss),
        class_weights=_class_weights(config.class_weights),
        border=BorderWeight(w0=weight, sigma=config.border_sigma) if weight else None,
        foreground=config.foreground,
        balance=config.balance,
        augment=AugmentSettings(**config.augment.model_dump()),
        device="cpu" if config.device == "auto" else config.device,
        dtype=config.dtype,
        compile=config.compile,
        validate_every=config.validate_every,
        checkpoint_every=config.checkpoint_every,
        early_stop=config.early_stop,
        seed=config.seed,
    )


def _class_weights(text: str) -> tuple[float, ...] | Literal["balanced"] | None:
    if text == "balanced":
        return "balanced"
    return None if text == "none" else parse_numbers("--class-weights", text)


def _open(
    pair: Pair, channels: tuple[int, ...] | None, *, ignore: int | None, partial: bool
) -> LabelledRegion:
    if not partial:
        for url in (pair.image, pair.labels):
            require_complete(Store(url))
    image = Volume.open(pair.image, channels=channels)
    region = parse_box(pair.region, image.shape) or image.box
    return LabelledRegion(
        image=image,
        labels=Volume.open(pair.labels),
        region=region,
        ignore=ignore if pair.ignore is None else pair.ignore,
    )


def _patch(config: TrainConfig, spec: UNetSpec) -> Shape:
    """The patch asked for, or one whose output is worth its context."""
    if config.patch is not None:
        shape = parse_shape("--patch", config.patch)
        if shape is not None:
            return shape
    stride = Footprint.of(spec).stride
    target = (1, 128, 128) if spec.ndim == 2 else (32, 32, 32)
    return tuple(round_up(t, s) for t, s in zip(target, stride))
