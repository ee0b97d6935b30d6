"""What a bioimage.io package says about a model: its `rdf.yaml` as plain data, and its README.

Source: bioimage.io's model description, format 0.5 (https://github.com/bioimage-io/spec-bioimage-io).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from unet_core.checkpoint import ModelCard
from unet_core.exchange.graph import OPSET
from unet_core.exchange.tile import TileShape

FORMAT_VERSION = "0.5.12"  # a later 0.5 reads it, too
_PAPER = {
    "text": "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation."
    " MICCAI 2015",
    "doi": "10.1007/978-3-319-24574-4_28",
}
# Units of length that bioimage.io knows; others are left out, with the axes' scale.
_UNITS = frozenset({"angstrom", "nanometer", "micrometer", "millimeter", "centimeter", "meter"})


@dataclass(frozen=True, kw_only=True)
class About:
    """What only people know about a model. `licence` is an SPDX identifier."""

    name: str = ""
    description: str = ""
    authors: tuple[str, ...] = ()
    licence: str = "CC-BY-4.0"

    def complete(self, card: ModelCard) -> About:
        """With a name and a description from the card where none were given."""
        task = {"semantic": "semantic segmentation"}.get(card.target, f"{card.target} segmentation")
        name = self.name or f"U-Net {card.spec.ndim}D {task}"
        classes = ", ".join(card.class_names)
        described = self.description or f"A {card.spec.ndim}D U-Net with valid convolutions: {classes}."
        return replace(self, name=name, description=described)


def describe(card: ModelCard, about: About, digests: dict[str, str]) -> dict[str, Any]:
    """The content of rdf.yaml.

    Parameters
    ----------
    digests
        SHA-256 of every other file of the package, by name.
    """
    spec = card.spec

    def file(name: str) -> dict[str, str]:
        return {"source": name, "sha256": digests[name]}

    return {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "name": about.name,
        "description": about.description,
        "authors": [{"name": author} for author in about.authors],
        "license": about.licence,
        "cite": [_PAPER],
        "tags": ["unet", f"{spec.ndim}d", "semantic-segmentation", "valid-convolutions", "unet-flows"],
        "documentation": file("README.md"),
        "covers": [file("cover.png")],
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": [
            {
                "id": "input",
                "description": "raw intensities",
                "axes": _axes(card, output=False),
                "data": {"type": "float32"},
                "test_tensor": file("test_input.npy"),
                "preprocessing": _preprocessing(card),
                # The volume's faces are mirrored without repeating the outermost voxel.
                "pad": {"mode": "reflect"},
            }
        ],
        "outputs": [
            {
                "id": "probabilities",
                "description": "class probabilities",
                "axes": _axes(card, output=True),
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "test_tensor": file("test_output.npy"),
                "postprocessing": [{"id": "softmax", "kwargs": {"axis": "channel"}}],
            }
        ],
        "weights": {"onnx": {**file("weights.onnx"), "opset_version": OPSET}},
        "attachments": [file("model.json"), file("weights.safetensors")],
        "config": {"bioimageio": {"architecture_type": "U-Net, valid convolutions"}},
    }


def _axes(card: ModelCard, *, output: bool) -> list[dict[str, Any]]:
    spec = card.spec
    tile = TileShape.of(spec)
    names = list(card.class_names) if output else [f"channel{k}" for k in range(spec.in_channels)]
    axes: list[dict[str, Any]] = [
        {"type": "batch"},
        {"type": "channel", "id": "channel", "channel_names": names},
    ]
    for k, name in enumerate("zyx"[-spec.ndim :]):
        axis: dict[str, Any] = {"type": "space", "id": name}
        if card.voxel_size is not None and card.unit in _UNITS:
            axis |= {"unit": card.unit, "scale": card.voxel_size[-spec.ndim :][k]}
        if output:
            axis["size"] = {"tensor_id": "input", "axis_id": name}
            if tile.halo[k]:  # the format has no halo of 0
                axis["halo"] = tile.halo[k]
        else:
            axis["size"] = {"min": tile.minimum[k], "step": tile.step[k]}
        axes.append(axis)
    return axes


def _preprocessing(card: ModelCard) -> list[dict[str, Any]]:
    """`Scale.apply` in two steps, in its order: one step would lose digits where offset >> spread.

    The format's own mean and standard deviation do not serve: bioimageio.core adds 1e-6 to the latter.
    """
    offset = [-float(np.float32(v)) for v in card.scale.offset]
    factor = [float(np.float32(1.0 / v)) for v in card.scale.spread]
    steps = []
    # A step that changes nothing is refused by the format.
    if any(offset):
        steps.append({"axis": "channel", "gain": 1.0, "offset": offset})
    if any(v != 1.0 for v in factor):
        steps.append({"axis": "channel", "gain": factor, "offset": 0.0})
    return [{"id": "scale_linear", "kwargs": kwargs} for kwargs in steps]


def readme(card: ModelCard, about: About) -> str:
    """The package's documentation, in Markdown."""
    spec, tile = card.spec, TileShape.of(card.spec)
    axes = ", ".join("zyx"[-spec.ndim :])
    classes = "\n".join(f"{k}. {name}" for k, name in enumerate(card.class_names))
    scales = "\n".join(
        f"| {k} | {a:g} | {b:g} |" for k, (a, b) in enumerate(zip(card.scale.offset, card.scale.spread))
    )
    return f"""# {about.name}

{about.description}

The U-Net of Ronneberger, Fischer and Brox (MICCAI 2015), with valid convolutions, trained with unet-flows.

## Input

Raw intensities; the preprocessing is `(x - offset) / spread` with the training data's own numbers:

| channel | offset | spread |
|---|---|---|
{scales}

They were found by the rule `{card.normalisation.rule}` (percentiles {card.normalisation.low:g} and
{card.normalisation.high:g} where it is `percentiles`). For images of another brightness, find them anew
by the same rule, once for the whole volume and never per tile.

## Sizes

Along {axes}, a tile has {tile.minimum} voxels or any multiple of {tile.step} more. The outermost
{tile.halo} voxels of the output on each side are the halo: they hold no result and are to be cropped.
Inner parts that begin at multiples of {tile.step}, counted from the volume's first voxel, fit together
without seams: the result equals one pass over the whole volume. Beyond the volume's faces, mirror the
image (reflect, without repeating the outermost voxel). Programs that shift their last tile back to fit it
in keep this only where the image's size is a multiple of {tile.step}, too.

## Output

Class probabilities, one channel per class:

{classes}

## Validation

Compare the class with the highest probability with labels of images that were not trained on: intersection
over union per class (`unet-flows evaluate`). `test_input.npy` and `test_output.npy` show one tile, with its
halo, before the preprocessing and after the postprocessing.
"""
