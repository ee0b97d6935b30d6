"""What people may ask for: one strict schema behind flow parameters, command-line options and TOML files.

Fields are flat and of plain types, because Prefect's deployments replace whole top-level parameters.
Imports nothing heavy: `unet-flows --help` reads this module.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.suggestions import refusal
from unet_core.errors import InputError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TargetName = Literal["semantic", "foreground", "separated", "boundary", "interior-boundary"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class Config(BaseModel):
    """Base of all schemas: unknown fields are refused, nothing is coerced silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def argument(description: str) -> Any:
    """A required field that the command line takes by position."""
    return Field(description=description, json_schema_extra={"argument": True})


class SegmentConfig(Config):
    """Parameters of `segment`. Boxes and shapes are z, y, x in voxels of `level`."""

    volume: str = argument("OME-Zarr image or Zarr array to segment; a local path or s3:// URL")
    model: str = Field(description="Model folder, as `train` writes it")
    to: str = Field(description="Label volume to write, such as labels.zarr")
    roi: str | None = Field(
        None, description="Only this box, as z0:z1,y0:y1,x0:x1; the output keeps the volume's shape"
    )
    level: Count = Field(0, description="Pyramid level to segment; 0 is the finest")
    channels: str | None = Field(None, description="Channels that the model sees, such as 0 or 0,2")
    timepoint: Count = Field(0, description="Time point to segment")
    probabilities: bool = Field(False, description="Also write class probabilities as uint8, p = v / 255")
    instances: Literal["components", "watershed"] | None = Field(
        None,
        description="One id per object instead of classes: connected components of the foreground, or a "
        "watershed that splits what touches",
    )
    foreground: str | None = Field(
        None, description="Classes that are objects, such as 1,2; the default is what the model calls inside"
    )
    threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Least probability of the foreground; the default is the likeliest class",
    )
    connectivity: Literal["face", "full"] = Field(
        "face", description="Voxels of an object touch by faces, or by edges and corners too"
    )
    connect: Literal["3d", "2d"] = Field("3d", description="2d makes every plane's objects its own")
    fill_holes: bool = Field(
        False, description="Fill background that one class of objects encloses, off the volume's face"
    )
    min_size: Positive = Field(
        1,
        description="Voxels of the smallest object that is kept; a watershed joins smaller ones to others",
    )
    persistence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Watershed: how much narrower than the thinner of two bodies a neck must be to part "
        "them; the default is 0.1, and 0.4 where the model finds boundaries",
    )
    prominence: float | None = Field(
        None, ge=0, le=1, description="Watershed: the same, of the thicker body; the default is 0.1"
    )
    radius: int | None = Field(
        None,
        ge=1,
        description="Watershed: depth inside objects up to which necks are found, in finest voxel edges; "
        "the default is 32, and 64 in planes",
    )
    mask: str | None = Field(
        None,
        description="Volume over the image, as fine or coarser: where it is 0, nothing is computed and the "
        "result is background",
    )
    mask_level: Count = Field(0, description="Pyramid level of --mask; 0 is its finest")
    skip_below: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Compute nothing, and write background, where a coarse level of the image is nowhere "
        "near above this intensity",
    )
    skip_level: int | None = Field(
        None,
        ge=0,
        description="Pyramid level that --skip-below looks at; the default is the coarsest whose voxels are "
        "at most 8 of those segmented",
    )
    skip_margin: Count = Field(
        1, description="Voxels of that level around those above --skip-below that are kept, too"
    )
    tile: str | None = Field(
        None, description="Output box of one forward pass, z,y,x; multiples of the stride"
    )
    block: str | None = Field(
        None, description="Unit of scheduling and resuming, z,y,x; whole tiles and shards"
    )
    memory: str | None = Field(
        None, description="What one worker may take, such as 8GiB: a larger tile wastes less arithmetic"
    )
    dtype: Dtype = Field("auto", description="Arithmetic of the network")
    normalisation: Literal["volume", "model"] = Field(
        "volume", description="Intensity scale measured on this volume, or the training data's own"
    )
    workers: int | None = Field(
        None, ge=1, description="Worker processes on this machine; the default is one with all cores"
    )
    cluster: str | None = Field(None, description="TOML file that says where Dask workers come from")
    restart: bool = Field(
        False, description="Take away what an earlier run wrote there, and begin anew (asks first)"
    )
    retry_failed: bool = Field(False, description="Do those blocks alone that are in quarantine")
    partial: bool = Field(False, description="Take an input volume that is not complete, too")
    block_timeout: float | None = Field(
        None, gt=0, description="Seconds after which a block counts as hung; the default follows its size"
    )


class StitchConfig(Config):
    """Parameters of `stitch`."""

    labels: str = argument("Output of segment --instances, the local labels of which are merged anew")
    to: str = Field(description="Label volume to write, such as other.zarr")
    min_size: int | None = Field(
        None, ge=1, description="Voxels of the smallest object that is kept; the default is as it was"
    )
    persistence: float | None = Field(
        None, ge=0, le=1, description="Of a watershed, see segment; at least half of what it was"
    )
    prominence: float | None = Field(
        None, ge=0, le=1, description="Of a watershed, see segment; at least half of what it was"
    )
    workers: int | None = Field(
        None, ge=1, description="Worker processes on this machine; the default is one with all cores"
    )
    cluster: str | None = Field(None, description="TOML file that says where Dask workers come from")
    restart: bool = Field(
        False, description="Take away what an earlier run wrote there, and begin anew (asks first)"
    )
    retry_failed: bool = Field(False, description="Do those blocks alone that are in quarantine")


class IngestConfig(Config):
    """Parameters of `ingest`."""

    sources: list[str] = argument("TIFF, HDF5, NPZ or PNG files; several files are planes of one stack")
    to: str = Field(description="OME-Zarr volume to write, such as volume.zarr; with --each a folder of such")
    each: bool = Field(
        False, description="Every file is a volume of its own, named after it, such as the 2D images of a set"
    )
    dataset: str | None = Field(None, description="Name of the dataset inside an HDF5 or NPZ file")
    axes: str | None = Field(
        None, description="Axes of the source, such as zyx or zcyx, where it does not say"
    )
    voxel_size: str | None = Field(None, description="Physical voxel size z,y,x, such as 50,4,4")
    unit: str | None = Field(None, description="Unit of the voxel size, such as nanometer or micrometer")
    kind: Literal["image", "labels"] = Field(
        "image",
        description="Labels are down-sampled by the most frequent label, images by the mean",
        json_schema_extra={"option": "--as"},
    )
    restart: bool = Field(
        False, description="Take away what an earlier run wrote there, and begin anew (asks first)"
    )
    retry_failed: bool = Field(False, description="Do those blocks alone that are in quarantine")


class Pair(Config):
    """An image with labels, and the box of it that counts; or a set of them, paired by name.

    A set: `*` in both paths, or two folders of volumes.
    """

    image: str
    labels: str
    region: str | None = None
    ignore: int | None = Field(None, description="Label of voxels that nobody labelled")
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class AugmentConfig(Config):
    """The [augment] table: what `unet_core.augment.AugmentSettings` says, with its defaults."""

    flips: bool = True
    rotations: bool = True
    deformed: float = 0.7
    rotation: float = 180.0
    scaling: float = 0.2
    elastic: float = 10.0
    elastic_grid: int = 3
    brightness: float = 0.2
    contrast: float = 0.3
    gamma: float = 0.3
    noise: float = 0.1
    blur: float = 1.0
    saturation: float = 0.0
    hue: float = 0.0
    missing_slices: float = 0.0
    shifted_slices: float = 0.0


class TrainConfig(Config):
    """Parameters of `train`; a TOML file holds the same names. `unet-flows train --init` writes one.

    One pair is given by `image`, `labels`, `region` and `validation_region`; several, in a TOML file, as
    [[pairs]] and [[validation]] tables.
    """

    to: str = Field(description="Model folder to write")
    image: str | None = Field(
        None, description="OME-Zarr image to train on; a set of them with * or as a folder"
    )
    labels: str | None = Field(None, description="Its labels: classes or instance ids")
    region: str | None = Field(None, description="Box of the image to train on, z0:z1,y0:y1,x0:x1")
    validation_region: str | None = Field(None, description="Box of the image held out to validate on")
    pairs: list[Pair] = Field([], json_schema_extra={"file_only": True})
    validation: list[Pair] = Field([], json_schema_extra={"file_only": True})
    ignore: int | None = Field(None, description="Label of voxels that nobody labelled")
    target: TargetName = Field(
        "semantic", description="What to learn: classes as they are, or what instance ids are made into"
    )
    classes: int | None = Field(
        None, ge=2, description="Number of classes, background included; the default is the target's, or 2"
    )
    channels: str | None = Field(None, description="Channels that the model sees, such as 0 or 0,2")
    fine_tune: str | None = Field(
        None, description="Model folder to begin with, of the same body; classes may differ"
    )
    ndim: Literal[2, 3] = Field(3, description="2 trains on planes, 3 on volumes")
    depth: Annotated[int, Field(ge=0, le=6)] = Field(2, description="Number of poolings")
    base: Positive = Field(16, description="Feature channels of the top level; they double per level")
    anisotropic_levels: Count = Field(0, description="Levels from the top that leave z alone")
    upsampling: Literal["nearest", "transpose"] = Field(
        "transpose", description="How the network goes up again"
    )
    norm: Literal["none", "batch"] = Field(
        "batch", description="Batch norm after each convolution: learns faster, folded away for inference"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout at the end of the contracting path"
    )
    patch: str | None = Field(None, description="Output box of one training patch, z,y,x (y,x in 2D)")
    batch: Positive = Field(1, description="Patches per step, over all ranks together")
    accumulate: Positive = Field(1, description="Parts a rank computes its patches in: less memory")
    steps: Positive = Field(1000, description="Optimiser steps")
    optimiser: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or the paper's SGD with momentum")
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = Field(2e-3, description="Highest learning rate")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="Momentum of SGD")
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = Field(1e-2, description="Weight decay")
    schedule: Literal["one-cycle", "cosine", "polynomial", "constant"] = Field(
        "one-cycle", description="How the learning rate changes"
    )
    gradient_clip: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Largest norm of the gradient; 0 clips nothing"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99, description="Decay per step of the average of weights that is kept; 0 keeps the weights"
    )
    freeze_norm: Annotated[float, Field(gt=0, le=1)] = Field(
        0.75, description="Share of the steps after which batch norm does as in inference; 1 never"
    )
    loss: Literal["cross_entropy", "dice", "cross_entropy+dice"] = Field(
        "cross_entropy", description="Softmax cross-entropy, soft Dice, or their sum"
    )
    border_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="w0 of the paper's border weight map, there 10; 0 does without it"
    )
    border_sigma: Annotated[float, Field(gt=0)] = Field(
        5.0, description="sigma of the border weight map, in voxels of the finest axis"
    )
    class_weights: str = Field(
        "none", description="Weigh classes in the loss: none, balanced (by rarity), or numbers such as 1,3"
    )
    foreground: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="Share of the patches placed on a voxel above class 0"
    )
    balance: Literal["class", "object"] = Field(
        "class", description="Draw these evenly among classes, or among objects"
    )
    augment: AugmentConfig = Field(AugmentConfig(), json_schema_extra={"file_only": True})
    dtype: Dtype = Field(
        "auto", description="Arithmetic in training; auto: 16 bits where the device is made for it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes the workers' GPUs where they have some"
    )
    compile: bool = Field(False, description="Let torch.compile write kernels: for long trainings on GPUs")
    validate_every: Positive = Field(100, description="Steps between validations")
    checkpoint_every: Positive = Field(100, description="Steps between checkpoints")
    early_stop: Count = Field(0, description="End after so many validations without a better one; 0 never")
    # torch's generators take no more.
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Of weights, patches and augmentation")
    workers: int | None = Field(
        None, ge=1, description="Ranks on this machine; the default is one per GPU, or one with all cores"
    )
    cluster: str | None = Field(None, description="TOML file that says where Dask workers come from")
    loaders: Positive = Field(2, description="Threads of a rank that read and augment patches")
    max_restarts: Count = Field(3, description="How often a training goes on after a rank or worker died")
    restart: bool = Field(
        False, description="Take away what an earlier training wrote there, and begin anew (asks first)"
    )
    partial: bool = Field(False, description="Take volumes that are not complete, too")


class ClusterConfig(Config):
    """Where Dask workers come from; the TOML file behind `--cluster`."""

    kind: Literal["local", "address", "class"] = "local"
    workers: Positive = 1
    threads: int | None = Field(
        None, ge=1, description="Threads of one worker's arithmetic; all cores shared evenly"
    )
    address: str | None = Field(None, description="Address of a running scheduler, for kind = address")
    cluster_class: str | None = Field(None, description="Import path of a cluster class, for kind = class")
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of that class")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        # An address without its kind would start workers here, on the wrong machine.
        for kind, key in (("address", self.address), ("class", self.cluster_class)):
            name = "address" if kind == "address" else "cluster_class"
            if (self.kind == kind) != (key is not None):
                raise ValueError(f'kind = "{kind}" and {name} go together')
        return self


C = TypeVar("C", bound=Config)


def validate(
    model: type[C], values: dict[str, Any], *, where: str | None = None, options: Collection[str] = ()
) -> C:
    """Values to a config; those named in `options` were typed as options, the others stand in `where`.

    Raises
    ------
    InputError
        Every unknown, missing or ill-typed field, in one message.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise refusal(error, model, where=where, options=options) from None


def read_toml(path: str) -> dict[str, Any]:
    """A TOML file as a dict; InputError where it is missing or does not parse."""
    try:
        return tomllib.loads(Path(path).read_bytes().decode())
    except OSError as error:
        raise InputError("this file cannot be read", where=path, found=error.strerror) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("this is not TOML", where=path, found=error) from None


def read_training(path: str | None, flags: dict[str, Any]) -> TrainConfig:
    """The TOML file's parameters with the flags' over them; InputError names unknown or missing ones."""
    values = {**(read_toml(path) if path else {}), **flags}
    return validate(TrainConfig, values, where=path, options=flags)


def read_cluster(path: str | None, *, workers: int | None) -> ClusterConfig:
    """The cluster to use: that of a TOML file, with `workers` over what it says, or the local default."""
    values = read_toml(path) if path else {}
    # The file is the table, or holds one of that name alone: what stands beside it would not count.
    table = values["cluster"] if values.keys() == {"cluster"} else values
    if not isinstance(table, dict):
        raise InputError("`cluster` is not a table", where=path, expected="[cluster]", found=repr(table))
    return validate(ClusterConfig, {**table, **({"workers": workers} if workers else {})}, where=path)
