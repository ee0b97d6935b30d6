"""`train --init`: a commented configuration for given volumes, as TOML text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

from flows.config import AugmentConfig, Config, TargetName, TrainConfig, validate
from flows.report.words import duration
from flows.training_data import labelled_regions, settings_of, spec_of
from unet_core import proposal, training
from unet_core.devices import fast_dtype
from unet_core.errors import InputError
from unet_core.labelling import LabelledRegion
from unet_core.machine import free_memory
from unet_core.proposal import Choice, ImageFacts, Machine
from unet_core.volumes import Store

_WIDTH = 100
_SHARE = 0.5  # of the memory that is free: the rest is for batches that wait, and for other programs
_TABLE = "augment."
_NOT_IN_FILES = ("restart",)  # would begin anew whenever the file is used
_HELD_OUT_VOLUMES = 5  # of so many volumes one is held out


@dataclass(frozen=True)
class Proposal:
    """TOML text, and about how many seconds its training would take here; None where nobody measured."""

    text: str
    seconds: float | None


def propose(
    image: str,
    labels: str,
    *,
    to: str = "model",
    region: str | None = None,
    channels: str | None = None,
    device: str = "auto",
    target: TargetName | None = None,
    timed: bool = False,
) -> Proposal:
    """A configuration that trains on these volumes, each value with its reason.

    `*` in both paths, or two folders, stand for a set of volumes (`flows.pairs`), such as 2D images of
    different sizes. Reads headers and some boxes of the labels; `timed` also does two steps on nothing, to
    say how long all will take.

    Raises
    ------
    InputError
        Volumes that are missing, not complete or do not fit, labels without a labelled voxel, no memory.
    """
    given = {"image": image, "labels": labels, "region": region, "channels": channels}
    config = validate(TrainConfig, {"to": to, **{k: v for k, v in given.items() if v is not None}})
    sources, _, _ = labelled_regions(config)
    alone = len(sources) == 1
    facts = ImageFacts.of_several([source.image for source in sources])
    here = machine(device)
    choices = proposal.propose(
        facts,
        proposal.measure_labels([(source.labels, source.region) for source in sources]),
        here,
        region=sources[0].region if alone else None,
        divided=alone,
        target=target,
    )
    # From the root, as `_pairs` has them: a file is used from any folder.
    named = {"to": to, **({"image": image, "labels": labels} if alone else {})}
    files: dict[str, Any] = {key: Store(path).url for key, path in named.items()}
    files |= {"channels": channels} if channels else {}
    seconds = None
    if timed:
        flat = {choice.key: choice.value for choice in choices if not choice.key.startswith(_TABLE)}
        proposed = validate(TrainConfig, {**files, "image": image, "labels": labels, **flat})
        seconds = _seconds(proposed, sources, here)
        choices = tuple(_with_time(choice, seconds) for choice in choices)
    return Proposal("\n".join(_lines(files, choices, sources, facts)) + "\n", seconds)


def _seconds(config: TrainConfig, sources: list[LabelledRegion], here: Machine) -> float:
    """What all steps take, but for reading, augmenting and validating."""
    spec = spec_of(config, sources)
    patch = settings_of(config, spec).patch[3 - spec.ndim :]
    dtype = fast_dtype(here.device) or "float32"
    step = training.seconds_per_step(spec, patch, config.batch, device=here.device, dtype=dtype)
    return step * config.steps


def _with_time(choice: Choice, seconds: float) -> Choice:
    if choice.key != "steps":
        return choice
    why = (
        f"{choice.why}. These take roughly {duration(seconds)} on this machine: one step was measured;"
        " reading, augmenting and validating come on top, and other programs slow it down"
    )
    return replace(choice, why=why)


def write(path: str, *, config: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """`propose` into a file that is not there yet, for what a command line gave; the command's document.

    Raises
    ------
    InputError
        As `propose`; no volumes named, options that a proposal cannot take, a file that exists.
    """
    taken = {"image", "labels", "to", "region", "channels", "device", "target"}
    if config is not None or not {"image", "labels"} <= given.keys() or given.keys() - taken:
        raise InputError(
            "--init takes an image and its labels",
            expected=f"--image and --labels, and of other options: {', '.join(sorted(taken))}",
            found=", ".join(sorted(given.keys() - taken)) or config or ", ".join(given) or "neither",
            fix="edit the file that it writes",
        )
    proposed = propose(**{"to": _model_beside(path), **given}, timed=True)
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(proposed.text)
    except OSError as error:
        raise InputError(
            "the configuration cannot be written",
            where=path,
            found=error.strerror,
            fix="choose another --init",
        ) from None
    seconds = None if proposed.seconds is None else round(proposed.seconds, 1)
    return {"command": "train", "status": "proposed", "written": path, "seconds_predicted": seconds}


def _model_beside(path: str) -> str:
    """Where the model goes that nobody named: beside the file, of another name for another file."""
    file = Path(path).absolute()
    return str(file.with_name("model" if file.stem == "train" else f"{file.stem}-model"))


def machine(device: str = "auto") -> Machine:
    """What trains here, with half of the memory that is free."""
    import torch

    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        from unet_core.training import require_device

        require_device("cuda")
        return Machine(device="cuda", memory=int(torch.cuda.mem_get_info()[0] * _SHARE))
    return Machine(device="cpu", memory=int(free_memory() * _SHARE))


def _lines(
    files: dict[str, Any], choices: tuple[Choice, ...], sources: list[LabelledRegion], facts: ImageFacts
) -> Iterator[str]:
    yield from _comment(
        f"Proposed by `unet-flows train --init` for {_described(facts)}."
        " Change what you know better, then: unet-flows train THIS_FILE"
    )
    yield ""
    yield from (_assignment(key, value) for key, value in files.items())
    flat = [choice for choice in choices if not choice.key.startswith(_TABLE)]
    for choice in flat:
        yield ""
        yield from _comment(choice.why)
        yield _assignment(choice.key, choice.value)
    yield from ("", *_comment("Everything else, with its default."))
    yield from _rest(TrainConfig, {*files, *(choice.key for choice in flat)})
    yield from ("", "[augment]")
    chosen = [(choice.key.removeprefix(_TABLE), choice) for choice in choices if choice not in flat]
    for key, choice in chosen:
        yield from _comment(choice.why)
        yield _assignment(key, choice.value)
    yield from _rest(AugmentConfig, {key for key, _ in chosen})
    if len(sources) > 1:
        yield from _pairs(sources)


def _described(facts: ImageFacts) -> str:
    """The images that were looked at: sizes, channels, type, voxel size."""
    numbers = " × ".join(f"{n:g}" for n in facts.voxel_size or ())
    voxel = f"voxels of {numbers} {facts.unit or '(no unit)'}" if numbers else "voxel size not said"
    sizes = " to ".join(
        " × ".join(map(str, shape))
        for shape in dict.fromkeys((facts.smallest or facts.shape, facts.largest or facts.shape))
    )
    return (
        f"{facts.count} image{'s' if facts.count > 1 else ''}: {sizes} (z, y, x),"
        f" {facts.channels} channel{'s' if facts.channels > 1 else ''} of {facts.dtype}, {voxel}"
    )


def _pairs(sources: list[LabelledRegion]) -> Iterator[str]:
    """Every volume by name; every fifth is held out, spread over all."""
    yield from ("", *_comment("Whole volumes are held out: one in five, at least one."))
    held_out = set(range(len(sources) - 1, -1, -_HELD_OUT_VOLUMES)) - {0}
    for table, numbers in (("pairs", set(range(len(sources))) - held_out), ("validation", held_out)):
        for number in sorted(numbers):
            source = sources[number]
            yield from ("", f"[[{table}]]", _assignment("image", source.image.url))
            yield _assignment("labels", source.labels.url)
            if source.region != source.image.box:
                yield _assignment("region", str(source.region))


def _rest(model: type[Config], known: Iterable[str]) -> Iterator[str]:
    """The fields that nothing was chosen for, commented out."""
    for name, field in model.model_fields.items():
        file_only = isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("file_only")
        if name not in known and name not in _NOT_IN_FILES and not file_only:
            value = field.get_default(call_default_factory=True)
            unset = f"{name}, not set"  # TOML has no null
            told = f"  # {field.description}" if field.description else ""
            yield f"# {unset if value is None else _assignment(name, value)}{told}"


def _assignment(key: str, value: Any) -> str:
    # TOML's basic strings, numbers and booleans are JSON's.
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text[:1].upper() + text[1:], _WIDTH)]
