"""Model folders: weights as safetensors, everything else as JSON. Loading runs no code from the folder.

MODEL/
  model.json            the network's spec, classes, normalisation rule and training numbers
  weights.safetensors   float32 tensors under the names of `unet_core.model.UNet`
  training.json         how it was trained (optional; never read for inference)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from unet_core.architecture import UNetSpec
from unet_core.card_entries import CARD, RULE, SCALE, SPEC, require_entries
from unet_core.errors import InputError
from unet_core.model import UNet
from unet_core.model_folder import AGAIN, DESCRIPTION, FORMAT, WEIGHTS, document_of, read_folder
from unet_core.normalisation import NormalisationRule, Scale
from unet_core.volumes import Store

# What becomes float32 without a loss that matters; int64 counts batch norm's batches.
_NUMBERS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64})
_TRAINING = "training.json"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model is and expects: everything about it but the weights.

    `class_names[0]` is the background. `target` says what the classes mean (`unet_core.targets`). `scale`
    holds the training data's own numbers for `normalisation`. `threshold` is the probability of the second of
    two classes from which on a voxel is best given to it, as validation found; None where nobody looked.
    """

    spec: UNetSpec
    class_names: tuple[str, ...]
    target: str
    normalisation: NormalisationRule
    scale: Scale
    voxel_size: tuple[float, ...] | None = None
    unit: str | None = None
    threshold: float | None = None
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
        positive, size, names = "finite numbers above 0", self.voxel_size, self.class_names
        problems: list[tuple[bool, str, str, Any]] = [
            (all(isinstance(name, str) for name in names), "class_names", "text", names),
            (isinstance(self.target, str), "target", "text", self.target),
            (self.unit is None or isinstance(self.unit, str), "unit", "text", self.unit),
            (_numbers(self.scale.offset), "scale, offset", "finite numbers", self.scale.offset),
            # Its reciprocal is a factor in float32.
            (_numbers(self.scale.spread, above=1e-38), "scale, spread", positive, self.scale.spread),
            (
                size is None or (len(size) == 3 and _numbers(size, above=0)),
                "voxel_size",
                f"three {positive}",
                size,
            ),
            (
                self.threshold is None or (_numbers((self.threshold,)) and 0 <= self.threshold <= 1),
                "threshold",
                "a probability from 0 to 1",
                self.threshold,
            ),
        ]
        for possible, place, wanted, value in problems:
            if not possible:
                raise InputError(
                    "this model card holds an impossible value", where=place, expected=wanted, found=value
                )


def _numbers(values: Iterable[Any], *, above: float = -inf) -> bool:
    """Whether all of them are finite numbers above a bound; JSON brings whatever somebody wrote."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > above
        for value in values
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
    files = model_files(card, model)
    store.write(WEIGHTS, files[WEIGHTS])
    if training is not None:
        store.write(_TRAINING, json.dumps(training, indent=1).encode())
    store.write(DESCRIPTION, files[DESCRIPTION])


def model_files(card: ModelCard, model: UNet) -> dict[str, bytes]:
    """The two files that make a model folder, by name."""
    tensors = {name: t.detach().float().cpu().contiguous() for name, t in model.state_dict().items()}
    document = {"format": FORMAT, **asdict(card), "scale": card.scale.to_dict()}
    return {DESCRIPTION: json.dumps(document, indent=1).encode(), WEIGHTS: save_tensors(tensors)}


def adopt(network: UNet, stored: StoredModel) -> tuple[str, ...]:
    """Take over an existing model's weights, in place: the start of a fine-tuning.

    The body must be the same. With another number of classes the head stays as it is, newly initialised.

    Returns
    -------
    Names of the tensors that stayed fresh.

    Raises
    ------
    InputError
        Another body, or other input channels; names what differs first. The network is unchanged then.
    """
    ours, theirs = network.spec, stored.card.spec
    for name in ("in_channels", "norm", "upsampling", "widths", "kernels", "pools"):
        if getattr(ours, name) != getattr(theirs, name):
            raise InputError(
                "this model cannot be fine-tuned into the network that was asked for",
                where=f"{stored.url}, {name}",
                expected=getattr(ours, name),
                found=getattr(theirs, name),
                fix=f"give the new network the model's {name}",
            )
    tensors = read_tensors(stored.weights, where=stored.url)
    fresh = () if ours.classes == theirs.classes else tuple(n for n in tensors if n.startswith("head."))
    network.load_state_dict({n: t for n, t in tensors.items() if n not in fresh}, strict=False)
    return fresh


def load_model(url: str) -> StoredModel:
    """Read and check a model folder.

    Raises
    ------
    InputError
        No such folder, a file missing or damaged, a newer format, or weights of another architecture.
    """
    store = Store(url)
    description, weights = read_folder(store)
    card = parse_card(description, where=f"{store.url}/{DESCRIPTION}")
    where = f"{store.url}/{WEIGHTS}"
    check_tensors(card.spec, read_tensors(weights, where=where), where=where)
    digest = hashlib.sha256(description + weights).hexdigest()
    return StoredModel(store.url, card, digest, weights)


def parse_card(description: bytes, *, where: str) -> ModelCard:
    """The card in the bytes of a model.json; InputError where it is not one."""
    try:
        document = document_of(description, where="")
        require_entries(document, CARD)
        for name, entries in (("spec", SPEC), ("normalisation", RULE), ("scale", SCALE)):
            require_entries(document[name], entries, place=name)
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
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(
            "this model description cannot be read", where=where, found=found, fix=AGAIN
        ) from None


def read_tensors(weights: bytes, *, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; InputError where it is not one."""
    try:
        return load_tensors(weights)
    except SafetensorError as error:
        raise InputError(
            "these weights cannot be read",
            where=where,
            expected="a safetensors file, whole",
            found=str(error),
            fix="copy or export it again",
        ) from None


def check_tensors(spec: UNetSpec, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Refuse tensors that are not the weights of this network, naming the first one that is not.

    Raises
    ------
    InputError
        A tensor that is missing, too much, of another shape or kind, or holds NaN or infinite numbers.
    """
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
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _NUMBERS:
            raise InputError(
                "these weights are not stored as plain numbers",
                where=f"{where}, tensor {name}",
                expected="float64, float32, float16, bfloat16 or int64, dense",
                found=f"{tensor.dtype}, {tensor.layout}, on {tensor.device}",
            )
        if not torch.isfinite(tensor).all():
            raise InputError(
                "these weights hold NaN or infinite numbers: every voxel would get class 0",
                where=f"{where}, tensor {name}",
                fix="train again, with a lower learning rate",
            )
