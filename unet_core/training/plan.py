"""Everything about a training that can be checked or measured before its first step, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from unet_core.architecture import UNetSpec
from unet_core.budget import CHUNKS_KEPT
from unet_core.checkpoint import adopt, load_model
from unet_core.errors import InputError
from unet_core.geometry import Box, round_up
from unet_core.labelling import LabelledRegion, Labelling
from unet_core.loss import balanced_weights
from unet_core.model import UNet
from unet_core.normalisation import NormalisationRule, Scale, measure
from unet_core.placement import Places, find_places
from unet_core.recent import Recent
from unet_core.sampling import Sampler
from unet_core.targets import class_names
from unet_core.tile_choice import choose_tile
from unet_core.tiling import Footprint, Tiling
from unet_core.training.settings import TrainSettings

VALIDATION_MEMORY = 2**30  # bytes for the tensors of one validation tile


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a training needs, checked; no network yet, nothing written.

    `to_dict` is stored once, in the run record: every rank builds the same training from it, without
    looking at the data again.

    Parameters
    ----------
    validation, validation_scales
        Regions apart from those of `sampler`, each with the intensity scale of its image.
    scale
        The training data's own, for the model folder: the mean of the sources' scales, weighted by
        the voxels of their regions.
    class_weights
        One per class, or None.
    fine_tunes
        The model folder whose weights the training begins with, or None.
    """

    spec: UNetSpec
    settings: TrainSettings
    sampler: Sampler
    validation: tuple[LabelledRegion, ...]
    validation_scales: tuple[Scale, ...]
    scale: Scale
    class_weights: tuple[float, ...] | None
    class_names: tuple[str, ...]
    fine_tunes: str | None = None

    @property
    def voxels_per_class(self) -> tuple[int, ...]:
        """What the training regions hold, as far as was looked."""
        return tuple(int(n) for n in self.sampler.places.counts)

    @property
    def settled_from(self) -> int:
        """The step from which training computes as inference does: batch norm with fixed statistics."""
        share = self.settings.optimisation.freeze_norm
        if self.spec.norm == "none" or share == 1:
            return 1
        return int(share * self.settings.steps) + 1

    def validation_tiling(self, region: LabelledRegion, *, roi: Box | None = None) -> Tiling:
        """Tiles for one validation region, or a part of it, each a block of its own: nothing is written."""
        roi = roi or region.region
        volume = region.image.shape
        try:
            tile = choose_tile(
                self.spec, volume, roi, dtype="float32", device=self.settings.device, memory=VALIDATION_MEMORY
            )
        except InputError:
            tile = self.settings.patch  # fits: a training step holds more for it
        return Tiling(
            volume=volume,
            roi=roi,
            footprint=Footprint.of(self.spec),
            tile=tile,
            chunk=tile,
            shard=tile,
            block=tile,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: what was resolved."""
        sampler = self.sampler
        return {
            "spec": self.spec.to_dict(),
            "settings": self.settings.to_dict(),
            "sources": [source.reference() for source in sampler.sources],
            "scales": [scale.to_dict() for scale in sampler.scales],
            "places": sampler.places.to_dict(),
            "weights": sampler.weights,
            "validation": [region.reference() for region in self.validation],
            "validation_scales": [scale.to_dict() for scale in self.validation_scales],
            "scale": self.scale.to_dict(),
            "class_weights": self.class_weights,
            "class_names": self.class_names,
            "fine_tunes": self.fine_tunes,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        spec = UNetSpec(**data["spec"])
        settings = TrainSettings.from_dict(data["settings"])
        return cls(
            spec=spec,
            settings=settings,
            sampler=_sampler(
                spec,
                settings,
                sources=list(map(LabelledRegion.open, data["sources"])),
                scales=tuple(map(Scale.from_dict, data["scales"])),
                places=Places.from_dict(data["places"]),
                weights=None if data["weights"] is None else tuple(data["weights"]),
            ),
            validation=tuple(map(LabelledRegion.open, data["validation"])),
            validation_scales=tuple(map(Scale.from_dict, data["validation_scales"])),
            scale=Scale.from_dict(data["scale"]),
            class_weights=None if data["class_weights"] is None else tuple(data["class_weights"]),
            class_names=tuple(data["class_names"]),
            fine_tunes=data["fine_tunes"],
        )


def prepare(
    sources: Sequence[LabelledRegion],
    validation: Sequence[LabelledRegion],
    spec: UNetSpec,
    settings: TrainSettings,
    *,
    weights: Sequence[float] | None = None,
    fine_tunes: str | None = None,
) -> Plan:
    """Check everything that can be checked before the first step, and measure what the steps need.

    Parameters
    ----------
    weights
        One per source: how often it is drawn from, relative to its size.
    fine_tunes
        Model folder to begin with (`unet_core.checkpoint.adopt` says what must agree).

    Raises
    ------
    InputError
        A patch that does not fit the network, images with other channels than the network's, training
        and validation on common voxels, regions without foreground, labels without a class, a GPU
        asked for where there is none, NaN or infinite intensities among the voxels looked at, a model to
        begin with of another body.
    """
    if not sources:
        raise InputError("there is nothing to train on", expected="at least one labelled region")
    names = _check_network(spec, settings)
    _check_regions(sources, validation, spec)
    if fine_tunes is not None:
        adopt(UNet(spec), load_model(fine_tunes))
    labelling = _labelling(spec, settings)
    places = find_places(labelling, sources, objects=settings.balance == "object")
    if validation:
        labelling.probe(validation)
    scales = _measure_each((*sources, *validation), settings.normalisation)
    class_weights = settings.class_weights
    return Plan(
        spec=spec,
        settings=settings,
        sampler=_sampler(
            spec,
            settings,
            sources=sources,
            scales=scales[: len(sources)],
            places=places,
            weights=None if weights is None else tuple(weights),
        ),
        validation=tuple(validation),
        validation_scales=scales[len(sources) :],
        scale=_mean_scale(scales[: len(sources)], [source.region.size for source in sources]),
        class_weights=balanced_weights(places.counts) if isinstance(class_weights, str) else class_weights,
        class_names=names,
        fine_tunes=fine_tunes,
    )


def on_device(plan: Plan, device: str, dtype: str) -> Plan:
    """The same training with its device and arithmetic decided."""
    settings = replace(plan.settings, device=device, dtype=dtype)  # type: ignore[arg-type]
    return replace(plan, settings=settings)


def _labelling(spec: UNetSpec, settings: TrainSettings) -> Labelling:
    return Labelling(
        target=settings.target, classes=spec.classes, planar=spec.ndim == 2, border=settings.border
    )


def _sampler(
    spec: UNetSpec, settings: TrainSettings, *, sources: Sequence[LabelledRegion], **drawn_from: Any
) -> Sampler:
    recent = Recent(CHUNKS_KEPT)
    return Sampler(
        sources=tuple(source.keeping(recent) for source in sources),
        labelling=_labelling(spec, settings),
        footprint=Footprint.of(spec),
        patch=settings.patch,
        augment=settings.augment,
        foreground=settings.foreground,
        balance=settings.balance,
        **drawn_from,
    )


def _check_network(spec: UNetSpec, settings: TrainSettings) -> tuple[str, ...]:
    """Settings against the network; the names of the classes."""
    names = class_names(settings.target, spec.classes)
    for what, given in (("class_names", settings.class_names), ("class_weights", settings.class_weights)):
        if isinstance(given, tuple | list) and len(given) != spec.classes:
            raise InputError("one entry per class", where=what, expected=spec.classes, found=len(given))
    stride = Footprint.of(spec).stride
    flat = spec.ndim == 2
    if any(n % s for n, s in zip(settings.patch, stride)) or (flat and settings.patch[0] != 1):
        nearest = tuple(round_up(n, s) for n, s in zip(settings.patch, stride))
        raise InputError(
            "the patch does not fit the network's stride",
            where="patch",
            expected=f"multiples of {stride} on z, y, x, such as {(1, *nearest[1:]) if flat else nearest}",
            found=settings.patch,
        )
    require_device(settings.device)
    return settings.class_names or names


def require_device(device: str) -> None:
    """Refuse a GPU where there is none: there is no silent fallback."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "a GPU was asked for and this process sees none",
            where="device",
            expected="a CUDA device",
            found=f"torch {torch.__version__}, no CUDA device",
            fix='train where a GPU is, or with device "cpu"',
        )


def _check_regions(
    sources: Sequence[LabelledRegion], validation: Sequence[LabelledRegion], spec: UNetSpec
) -> None:
    for region in (*sources, *validation):
        if len(region.image.channels) != spec.in_channels:
            raise InputError(
                "the image has another number of channels than the network",
                where=region.image.url,
                expected=spec.in_channels,
                found=len(region.image.channels),
            )
    for region in validation:
        for source in sources:
            if region.overlaps(source):
                raise InputError(
                    "training and validation share voxels: the scores would be too good",
                    where=region.image.url,
                    expected="regions apart",
                    found=f"{source.region} and {region.region}",
                    fix=f"leave {source.region.intersect(region.region)} out of one of them",
                )


def _measure_each(regions: Sequence[LabelledRegion], rule: NormalisationRule) -> tuple[Scale, ...]:
    """Every image's own scale; an image that occurs twice is measured once."""
    keys = [repr(region.image.identity()) for region in regions]
    images = {key: region.image for key, region in zip(keys, regions)}
    measured = {key: measure(image, rule) for key, image in images.items()}
    return tuple(measured[key] for key in keys)


def _mean_scale(scales: Sequence[Scale], weights: Sequence[int]) -> Scale:
    def mean(values: list[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(float(v) for v in np.average(values, axis=0, weights=weights))

    return Scale(mean([s.offset for s in scales]), mean([s.spread for s in scales]))
