"""Models to and from other software, in this process: files are read, checked, written; no server needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from unet_core.checkpoint import load_model
from unet_core.errors import InputError
from unet_core.exchange import OPSET, About, TileShape, export_onnx, export_package, smallest_input
from unet_core.exchange import import_model as read_model
from unet_core.volumes import Store, Volume

Format = Literal["onnx", "bioimageio"]


def export_model(
    model: str, *, format: Format, to: str, about: About | None = None, image: str | None = None
) -> dict[str, Any]:
    """Write a model folder as one file; returns the `--json` document.

    Parameters
    ----------
    about, image
        Name, authors and so on, and the volume whose middle becomes the example; bioimageio only.

    Raises
    ------
    InputError
        No such model, something at `to`, options that the format has no use for, the extra missing.
    """
    if format == "onnx" and (image is not None or about not in (None, About())):
        raise InputError(
            "an ONNX file has no place for this",
            where="--name, --description, --author, --licence, --image",
            fix="use --format bioimageio",
        )
    target = Store(to)
    if target.exists():
        raise InputError("there is something already", where=target.url, fix="choose another --to")
    stored = load_model(model)
    spec = stored.card.spec
    axes = "zyx"[-spec.ndim :]
    document: dict[str, Any] = {"command": "export", "status": "complete", "model": stored.url}
    if format == "onnx":
        data, validation = export_onnx(stored), None
        smallest = smallest_input(spec)
        lost = [n - m for n, m in zip(smallest, spec.output_shape(smallest))]
        halo = (0,) * spec.ndim
    else:
        package = export_package(
            stored, about or About(), image=None if image is None else Volume.open(image)
        )
        tile = TileShape.of(spec)
        data, smallest, halo, lost = package.data, tile.minimum, tile.halo, [0] * spec.ndim
        validation = {
            "status": package.status,
            "format_version": package.format_version,
            "warnings": list(package.warnings),
        }
    folder, _, name = target.url.rpartition("/")
    Store(folder).check_writable(len(data))
    Store(folder).write(name, data)
    return {
        **document,
        "format": format,
        "output": target.url,
        "bytes": len(data),
        "opset": OPSET,
        "smallest_input": dict(zip(axes, smallest)),
        "input_step": dict(zip(axes, spec.stride)),
        "output_smaller_by": dict(zip(axes, lost)),
        "halo": dict(zip(axes, halo)),
        "validation": validation,
    }


def import_model(source: str, *, to: str, spec: str | None = None) -> dict[str, Any]:
    """Write a model folder from a package or a state dict; returns the `--json` document.

    Raises
    ------
    InputError
        Whatever `unet_core.exchange.import_model` refuses.
    """
    imported = read_model(source, to, spec=spec)
    return {
        "command": "import",
        "status": "complete",
        "source": imported.source,
        "model": imported.url,
        "spec": imported.card.spec.to_dict(),
        "classes": list(imported.card.class_names),
        "target": imported.card.target,
        "assumed": list(imported.assumed),
    }


def about(
    name: str | None, description: str | None, authors: Sequence[str] | None, licence: str | None
) -> About:
    """What was said about a model on the command line; what was not keeps `About`'s defaults."""
    said = {
        "name": name,
        "description": description,
        "authors": tuple(authors) if authors else None,
        "licence": licence,
    }
    return About(**{key: value for key, value in said.items() if value is not None})  # type: ignore[arg-type]
