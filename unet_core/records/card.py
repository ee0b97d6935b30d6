"""The model card: README.md of a model folder, for people.

Sections after Mitchell et al., "Model Cards for Model Reporting" (2019) and bioimage.io's model descriptions:
what it is, what it was trained on, how well it does, how to use it, what is not known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import unet_core
from unet_core.checkpoint import ModelCard
from unet_core.records.curve import CURVE
from unet_core.records.rows import TABLE, TrainingRow

CARD = "README.md"
_MEANING = {
    "semantic": "the labels' own classes",
    "foreground": "objects against background",
    "separated": "objects against background, and touching objects kept apart by a line of background",
    "boundary": "the boundary between segments",
    "interior-boundary": "background, the interior of objects, and their boundary",
}


def software() -> dict[str, str]:
    """Versions that a model was trained with; `code` is the SHA-256 over the sources of `unet_core`."""
    digest = hashlib.sha256()
    root = Path(unet_core.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "unet-flows": version("unet-flows"),
        "code": digest.hexdigest()[:16],
        "torch": version("torch"),
        "python": python_version(),
    }


def fingerprint(data: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the data: shapes, metadata, sampled voxels and regions, not places."""
    text = json.dumps(_without_urls(data), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_readme(
    card: ModelCard,
    *,
    name: str,
    data: Mapping[str, Sequence[Mapping[str, Any]]],
    config: Mapping[str, Any],
    rows: Sequence[TrainingRow],
    best_step: int,
    versions: Mapping[str, str],
) -> str:
    """The text of the card.

    Parameters
    ----------
    data
        "training" and "validation": what `LabelledRegion.identity` gives, one entry per region.
    config
        The training's parameters, JSON-ready; None and empty ones are left out.
    rows, best_step
        All rows so far, and the step whose weights are stored.
    versions
        See `software`.
    """
    spec = card.spec
    kind = f"{spec.ndim}D U-Net, {spec.depth} poolings, {' '.join(map(str, spec.widths))} channels"
    best = next((row for row in rows if row.step == best_step), None)
    meaning = _MEANING.get(card.target, card.target)
    parts = [
        f"# {name}",
        f"A {kind} (Ronneberger, Fischer, Brox 2015) that predicts {meaning}: {', '.join(card.class_names)}."
        " Its convolutions are valid: a volume is predicted tile by tile exactly as it would be as a whole.",
        "## What it expects and gives",
        _table(("", ""), _expectations(card)),
        "## How to use it",
        "```sh\n"
        f"unet-flows segment VOLUME.zarr --model {name} --to labels.zarr\n"
        f"unet-flows evaluate labels.zarr TRUTH.zarr{_target_option(card)}\n"
        "```",
        "The first writes a label volume of classes, the second compares it with a truth. Trust the model on"
        " another volume only after the second: other stainings or voxel sizes may be new to it.",
        "## How well it does",
        _scores(best, best_step, data),
        f"![training curve]({CURVE})" if rows else "",
        f"All numbers by step are in `{TABLE}`, and in `tensorboard/` for TensorBoard." if rows else "",
        "## What it was trained on",
        _table(
            ("use", "image", "shape z,y,x", "type", "labels", "region", "ignored label"),
            (_region(use, entry) for use, entries in data.items() for entry in entries),
        ),
        f"Fingerprint of the data (shapes, metadata, sampled voxels, regions): `{fingerprint(data)}`.",
        "## How it was trained",
        _table(("setting", "value"), _settings(config)),
        "Software: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
        "## Licence and limits",
        "The licence of the training data is not known to the program that wrote this card, and so neither is"
        " what may be done with these weights. Whoever passes the model on must find out and say it here.",
        "The metrics above are those of the validation regions, by which the step was chosen too: they are no"
        " independent test.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _expectations(card: ModelCard) -> Iterable[tuple[str, object]]:
    rule = card.normalisation
    yield "axes", "channel, z, y, x" if card.spec.ndim == 3 else "channel, y, x (each plane by itself)"
    yield "channels", card.spec.in_channels
    size = "not known" if card.voxel_size is None else " × ".join(f"{n:g}" for n in card.voxel_size)
    yield "voxel size z, y, x", f"{size} {card.unit or '(no unit)'}"
    percentiles = f"percentiles {rule.low:g} and {rule.high:g} become 0 and 1"
    made = percentiles if rule.rule == "percentiles" else "mean 0, standard deviation 1"
    yield "normalisation", f"{made}, measured over the whole volume"
    pairs = zip(card.scale.offset, card.scale.spread)
    yield "training data's own", "; ".join(f"(x − {a:.6g}) / {b:.6g}" for a, b in pairs)
    yield "target", card.target
    yield "classes", ", ".join(f"{k} {name}" for k, name in enumerate(card.class_names))
    yield "tile stride", " × ".join(map(str, card.spec.stride))
    lower, upper = card.spec.context
    yield "context below, above", f"{' × '.join(map(str, lower))}, {' × '.join(map(str, upper))}"


def _target_option(card: ModelCard) -> str:
    return "" if card.target == "semantic" else f" --target {card.target}"


def _scores(best: TrainingRow | None, step: int, data: Mapping[str, Sequence[Any]]) -> str:
    if best is None or not best.metrics:
        return "It was not validated: nothing is known about its quality."
    metrics = best.metrics.items()
    known = ((name, "no such voxels" if value is None else f"{value:.4f}") for name, value in metrics)
    regions = len(data.get("validation", ()))
    head = f"On {regions} held-out region{'s' if regions != 1 else ''}, weights of step {step:,}:"
    return f"{head}\n\n{_table(('metric', 'value'), known)}"


def _region(use: str, entry: Mapping[str, Any]) -> tuple[object, ...]:
    image, labels = entry["image"], entry["labels"]
    return (
        use,
        _short(image["url"]),
        ",".join(map(str, image["shape"])),
        image["dtype"].lstrip("<>|="),
        _short(labels["url"]),
        entry["region"],
        entry.get("ignore"),
    )


def _short(url: str) -> str:
    """The last two parts of a place: whose machine it lay on is nobody's business."""
    return "/".join(url.rstrip("/").split("/")[-2:])


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{name}.")
        elif value not in (None, [], (), ""):
            places = isinstance(value, str) and "/" in value
            yield f"{prefix}{name}", _short(value) if places else value


def _without_urls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_urls(v) for k, v in value.items() if k != "url"}
    return [_without_urls(v) for v in value] if isinstance(value, list | tuple) else value


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
