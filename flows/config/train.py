"""What `train` may be asked for; a TOML file holds the same names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from flows.config.base import Config, Count, Dtype, Positive, read_toml, validate

TargetName = Literal["semantic", "foreground", "separated", "boundary", "interior-boundary"]


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
    pairs: list[Pair] = Field(
        [],
        description="Several images with their labels to train on, in place of one",
        json_schema_extra={"file_only": True},
    )
    validation: list[Pair] = Field(
        [],
        description="Images with labels that are held out to validate on",
        json_schema_extra={"file_only": True},
    )
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
    augment: AugmentConfig = Field(
        AugmentConfig(),
        description="How patches are varied: how far, and how likely",
        json_schema_extra={"file_only": True},
    )
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
    cluster: str | dict[str, Any] | None = Field(
        None, description="TOML file that says where Dask workers come from; or its table itself"
    )
    loaders: Positive = Field(2, description="Threads of a rank that read and augment patches")
    max_restarts: Count = Field(3, description="How often a training goes on after a rank or worker died")
    restart: bool = Field(False, description="Take away what an earlier training wrote there, and begin anew")
    partial: bool = Field(False, description="Take volumes that are not complete, too")


def read_training(path: str | None, flags: dict[str, Any]) -> TrainConfig:
    """The TOML file's parameters with the flags' over them; InputError names unknown or missing ones."""
    values = {**(read_toml(path) if path else {}), **flags}
    return validate(TrainConfig, values, where=path, options=flags)
