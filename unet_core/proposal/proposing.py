"""A whole training proposed: one choice per setting that follows from data and machine, with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from unet_core.budget import GIB
from unet_core.geometry import Box
from unet_core.proposal.facts import ImageFacts, LabelFacts, Machine
from unet_core.proposal.labelled import choose_target, class_shares, labelled_box, rare, split
from unet_core.proposal.network import (
    Network,
    choose_network,
    dimensions,
    flat_levels,
    useful_share,
)
from unet_core.targets import DERIVED, Target

Value = str | int | float | bool
_STEPS = 1000
_PROCESSOR = {"cpu": "CPU", "cuda": "GPU"}
_EM = 4.0  # anisotropy of grey uint8 volumes from which serial sections are likely


@dataclass(frozen=True)
class Choice:
    """One setting of `train`: its key ("augment.hue" in the table of that name), value and reason."""

    key: str
    value: Value
    why: str


def propose(
    image: ImageFacts,
    labels: LabelFacts,
    machine: Machine,
    *,
    region: Box | None = None,
    divided: bool = True,
    target: Target | None = None,
) -> tuple[Choice, ...]:
    """Choices in the order in which a person would make them.

    Parameters
    ----------
    region
        The box that the labels were looked at in; None is the whole image.
    divided
        Whether a part of the region is held out for validation; not so where whole volumes are.
    target
        What to learn, where that is known; chosen from the labels otherwise.

    Raises
    ------
    InputError
        No network fits in memory, a region of one voxel that is to be divided, labels that are no classes.
    """
    region = region or Box.of_shape(image.shape)
    ndim, why_ndim = dimensions(image, labels)
    target, ignore, why_target = choose_target(labels, target)
    if len(labels.below_zero) == 1:  # such as -1; of several nobody can tell, and training refuses them
        (ignore,) = labels.below_zero
    choices = [Choice("target", target, f"{why_target}. Also possible: {_others(target)}")]
    if ignore is not None:
        choices.append(Choice("ignore", ignore, "taken for voxels that nobody labelled; leave it out if not"))
    shares = class_shares(labels, target, ignore)
    classes = max(2, len(shares)) if target == "semantic" else len(DERIVED[target])
    if target == "semantic":
        choices.append(Choice("classes", classes, f"the highest label is {classes - 1}; 0 is a class, too"))
    training = region
    if divided:
        training, why_region = labelled_box(labels, region)
        training, held_out, why_split = split(labels, training, region, ndim=ndim)
        choices += [
            Choice("region", str(training), f"{why_region}; what is held out is left out"),
            Choice("validation_region", str(held_out), f"Held out: {why_split}. It must not overlap region"),
        ]
    network = choose_network(image, labels, machine, ndim=ndim, classes=classes, region=training.shape)
    choices.append(Choice("ndim", ndim, f"{why_ndim}. Also possible: {5 - ndim}{_also_ndim(image, ndim)}"))
    choices += _network(image, labels, machine, network)
    choices += _loss(target, shares)
    choices += _optimisation(machine)
    return (*choices, *_augmentation(image, ndim))


def _others(target: Target) -> str:
    if target == "semantic":
        return ", ".join(DERIVED) + ", if the labels are ids of objects"
    others = [name for name in DERIVED if name != target]
    reasons = {
        "foreground": "objects against background",
        "separated": "the same, with touching objects kept apart",
        "boundary": "outlines",
        "interior-boundary": "background, interior and outlines",
    }
    return "; ".join(f"{name} ({reasons[name]})" for name in others)


def _also_ndim(image: ImageFacts, ndim: int) -> str:
    if ndim == 3:
        return ", faster, if planes can be told without their neighbours"
    return "" if image.shape[0] == 1 else ", if objects can only be told across planes"


def _network(image: ImageFacts, labels: LabelFacts, machine: Machine, network: Network) -> list[Choice]:
    spec = network.spec
    size = (
        "objects reach through the boxes that were looked at"
        if labels.extent is None
        else f"objects are about {' × '.join(f'{n:.0f}' for n in labels.extent[3 - spec.ndim :])} voxels"
    )
    lower, _ = spec.context
    context = " × ".join(map(str, lower))
    choices = [
        Choice("depth", spec.depth, f"{size}; the network sees {context} around each; deeper sees farther"),
        Choice(
            "base",
            spec.widths[0],
            f"features of the top level, doubling downwards, as a {_PROCESSOR[machine.device]} can take them;"
            " the paper has 64, half as many cost about a quarter of the time",
        ),
    ]
    if spec.ndim == 3:
        flat = flat_levels(image)
        why = (
            "voxels are about as long along every axis: all levels pool all axes"
            if not flat
            else f"after {flat} pooling{'s' if flat > 1 else ''} in the plane alone, voxels that are"
            f" {image.anisotropy:.3g} times as long along z are about cubes"
        )
        if image.voxel_size is None:
            why = "the image does not say its voxel size and counts as isotropic; 1 if z is twice as long"
        flat_in_use = sum(pool[0] == 1 for pool in spec.pools)
        choices.append(Choice("anisotropic_levels", flat_in_use, why))
    shape = ",".join(map(str, network.patch))
    choices += [
        Choice("norm", "batch", "learns faster; folded into the convolutions afterwards. Or none"),
        Choice(
            "patch",
            shape,
            f"{useful_share(network):.0%} of the arithmetic is for its voxels, the rest for their context;"
            f" multiples of {','.join(map(str, spec.stride))}. Larger wastes less and needs more memory",
        ),
        Choice(
            "batch",
            network.batch,
            f"a step needs about {network.needed / GIB:.2f} GiB of the {machine.memory / GIB:.1f} GiB that it"
            " may take here; accumulate computes a batch in parts",
        ),
    ]
    return choices


def _loss(target: Target, shares: tuple[float, ...]) -> list[Choice]:
    about = ", ".join(f"{share:.1%}" for share in shares)
    seldom = rare(shares)
    weights = Choice(
        "class_weights",
        "balanced" if seldom else "none",
        f"the classes' shares are about {about}: {'rare ones count more' if seldom else 'none is rare'}."
        f" Also possible: {'none' if seldom else 'balanced'}, or numbers such as 1,3",
    )
    loss = Choice("loss", "cross_entropy", "the paper's. Also possible: dice, or cross_entropy+dice")
    if target == "semantic":
        return [loss, weights]
    gaps = target == "separated"
    border = Choice(
        "border_weight",
        10.0 if gaps else 0.0,
        "the paper's w0: gaps between touching objects count up to so much more. 0 does without"
        if gaps
        else "the paper's map for touching objects, of which there are few or none here; there 10",
    )
    return [loss, weights, border]


def _optimisation(machine: Machine) -> list[Choice]:
    every = _STEPS // 10
    return [
        Choice("steps", _STEPS, "a beginning; go on until the validation no longer gets better"),
        Choice("optimiser", "adamw", "also possible: sgd, the paper's, with a momentum of 0.99"),
        Choice("learning_rate", 2e-3, "suits adamw with batch norm; a tenth of it without"),
        Choice("validate_every", every, "the weights that validate best are kept"),
        Choice("checkpoint_every", every, "so much is done again after a crash"),
        Choice("early_stop", 0, "such as 5: ends after so many validations without a better one"),
        Choice("device", machine.device, "auto takes a GPU where there is one; there is no silent fallback"),
    ]


def _augmentation(image: ImageFacts, ndim: int) -> list[Choice]:
    colour = image.channels == 3 and image.dtype == "uint8"
    sections = ndim == 3 and image.channels == 1 and image.dtype == "uint8" and image.anisotropy >= _EM
    choices = [
        Choice("augment.flips", True, "false where left and right, or up and down, mean something"),
        Choice("augment.elastic", 10.0, "the paper's deformation; 0 for rigid objects"),
    ]
    if colour:
        choices += [
            Choice("augment.saturation", 0.2, "three uint8 channels are taken for RGB; 0 if they are not"),
            Choice("augment.hue", 10.0, "degrees; stainings differ"),
        ]
    if sections:
        why = f"grey, {image.anisotropy:.3g}:1: taken for serial sections; 0 if none are bad"
        choices += [Choice(f"augment.{name}_slices", 0.02, why) for name in ("missing", "shifted")]
    return choices
