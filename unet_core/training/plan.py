"""Everything about a training that can be checked or measured before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unet_core.architecture import UNetSpec
from unet_core.augment import Augmentation, common_voxel_size
from unet_core.budget import choose_tile
from unet_core.errors import InputError
from unet_core.geometry import round_up
from unet_core.loss import balanced_weights
from unet_core.normalisation import NormalisationRule, Scale, measure
from unet_core.sampling import LabelledRegion, Labelling, Sampler
from unet_core.targets import class_names
from unet_core.tiling import Footprint, Tiling
from unet_core.training.settings import TrainSettings

VALIDATION_MEMORY = 2**30  # bytes for the tensors of one validation tile


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a training needs, checked; no network yet, nothing written.

    Parameters
    ----------
    validation, validation_scales
        Regions apart from those of `sampler`, each with the intensity scale of its image.
    scale
        The training data's own, for the model folder: the mean of the sources' scales, weighted by
        the voxels of their regions.
    class_weights
        One per class, or None.
    voxels_per_class
        What the training regions hold, as far as was looked.
    """

    spec: UNetSpec
    settings: TrainSettings
    sampler: Sampler
    augmentation: Augmentation
    validation: tuple[LabelledRegion, ...]
    validation_scales: tuple[Scale, ...]
    scale: Scale
    class_weights: tuple[float, ...] | None
    class_names: tuple[str, ...]
    voxels_per_class: tuple[int, ...]

    def validation_tiling(self, region: LabelledRegion) -> Tiling:
        """Tiles for one validation region, each a block of its own: nothing is written."""
        volume = region.image.shape
        try:
            tile = choose_tile(self.spec, volume, region.region, dtype="float32", memory=VALIDATION_MEMORY)
        except InputError:
            tile = self.settings.patch  # fits: a training step holds more for it
        return Tiling(
            volume=volume,
            roi=region.region,
            footprint=Footprint.of(self.spec),
            tile=tile,
            chunk=tile,
            shard=tile,
            block=tile,
        )


def prepare(
    sources: Sequence[LabelledRegion],
    validation: Sequence[LabelledRegion],
    spec: UNetSpec,
    settings: TrainSettings,
) -> Plan:
    """Check everything that can be checked before the first step, and measure what the steps need.

    Raises
    ------
    InputError
        A patch that does not fit the network, images with other channels than the network's, training
        and validation on common voxels, regions without foreground, labels without a class, a GPU
        asked for where there is none, NaN or infinite intensities among the voxels looked at.
    """
    if not sources:
        raise InputError("there is nothing to train on", expected="at least one labelled region")
    names = _check_network(spec, settings)
    _check_regions(sources, validation, spec)
    labelling = Labelling(target=settings.target, classes=spec.classes, planar=spec.ndim == 2)
    counts = labelling.probe(sources)
    if validation:
        labelling.probe(validation)
    scales = _measure_each((*sources, *validation), settings.normalisation)
    augmentation = Augmentation(
        settings=settings.augment,
        footprint=Footprint.of(spec),
        patch=settings.patch,
        voxel_size=common_voxel_size([source.image.voxel_size for source in sources]),
    )
    weights = settings.class_weights
    return Plan(
        spec=spec,
        settings=settings,
        sampler=Sampler(
            sources=tuple(sources),
            scales=scales[: len(sources)],
            labelling=labelling,
            patch=settings.patch,
            margin=augmentation.margin,
            foreground=settings.foreground,
            wanted=tuple(k for k in range(1, spec.classes) if counts[k]),
        ),
        augmentation=augmentation,
        validation=tuple(validation),
        validation_scales=scales[len(sources) :],
        scale=_mean_scale(scales[: len(sources)], [source.region.size for source in sources]),
        class_weights=balanced_weights(counts) if isinstance(weights, str) else weights,
        class_names=names,
        voxels_per_class=tuple(int(n) for n in counts),
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
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "a GPU was asked for and this process sees none",
            where="device",
            expected="a CUDA device",
            found=f"torch {torch.__version__}, no CUDA device",
            fix='train where a GPU is, or with device "cpu"',
        )
    return settings.class_names or names


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
