"""A trained network as a model folder."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from unet_core.checkpoint import ModelCard, save_model
from unet_core.training.loop import Record, Trained
from unet_core.volumes import Store


def save(store: Store, trained: Trained) -> None:
    """Write the model folder; training.json holds settings, data, history and scores."""
    plan = trained.plan
    image = plan.sampler.sources[0].image
    card = ModelCard(
        spec=plan.spec,
        class_names=plan.class_names,
        target=plan.settings.target,
        normalisation=plan.settings.normalisation,
        scale=plan.scale,
        voxel_size=image.voxel_size,
        unit=image.unit,
    )
    record = {
        "settings": asdict(plan.settings),
        "data": {
            "training": [source.identity() for source in plan.sampler.sources],
            "validation": [region.identity() for region in plan.validation],
            "voxels_per_class": plan.voxels_per_class,
            "class_weights": plan.class_weights,
        },
        "history": [_as_dict(record) for record in trained.history],
        "best": _as_dict(trained.best),
        "seconds": round(trained.seconds, 1),
        "torch": torch.__version__,
    }
    save_model(store, card, trained.network, training=record)


def _as_dict(record: Record) -> dict[str, Any]:
    return {
        "step": record.step,
        "loss": record.loss,
        "learning_rate": record.learning_rate,
        "scores": None if record.scores is None else record.scores.to_dict(),
    }
