"""What a training needs and what is odd about it, said before its first step."""

from __future__ import annotations

from collections.abc import Iterator

from unet_core.budget import CHUNKS_KEPT, GIB, WORKER_BASE, beside_training_bytes, training_bytes
from unet_core.errors import InputError
from unet_core.geometry import ceil_div, round_up
from unet_core.training.plan import Plan


def bytes_per_rank(plan: Plan, ranks: int, *, dtype: str) -> int:
    """Peak memory of one of so many ranks, in bytes; with a GPU the step itself lies there."""
    settings = plan.settings
    items = ceil_div(settings.batch, ranks)
    patch = settings.patch[3 - plan.spec.ndim :]
    states = 2 if settings.optimisation.optimiser == "adamw" else 1
    average = settings.optimisation.ema > 0
    part = ceil_div(items, settings.accumulate)
    step = training_bytes(plan.spec, patch, part, dtype, optimiser_states=states, average=average)
    beside = beside_training_bytes(plan.spec, patch, items, border=settings.border is not None)
    arrays = {v.where: v.array.nbytes for s in plan.sampler.sources for v in (s.image, s.labels)}
    kept = plan.sampler.kept_bytes + min(CHUNKS_KEPT, sum(arrays.values()))
    return WORKER_BASE + step + beside + kept


def require_memory(plan: Plan, ranks: int, *, dtype: str, available: int) -> None:
    """Refuse a training that this machine cannot hold with so many ranks on it.

    Raises
    ------
    InputError
        Naming what is needed, what is there and the options to change.
    """
    needed = bytes_per_rank(plan, ranks, dtype=dtype)
    if ranks * needed > available:
        raise InputError(
            "this training does not fit in memory",
            expected=f"{ranks * needed / GIB:.2f} GiB for {ranks} rank{'s' if ranks > 1 else ''}",
            found=f"{available / GIB:.2f} GiB available",
            fix=f"choose a smaller --patch{_enough(plan)}, --batch or --base, a larger --accumulate, or a"
            " 16-bit --dtype",
        )


def _enough(plan: Plan) -> str:
    """For a patch that is larger than all regions: the one that covers them."""
    regions = [source.region.shape for source in plan.sampler.sources]
    stride = plan.sampler.footprint.stride
    covering = tuple(round_up(max(lengths), s) for lengths, s in zip(zip(*regions), stride))
    smaller = tuple(map(min, covering, plan.settings.patch))
    if smaller == plan.settings.patch:
        return ""
    return f" ({','.join(map(str, smaller[3 - plan.spec.ndim :]))} covers every region)"


def notes(plan: Plan) -> Iterator[str]:
    """What is allowed and may surprise, one sentence each."""
    if small := [*_smaller_than_a_patch(plan)]:
        more = f" (and {len(small) - 1} more of the {len(plan.sampler.sources)} regions)" if small[1:] else ""
        yield f"{small[0]}{more}: it is mirrored there, and the loss covers what is labelled"
    if not plan.validation:
        yield "no region is held out: nothing is validated, and the last weights are kept, not the best"
        if plan.settings.early_stop:
            yield "early_stop has nothing to look at without validation: all steps will be done"
    if plan.settings.loss.kind == "dice" and (plan.class_weights or plan.settings.border):
        yield 'the loss "dice" knows no weights: class_weights and border_weight change nothing'
    augment, channels = plan.settings.augment, plan.spec.in_channels
    if channels != 3 and (augment.saturation or augment.hue):
        yield f"saturation and hue change images of three channels: with {channels} they do nothing"
    if plan.spec.ndim == 2 and (augment.missing_slices or augment.shifted_slices):
        yield "missing and shifted slices are for 3D networks: they do nothing in 2D"
    names = [name for name, n in zip(plan.class_names, plan.voxels_per_class) if not n]
    if names:
        yield f"no voxel of {', '.join(names)} was found in the labels that were looked at"


def _smaller_than_a_patch(plan: Plan) -> Iterator[str]:
    for source in plan.sampler.sources:
        sizes = zip("zyx", source.image.shape, plan.settings.patch)
        if short := [f"{axis} ({n} of {p})" for axis, n, p in sizes if n < p]:
            yield f"{source.image.url} is smaller than a patch along {', '.join(short)}"
