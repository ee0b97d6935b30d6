"""A trained network as a bioimage.io model package: one zip that other software runs, and we import.

package.zip
  rdf.yaml               what bioimage.io knows about the model (`description`)
  weights.onnx           the network with its halo (`tile.TileNetwork`)
  model.json             our model folder, attached: bioimage.io's PyTorch entry takes pickled state dicts
  weights.safetensors    only, so these two are what `reading` imports
  test_input.npy         a tile of intensities, float32, and the probabilities that it gives
  test_output.npy
  README.md, cover.png   for people

Source: https://github.com/bioimage-io/spec-bioimage-io, model description 0.5.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from unet_core.checkpoint import ModelCard, StoredModel, model_files
from unet_core.errors import InputError, RunError
from unet_core.exchange.description import About, describe, readme
from unet_core.exchange.extras import require
from unet_core.exchange.onnx_file import export_onnx
from unet_core.exchange.tile import TileNetwork, TileShape
from unet_core.geometry import Box
from unet_core.volumes import Volume

__all__ = ["About", "Package", "export_package"]
_INNER = {2: 128, 3: 16}  # voxels along each axis of the test tile, without its halo
# What people say about a model, and the option with which they say it.
_BY_PEOPLE = {"name": "--name", "description": "--description", "authors": "--author", "license": "--licence"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first day: equal content makes equal bytes


@dataclass(frozen=True)
class Package:
    """A package's bytes, and what bioimage.io's validator said of them: "passed" or "valid-format"."""

    data: bytes
    status: str
    format_version: str
    warnings: tuple[str, ...]


def export_package(stored: StoredModel, about: About, *, image: Volume | None = None) -> Package:
    """Make a package and have it judged by bioimage.io's own validator, without any network access.

    Parameters
    ----------
    image
        Where the test tile and the cover picture come from: the middle of this volume. Without one they
        show smooth noise at the training data's intensities.

    Raises
    ------
    InputError
        A name, author or licence that bioimage.io does not allow, an image with other channels, or a
        missing extra.
    RunError
        The package, or its ONNX file, is not valid.
    """
    yaml = require("yaml")
    require("bioimageio.spec")
    card = stored.card
    about = about.complete(card)
    intensities = _intensities(card, image)
    normalised = card.scale.apply(intensities)
    x = torch.from_numpy(normalised if card.spec.ndim == 3 else normalised[:, 0])[None]
    probabilities = TileNetwork(stored.network()).probabilities(x).numpy()
    files = {
        "weights.onnx": export_onnx(stored, tiled=True),
        **model_files(card, stored.network()),
        "test_input.npy": _npy(intensities.reshape(x.shape)),
        "test_output.npy": _npy(probabilities),
        "cover.png": _cover(intensities, probabilities, TileShape.of(card.spec)),
        "README.md": readme(card, about).encode(),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    text = yaml.safe_dump(describe(card, about, digests), sort_keys=False, allow_unicode=True)
    return _judged({"rdf.yaml": text.encode(), **files}, where=stored.url)


def _intensities(card: ModelCard, image: Volume | None) -> NDArray[np.float32]:
    """(channel, z, y, x) raw intensities of one tile; z is 1 for a 2D network."""
    spec = card.spec
    shape = TileShape.of(spec).near(_INNER[spec.ndim])
    shape = (1,) * (3 - spec.ndim) + shape
    if image is not None:
        if len(image.channels) != spec.in_channels:
            raise InputError(
                "this image does not fit the model",
                where=image.where,
                expected=f"{spec.in_channels} channels",
                found=len(image.channels),
            )
        lower = tuple((n - m) // 2 for n, m in zip(image.shape, shape))
        box = Box(lower, tuple(a + m for a, m in zip(lower, shape)))  # mirrored where it reaches beyond
        return np.asarray(image.read(box), np.float32)
    noise = np.random.default_rng(0).normal(size=(spec.in_channels, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 2 if spec.ndim == 3 else 0, 3, 3))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    if card.normalisation.rule == "mean_std":
        smooth = 4 * smooth - 2  # standard deviations
    column = (-1, 1, 1, 1)
    offset, spread = (np.reshape(v, column) for v in (card.scale.offset, card.scale.spread))
    return np.asarray(smooth * spread + offset, np.float32)


def _cover(intensities: NDArray[np.float32], probabilities: NDArray[np.float32], tile: TileShape) -> bytes:
    """Two square pictures side by side, PNG: the tile's middle plane, and how little of it is class 0."""
    inner = tuple(slice(h, -h if h else None) for h in tile.halo)
    shown = []
    flat = intensities if len(inner) == 3 else intensities[:, 0]
    for plane in (flat[(0, *inner)], 1 - probabilities[(0, 0, *inner)]):
        plane = plane if plane.ndim == 2 else plane[len(plane) // 2]
        low, high = float(plane.min()), float(plane.max())
        grey = 255 * (plane - low) / ((high - low) or 1.0)
        side = Image.fromarray(grey.astype(np.uint8)).resize((256, 256), Image.Resampling.NEAREST)
        shown.append(np.asarray(side))
    buffer = io.BytesIO()
    Image.fromarray(np.hstack(shown)).save(buffer, "PNG")
    return buffer.getvalue()


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _judged(files: dict[str, bytes], *, where: str) -> Package:
    """The files as a zip, if bioimage.io's validator takes them."""
    spec = require("bioimageio.spec")
    data = _zip(files)
    # From memory: of files on disk the validator leaves some open. It reads the members that are named and
    # looks nothing up elsewhere.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        description = spec.load_description(archive, perform_io_checks=True)
    summary = description.validation_summary
    if summary.status == "failed":
        errors = [e for d in summary.details for e in d.errors]
        for error in errors:
            if error.loc and error.loc[0] in _BY_PEOPLE:
                raise InputError(
                    "bioimage.io does not allow this", where=_BY_PEOPLE[error.loc[0]], found=error.msg
                )
        problems = [f"{'.'.join(map(str, e.loc))}: {e.msg}" for e in errors]
        raise RunError(
            "bioimage.io's validator refuses the package",
            where=where,
            expected="a valid model description",
            found="\n".join(problems),
            fix="report it, with the model",
        )
    warnings = tuple(f"{'.'.join(map(str, w.loc))}: {w.msg}" for d in summary.details for w in d.warnings)
    return Package(data, str(summary.status), str(description.format_version), warnings)
