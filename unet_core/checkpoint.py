"""Model folders: weights as safetensors, everything else as JSON. Loading runs no code from the folder.

MODEL/
  model.json            the network's spec, classes, normalisation rule and training numbers
  weights.safetensors   float32 tensors under the names of `unet_core.model.UNet`
  training.json         how it was trained (optional; never read for inference)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from unet_core.architecture import UNetSpec
from unet_core.errors import InputError
from unet_core.model import UNet
from unet_core.normalisation import NormalisationRule, Scale
from unet_core.volumes import Store

FORMAT = 1
_DESCRIPTION, _WEIGHTS, _TRAINING = "model.json", "weights.safetensors", "training.json"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model is and expects: everything about it but the weights.

    `class_names[0]` is the background. `target` says what the classes mean: "semantic", "foreground" or
    "boundary". `scale` holds the training data's own numbers for `normalisation`.
    """

    spec: UNetSpec
    class_names: tuple[str, ...]
    target: str
    normalisation: NormalisationRule
    scale: Scale
    voxel_size: tuple[float, ...] | None = None
    unit: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for where, expected, found in (
            ("class_names", self.spec.classes, len(self.class_names)),
            ("scale", self.spec.in_channels, len(self.scale.offset)),
            ("scale", self.spec.in_channels, len(self.scale.spread)),
        ):
            if found != expected:
                raise InputError(
                    "this model card contradicts itself",
                    where=where,
                    expected=f"{expected}, as the network has",
                    found=found,
                )


@dataclass(frozen=True)
class StoredModel:
    """A model folder that was read and checked. `digest` is the SHA-256 over its card and weights."""

    url: str
    card: ModelCard
    digest: str
    weights: bytes = field(repr=False)

    def network(self) -> UNet:
        """The network with its weights, in eval mode, float32, on the CPU."""
        model = UNet(self.card.spec)
        model.load_state_dict(load_tensors(self.weights))
        return model.eval()


def save_model(store: Store, card: ModelCard, model: UNet, *, training: dict[str, Any] | None = None) -> None:
    """Write a model folder. The description goes last: a folder that has one is whole."""
    tensors = {name: t.detach().float().cpu().contiguous() for name, t in model.state_dict().items()}
    store.write(_WEIGHTS, save_tensors(tensors))
    if training is not None:
        store.write(_TRAINING, json.dumps(training, indent=1).encode())
    document = {"format": FORMAT, **asdict(card), "scale": card.scale.to_dict()}
    store.write(_DESCRIPTION, json.dumps(document, indent=1).encode())


def load_model(url: str) -> StoredModel:
    """Read and check a model folder.

    Raises
    ------
    InputError
        No such folder, a file missing or damaged, a newer format, or weights of another architecture.
    """
    store = Store(url)
    if not store.exists():
        raise InputError("no such model", where=store.url, fix="train one: unet-flows train --help")
    files = {name: store.read(name) for name in (_DESCRIPTION, _WEIGHTS)}
    missing = [name for name, data in files.items() if data is None]
    if missing:
        raise InputError(
            "this is not a whole model folder",
            where=store.url,
            expected=f"{_DESCRIPTION} and {_WEIGHTS}",
            found=f"no {' and no '.join(missing)}",
        )
    description, weights = (data or b"" for data in files.values())
    card = _parse(description, where=f"{store.url}/{_DESCRIPTION}")
    _check_weights(card.spec, weights, where=f"{store.url}/{_WEIGHTS}")
    digest = hashlib.sha256(description + weights).hexdigest()
    return StoredModel(store.url, card, digest, weights)


def _parse(description: bytes, *, where: str) -> ModelCard:
    try:
        document = json.loads(description)
        version = document.pop("format")
        if version != FORMAT:
            raise InputError(
                "this model folder has another format",
                where=where,
                expected=f"format {FORMAT}",
                found=version,
                fix="update unet-flows",
            )
        rule, scale = document.pop("normalisation"), document.pop("scale")
        voxel_size = document.pop("voxel_size", None)
        return ModelCard(
            spec=UNetSpec(**document.pop("spec")),
            class_names=tuple(document.pop("class_names")),
            normalisation=NormalisationRule(**rule),
            scale=Scale.from_dict(scale),
            voxel_size=None if voxel_size is None else tuple(voxel_size),
            **document,
        )
    except InputError as error:
        raise InputError(
            error.problem,
            where=f"{where}{', ' + error.where if error.where else ''}",
            expected=error.expected,
            found=error.found,
            fix=error.fix,
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("this model description cannot be read", where=where, found=repr(error)) from None


def _check_weights(spec: UNetSpec, weights: bytes, *, where: str) -> None:
    import torch

    try:
        tensors = load_tensors(weights)
    except SafetensorError as error:
        raise InputError("these weights cannot be read", where=where, found=str(error)) from None
    stored = {name: tuple(t.shape) for name, t in tensors.items()}
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in UNet(spec).state_dict().items()}
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise InputError(
                "these weights were made for another architecture",
                where=f"{where}, tensor {name}",
                expected=f"shape {expected[name]}" if name in expected else "no such tensor",
                found=f"shape {stored[name]}" if name in stored else "none",
            )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                "these weights hold NaN or infinite numbers: every voxel would get class 0",
                where=f"{where}, tensor {name}",
                fix="train again, with a lower learning rate",
            )
