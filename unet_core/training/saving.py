"""A training as a model folder: what came of it, and how."""

from __future__ import annotations

from typing import Any

import torch

from unet_core.checkpoint import ModelCard, load_model, save_model
from unet_core.records import model_readme, rows_of, software, write_card, write_records
from unet_core.training.history import History
from unet_core.training.loop import Trained
from unet_core.training.plan import Plan
from unet_core.volumes import Store


def identity(plan: Plan, *, device: str, dtype: str) -> dict[str, Any]:
    """What makes two trainings the same training, flat and JSON-ready.

    `device` and `dtype` as they were asked for: "auto" agrees with whatever was resolved.
    """
    settings = {**plan.settings.to_dict(), "device": device, "dtype": dtype}
    flat: dict[str, Any] = {}
    for name, value in {"network": plan.spec.to_dict(), **settings}.items():
        inner = value if isinstance(value, dict) else {None: value}
        for key, entry in inner.items():
            # None would agree with everything, as what a request leaves open.
            flat[name if key is None else f"{name}.{key}"] = "none" if entry is None else _plain(entry)
    return {
        **flat,
        **_data(plan),
        "source weights": _plain(plan.sampler.weights) or "none",
        "fine-tunes": "none" if plan.fine_tunes is None else load_model(plan.fine_tunes).digest,
    }


def card_of(plan: Plan, history: History) -> ModelCard:
    """The description that goes beside the weights."""
    image = plan.sampler.sources[0].image
    best = history.best.get("scores") or {}
    threshold = best.get("threshold")
    return ModelCard(
        spec=plan.spec,
        class_names=plan.class_names,
        target=plan.settings.target,
        normalisation=plan.settings.normalisation,
        scale=plan.scale,
        voxel_size=image.voxel_size,
        unit=image.unit,
        threshold=None if threshold is None else threshold["probability"],
    )


def save(store: Store, trained: Trained) -> None:
    """Write the model folder: weights, description, training.json, and what people read."""
    plan, history = trained.plan, trained.history
    card = card_of(plan, history)
    record = {
        "settings": plan.settings.to_dict(),
        "data": {
            **_data(plan),
            "voxels_per_class": plan.voxels_per_class,
            "class_weights": plan.class_weights,
        },
        "history": history.rows,
        "best": history.best,
        "seconds": round(history.seconds, 1),
        "torch": torch.__version__,
    }
    rows = rows_of(history.rows)
    name = store.url.rpartition("/")[2]
    write_records(store, rows, title=name, best_step=history.best_step)
    readme = model_readme(
        card,
        name=name,
        data=_data(plan),
        config=plan.settings.to_dict(),
        rows=rows,
        best_step=history.best_step,
        versions=software(),
    )
    write_card(store, readme)
    save_model(store, card, trained.network, training=record)


def _data(plan: Plan) -> dict[str, Any]:
    return {
        "training": [source.identity() for source in plan.sampler.sources],
        "validation": [region.identity() for region in plan.validation],
    }


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value
