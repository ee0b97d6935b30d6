"""Sets of volumes: what `*` or a folder stands for, images and labels paired by name.

images/*.zarr        masks/*_mask.zarr        `*` stands for the same text in both
samples/*/raw.zarr   samples/*/ids.zarr       also for a folder's name
images               masks                    a folder that is no volume: the NAME.zarr in it
"""

from __future__ import annotations

import re
from pathlib import Path

from flows.config import Pair, TrainConfig
from unet_core.errors import InputError

_ZARR = ("zarr.json", ".zgroup", ".zarray")  # what makes a folder a volume
_SHOWN = 5  # of those without a partner

Name = tuple[str, ...]  # what each `*` stands for


def pairs_of(config: TrainConfig) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: the tables, or the one that flags name.

    Raises
    ------
    InputError
        No pair or two ways to name it, an image without labels, a region beside several pairs.
    """
    single = config.image is not None or config.labels is not None
    if single == bool(config.pairs):
        raise InputError(
            "one way to name the training data is needed",
            expected="--image and --labels, or [[pairs]] in a TOML file",
            found="both" if single else "neither",
            fix="unet-flows train --help; --init writes a TOML file for an image and its labels",
        )
    if not single:
        for name in ("region", "validation_region"):
            if (box := getattr(config, name)) is not None:
                raise InputError(
                    f"{name} goes with one image, not with [[pairs]]",
                    where=name,
                    found=box,
                    fix="give each table of [[pairs]] and [[validation]] a region of its own",
                )
        return config.pairs, config.validation
    if config.image is None or config.labels is None:
        raise InputError(
            "an image needs its labels",
            expected="--image and --labels",
            found="labels alone" if config.image is None else f"--image {config.image} alone",
        )
    held_out = list(config.validation)
    if config.validation_region is not None:
        held_out.append(Pair(image=config.image, labels=config.labels, region=config.validation_region))
    return [Pair(image=config.image, labels=config.labels, region=config.region)], held_out


def expanded(pair: Pair) -> list[Pair]:
    """The pairs of a set, in the order of their names; a pair of single volumes is itself.

    Raises
    ------
    InputError
        A set beside a single volume, a set without a member, members of one name, or without a partner.
    """
    sets = [_is_set(path) for path in (pair.image, pair.labels)]
    if not any(sets):
        return [pair]
    if not all(sets):
        one, many = (pair.labels, pair.image) if sets[0] else (pair.image, pair.labels)
        raise InputError(
            "a set of volumes beside a single one",
            where=one,
            expected="a set on both sides, with `*` or as a folder",
            found=f"only {many} is one",
        )
    images, labels = _members(pair.image), _members(pair.labels)
    if lonely := [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' and others' if len(names) > _SHOWN else ''}"
        for what, some, others in (
            ("images without labels", images, labels),
            ("labels without an image", labels, images),
        )
        if (names := [some[name] for name in sorted(some.keys() - others.keys())])
    ]:
        raise InputError(
            "images and labels do not go in pairs",
            where=f"{pair.image} and {pair.labels}",
            expected="the same text for `*` in both",
            found="\n".join(lonely),
            fix="say what the names differ in, such as images/*.zarr and masks/*_mask.zarr",
        )
    return [
        pair.model_copy(update={"image": images[name], "labels": labels[name]}) for name in sorted(images)
    ]


def _is_set(path: str) -> bool:
    if "*" in path:
        return True
    place = Path(path).expanduser()
    return "://" not in path and place.is_dir() and not any((place / name).exists() for name in _ZARR)


def _members(path: str) -> dict[Name, str]:
    """The volumes of a set by what `*` stands for in their paths."""
    if "://" in path:
        raise InputError(
            "a set of volumes must lie in local folders", where=path, fix="name the volumes one by one"
        )
    place = Path(path).expanduser()
    pattern = place if "*" in path else place / "*.zarr"
    found: dict[Name, Path] = {(): Path(pattern.anchor)}
    for part in pattern.relative_to(pattern.anchor).parts:
        found = _below(found, part)
    if not found:
        raise InputError(
            "no volume matches this pattern" if "*" in path else "no volume lies in this folder",
            where=path,
            expected=str(pattern),
            fix="check the path",
        )
    members: dict[Name, str] = {}
    for name, volume in found.items():
        bare = tuple(text.removesuffix(".zarr").removesuffix(".ome") for text in name)
        if (other := members.setdefault(bare, str(volume))) != str(volume):
            raise InputError("two volumes of a set have one name", where=path, found=f"{other} and {volume}")
    return members


def _below(found: dict[Name, Path], part: str) -> dict[Name, Path]:
    """One part of a path further; `*` is never the beginning of a hidden name."""
    if "*" not in part:
        return {name: path / part for name, path in found.items() if (path / part).exists()}
    text = re.compile("(.*)".join(map(re.escape, part.split("*"))))
    return {
        (*name, *match.groups()): entry
        for name, path in found.items()
        if path.is_dir()
        for entry in path.iterdir()
        if entry.is_dir() and entry.name[0] != "." and (match := text.fullmatch(entry.name))
    }
