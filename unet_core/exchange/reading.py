"""Models from elsewhere as our model folders: bioimage.io packages, safetensors, PyTorch state dicts.

Nothing that is read is run, and no file name inside a package ever becomes a path: members are looked up
by their exact names and only their bytes are used.
"""

from __future__ import annotations

import hashlib
import io
import json
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from torch import Tensor

from unet_core.architecture import UNetSpec
from unet_core.card_entries import SPEC, require_entries
from unet_core.checkpoint import ModelCard, check_tensors, parse_card, read_tensors, save_model
from unet_core.errors import InputError
from unet_core.exchange.extras import require
from unet_core.exchange.pickled import read_pickled
from unet_core.exchange.shapes import infer_spec, unwrapped
from unet_core.model import UNet
from unet_core.model_folder import FORMAT
from unet_core.volumes import Store

_RDF = ("rdf.yaml", "bioimageio.yaml", "model.yaml")
_STATE_DICTS = (".safetensors", ".pt", ".pth")
_SPECS = (".json", ".toml")
Read = Callable[[str], bytes | None]  # a package's member by its name


@dataclass(frozen=True)
class Imported:
    """An import that was written. `assumed`: what the source did not say, and what was taken instead."""

    url: str
    card: ModelCard
    source: str
    assumed: tuple[str, ...]


def import_model(source: str, to: str, *, spec: str | None = None) -> Imported:
    """Write a model folder at `to` from what lies at `source`.

    Parameters
    ----------
    source
        A bioimage.io package (.zip, or a folder with an rdf.yaml) with our model folder attached or with a
        PyTorch state dict, or a state dict as .safetensors, .pt or .pth.
    spec
        JSON or TOML file with what the tensors do not say: any entries of a model.json but `format`. Without
        one, a file beside the source of the same name ending in .json or .toml is taken, if there is one.

    Raises
    ------
    InputError
        Nothing there, a damaged file, code instead of tensors, another architecture, a folder at `to`.
    """
    target = Store(to)
    if target.exists():
        raise InputError("there is something already", where=target.url, fix="choose another --to")
    place = Store(source)
    if not place.exists():
        raise InputError("there is nothing to import", where=place.url)
    is_folder = not source.lower().endswith((".zip", *_STATE_DICTS))
    card, tensors, assumed = (
        _package(place.read, spec, where=place.url) if is_folder else _file(place, spec, where=place.url)
    )
    target.check_writable(sum(4 * tensor.numel() for tensor in tensors.values()))
    network = UNet(card.spec)
    network.load_state_dict(tensors)
    save_model(target, card, network, training={"imported_from": place.url, "assumed": assumed})
    return Imported(target.url, card, place.url, assumed)


Found = tuple[ModelCard, dict[str, Tensor], tuple[str, ...]]
Description = tuple[dict[str, Any], str]  # its entries, and where they stand


def _file(place: Store, spec: str | None, *, where: str) -> Found:
    folder, _, name = place.url.rpartition("/")
    data = Store(folder).read(name) or b""
    if not name.lower().endswith(".zip"):
        return _state_dict(name, data, _described(place, spec), where=where)
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise InputError("this package cannot be read", where=where, found=error) from None

    def read(member: str) -> bytes | None:
        try:
            return archive.read(member)
        except KeyError:
            return None
        # RuntimeError: encrypted, or packed in a way unknown here.
        except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as error:
            raise InputError("this package is damaged", where=f"{where}, {member}", found=error) from None

    return _package(read, spec, where=where)


def _package(read: Read, spec: str | None, *, where: str) -> Found:
    """Our model folder, where it is attached; else the PyTorch state dict."""
    name, data = next(((n, d) for n in _RDF if (d := read(n)) is not None), ("", b""))
    if not name:
        raise InputError(
            "this is not a bioimage.io package, and no state dict",
            where=where,
            expected=f"{_RDF[0]} in a .zip or folder; or a file that ends in {', '.join(_STATE_DICTS)}",
        )
    yaml = require("yaml")
    try:
        rdf = yaml.safe_load(data)
        files = [_entry(entry) for entry in rdf.get("attachments") or [] if isinstance(entry, dict)]
        state = (rdf.get("weights") or {}).get("pytorch_state_dict")
        offered = ", ".join(rdf.get("weights") or {}) or "none"
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise InputError("this description cannot be read", where=f"{where}, {name}", found=error) from None
    attached = {PurePosixPath(source).name: (source, digest) for source, digest in files}
    if {"model.json", "weights.safetensors"} <= attached.keys():
        description, weights = (
            _member(read, *attached[file], where=where) for file in ("model.json", "weights.safetensors")
        )
        card = parse_card(description, where=f"{where}, model.json")
        tensors = read_tensors(weights, where=f"{where}, weights.safetensors")
        check_tensors(card.spec, tensors, where=f"{where}, weights.safetensors")
        return card, tensors, ()
    if isinstance(state, dict):
        source, digest = _entry(state)
        weights = _member(read, source, digest, where=where)
        return _state_dict(source, weights, _described(None, spec), where=f"{where}, {source}")
    raise InputError(
        "this package has no weights that can be read without running code",
        where=where,
        expected="model.json and weights.safetensors attached (our export), or weights pytorch_state_dict",
        found=f"weights: {offered}",
    )


def _entry(entry: dict[str, Any]) -> tuple[str, str | None]:
    digest = entry.get("sha256")
    return str(entry.get("source", "")), None if digest is None else str(digest)


def _member(read: Read, source: str, digest: str | None, *, where: str) -> bytes:
    """A file of the package; InputError where it points elsewhere, is missing, or has another digest."""
    path = PurePosixPath(source)
    if path.is_absolute() or ".." in path.parts or "\\" in source or ":" in source:
        raise InputError(
            "this package names a file outside itself", where=where, expected="a file's name", found=source
        )
    data = read(source.removeprefix("./"))
    if data is None:
        raise InputError("this package is not whole", where=where, expected=source, found="no such file")
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise InputError(
            "this package is damaged",
            where=f"{where}, {source}",
            expected=f"sha256 {digest}",
            found=hashlib.sha256(data).hexdigest(),
        )
    return data


def _state_dict(name: str, data: bytes, description: Description, *, where: str) -> Found:
    read = read_tensors if name.lower().endswith(".safetensors") else read_pickled
    tensors = unwrapped(read(data, where=where))
    described, said = description
    if "spec" in described:
        spec = _stated(described["spec"], where=said)
        check_tensors(spec, tensors, where=where)
    else:
        spec = infer_spec(tensors, where=where)
    card, assumed = _card(described, spec, where=said)
    return card, tensors, assumed


def _stated(entries: Any, *, where: str) -> UNetSpec:
    """The network that a description names."""
    try:
        require_entries(entries, SPEC, place="spec")
        return UNetSpec(**entries)
    except InputError as error:
        raise InputError(
            error.problem, where=f"{where}, {error.where}", expected=error.expected, found=error.found
        ) from None


def _described(place: Store | None, spec: str | None) -> Description:
    """The description that was named, or one that lies beside the source; empty where there is none."""
    if spec is None and place is not None:
        stem = place.url.rpartition(".")[0]
        spec = next((f"{stem}{end}" for end in _SPECS if Store(f"{stem}{end}").exists()), None)
    if spec is None:
        return {}, "no description"
    folder, _, name = Store(spec).url.rpartition("/")
    data = Store(folder).read(name)
    if data is None:
        raise InputError("there is no such description", where=spec)
    try:
        found = tomllib.loads(data.decode()) if name.lower().endswith(".toml") else json.loads(data)
    except ValueError as error:
        raise InputError("this description cannot be read", where=spec, found=error) from None
    if not isinstance(found, dict):
        raise InputError("this description cannot be read", where=spec, found=type(found).__name__)
    return found, spec


def _card(described: dict[str, Any], spec: UNetSpec, *, where: str) -> tuple[ModelCard, tuple[str, ...]]:
    """A model card from a description; what it leaves out is assumed, and told."""
    defaults: dict[str, Any] = {
        "class_names": ["background", *(f"class {k}" for k in range(1, spec.classes))],
        "target": "semantic",
        "normalisation": {},
        # Intensities as they are, for --normalisation model; segment measures each volume by default.
        "scale": {"offset": [0.0] * spec.in_channels, "spread": [1.0] * spec.in_channels},
    }
    assumed = tuple(f"{key}: {json.dumps(value)}" for key, value in defaults.items() if key not in described)
    whole = {"format": FORMAT, **defaults, **described, "spec": spec.to_dict()}
    return parse_card(json.dumps(whole, default=str).encode(), where=where), assumed
