"""Which network, and how much of a volume at a time: from geometry, objects and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2, prod

from unet_core.architecture import UNetSpec
from unet_core.budget import CHUNKS_KEPT, GIB, beside_training_bytes, training_bytes
from unet_core.errors import InputError
from unet_core.geometry import Shape, round_up
from unet_core.proposal.facts import INDEPENDENT, ImageFacts, LabelFacts, Machine

FEW_PLANES = 12  # a 3D network of one pooling loses more than that to its context
STRONG = 8.0  # anisotropy beyond which planes hardly know of each other
SERIES = 8  # planes so many times larger than the stack is high, and no voxel size: time points, most likely

_FEATURES = {("cpu", 2): 32, ("cpu", 3): 16, ("cuda", 2): 64, ("cuda", 3): 32}
_DEEPEST = {2: 4, 3: 3}
_SIDES = {
    2: (512, 384, 320, 256, 192, 128, 96, 64, 48, 32, 16),
    3: (128, 96, 80, 64, 48, 40, 32, 24, 16, 8),
}
# Multiply-accumulates of one step's forward pass: a step of about two seconds on two CPU cores, or of a
# fraction of one on a GPU.
_WORK = {"cpu": 4e10, "cuda": 2e12}
_LARGEST_BATCH = 8
# Of the arithmetic of a step: a third pooling that leaves less for the patch itself does not pay.
_LEAST_USEFUL = 0.25


@dataclass(frozen=True, kw_only=True)
class Network:
    """`patch` is the output shape of one training patch, an entry per axis of the network."""

    spec: UNetSpec
    patch: Shape
    batch: int
    dtype: str
    needed: int  # bytes of one step


def dimensions(image: ImageFacts, labels: LabelFacts) -> tuple[int, str]:
    """2 or 3, and why."""
    planes = image.shape[0]
    if planes == 1:
        return 2, "the image is a single plane"
    if labels.continuity < INDEPENDENT:
        return 2, "labels of neighbouring planes have little to do with each other: images of their own"
    if planes < FEW_PLANES:
        return 2, f"{planes} planes are fewer than the context of a 3D network"
    if image.anisotropy > STRONG:
        return 2, f"voxels are {image.anisotropy:.3g} times as long along z as in the plane"
    if image.voxel_size is None and planes * SERIES < min(image.shape[1:]):
        return 2, f"{planes} large planes without a voxel size are taken for a series of images"
    return 3, f"{planes} planes, voxels {image.anisotropy:.3g} times as long along z as in the plane"


def flat_levels(image: ImageFacts) -> int:
    """Poolings in the plane alone after which voxels are nearest to cubes."""
    return max(0, round(log2(image.anisotropy))) if image.anisotropy > 0 else 0


def choose_network(
    image: ImageFacts, labels: LabelFacts, machine: Machine, *, ndim: int, classes: int, region: Shape
) -> Network:
    """Depth from the objects and the volume, then the largest patch that pays and fits.

    Raises
    ------
    InputError
        Not even the smallest patch of the shallowest network fits in memory.
    """
    base = _FEATURES[machine.device, ndim]
    flat = flat_levels(image) if ndim == 3 else 0
    for depth in range(_wanted_depth(labels, ndim), 0, -1):
        spec = UNetSpec.build(
            ndim=ndim,
            depth=depth,
            base=base,
            in_channels=image.channels,
            classes=classes,
            anisotropic_levels=min(flat, depth),
            dropout=0.0,
            norm="batch",
        )
        lower, _ = spec.context
        # A context longer than an axis is mirrored more than it is seen.
        if depth > 1 and any(c > n for c, n in zip(lower, image.shape[3 - ndim :])):
            continue
        for patch in _patches(spec, region[3 - ndim :], image.anisotropy):
            needed = _needed(spec, patch, 1, machine)
            work = spec.macs(spec.read_shape(patch))
            smallest = patch == spec.stride
            if needed <= machine.memory and (work <= _WORK[machine.device] or smallest):
                batch = 1
                while batch < _LARGEST_BATCH and 2 * batch * work <= _WORK[machine.device]:
                    if _needed(spec, patch, 2 * batch, machine) > machine.memory:
                        break
                    batch *= 2
                total = _needed(spec, patch, batch, machine)
                network = Network(spec=spec, patch=patch, batch=batch, dtype=_dtype(machine), needed=total)
                if depth > 2 and useful_share(network) < _LEAST_USEFUL:
                    break
                return network
    raise InputError(
        "no network fits in memory",
        expected=f"{_needed(spec, spec.stride, 1, machine) / GIB:.2f} GiB for a step of the smallest",
        found=f"{machine.memory / GIB:.2f} GiB",
        fix="use a larger machine, or close other programs",
    )


def _dtype(machine: Machine) -> str:
    return "float32" if machine.device == "cpu" else "bfloat16"


def _needed(spec: UNetSpec, patch: Shape, batch: int, machine: Machine) -> int:
    """Bytes of the device's memory that a training takes, with a border weight map: data may ask for one."""
    step = training_bytes(spec, patch, batch, _dtype(machine))
    beside = beside_training_bytes(spec, patch, batch, border=True) + CHUNKS_KEPT
    return step + beside if machine.device == "cpu" else step


def _wanted_depth(labels: LabelFacts, ndim: int) -> int:
    """So deep that an object of median size is about 16 voxels wide at the bottom."""
    deepest = _DEEPEST[ndim]
    if labels.extent is None:
        return deepest
    across = max(max(labels.extent[1:]), 1.0)
    return min(max(round(log2(across / 16)) + 1, 2), deepest)


def _patches(spec: UNetSpec, region: Shape, anisotropy: float) -> Iterator[Shape]:
    """Output shapes from large to small: about cubes, whole strides, none longer than the region needs."""
    seen = set()
    for side in (*_SIDES[spec.ndim], 1):
        sides = (round(side / max(anisotropy, 1.0)) or 1, side, side)[-spec.ndim :]
        patch = tuple(round_up(min(s, n), k) for s, n, k in zip(sides, region, spec.stride))
        if patch not in seen:
            seen.add(patch)
            yield patch


def useful_share(network: Network) -> float:
    """Arithmetic that an endless patch would need per output voxel, against this one's."""
    spec = network.spec
    return spec.macs_per_voxel() * prod(network.patch) / spec.macs(spec.read_shape(network.patch))
