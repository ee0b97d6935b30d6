"""The `train` flow: labelled boxes of one or several volumes in, a model folder out."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow

from flows import tasks
from flows.config import (
    Pair,
    TrainConfig,
    parse_box,
    parse_integers,
    parse_shape,
    read_toml,
    takes,
    validate,
)
from unet_core import training
from unet_core.architecture import UNetSpec
from unet_core.errors import InputError
from unet_core.geometry import Shape, round_up
from unet_core.ledger import require_complete
from unet_core.sampling import LabelledRegion
from unet_core.tiling import Footprint
from unet_core.volumes import Store, Volume


def read_config(path: str | None, flags: dict[str, Any]) -> TrainConfig:
    """The TOML file's parameters with the flags' over them; InputError names unknown or missing ones."""
    return validate(TrainConfig, {**(read_toml(path) if path else {}), **flags}, where=path)


def prepare(config: TrainConfig) -> training.Plan:
    """Everything checked, the data's intensity scale measured, nothing written."""
    output = Store(config.to)
    if output.exists() and next(output.keys(), None) is not None:
        raise InputError("the output exists", where=output.url, fix="choose another --to")
    pairs, held_out = _pairs(config)
    channels = parse_integers("--channels", config.channels) if config.channels is not None else None
    sources = [_open(pair, channels, partial=config.partial) for pair in pairs]
    spec = UNetSpec.build(
        ndim=config.ndim,
        depth=config.depth,
        base=config.base,
        in_channels=len(sources[0].image.channels),
        classes=config.classes,
        anisotropic_levels=config.anisotropic_levels,
        upsampling=config.upsampling,
        dropout=config.dropout,
        norm=config.norm,
    )
    plan = training.prepare(
        sources,
        [_open(pair, channels, partial=config.partial) for pair in held_out],
        spec,
        training.TrainSettings(
            target=config.target,
            patch=_patch(config, spec),
            steps=config.steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            validate_every=config.validate_every,
            class_weights="balanced" if config.class_weights == "balanced" else None,
            seed=config.seed,
        ),
    )
    output.check_writable(64 * 2**20)
    return plan


@takes(TrainConfig)
def _train(**parameters: Any) -> dict[str, Any]:
    """Train a U-Net on labelled boxes; validates on held-out boxes, keeps the best weights."""
    config = validate(TrainConfig, parameters)
    plan = prepare(config)
    began = time.monotonic()
    trained = tasks.train(plan)
    training.save(Store(config.to), trained)
    best = trained.best
    return {
        "command": "train",
        "status": "complete",
        "model": Store(config.to).url,
        "steps": config.steps,
        "best_step": best.step,
        "loss": trained.history[-1].loss,
        "validation": None if best.scores is None else best.scores.to_dict(),
        "seconds": round(time.monotonic() - began, 3),
    }


train = flow(name="train", flow_run_name="train {to}", validate_parameters=True)(_train)


def _pairs(config: TrainConfig) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: the tables, or the one that flags name."""
    single = config.image is not None or config.labels is not None
    if single == bool(config.pairs):
        raise InputError(
            "one way to name the training data is needed",
            expected="--image and --labels, or [[pairs]] in a TOML file",
            found="both" if single else "neither",
        )
    if not single:
        return config.pairs, config.validation
    if config.image is None or config.labels is None:
        raise InputError("an image needs its labels", expected="--image and --labels", found="one of them")
    held_out = list(config.validation)
    if config.validation_region is not None:
        held_out.append(Pair(image=config.image, labels=config.labels, region=config.validation_region))
    return [Pair(image=config.image, labels=config.labels, region=config.region)], held_out


def _open(pair: Pair, channels: tuple[int, ...] | None, *, partial: bool) -> LabelledRegion:
    if not partial:
        for url in (pair.image, pair.labels):
            require_complete(Store(url))
    image = Volume.open(pair.image, channels=channels)
    return LabelledRegion(
        image=image, labels=Volume.open(pair.labels), region=parse_box(pair.region) or image.box
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
