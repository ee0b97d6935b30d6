"""What `segment` and `stitch` may be asked for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from flows.config.base import Config, Count, Dtype, Positive, argument


class HowToSegment(Config):
    """What `segment` and `watch` have in common. Boxes and shapes are z, y, x in voxels of `level`."""

    model: str = Field(description="Model folder, as `train` writes it")
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
    cluster: str | dict[str, Any] | None = Field(
        None, description="TOML file that says where Dask workers come from; or its table itself"
    )
    block_timeout: float | None = Field(
        None, gt=0, description="Seconds after which a block counts as hung; the default follows its size"
    )


class _WhatToSegment(Config):
    volume: str = argument("OME-Zarr image or Zarr array to segment; a local path or s3:// URL")
    to: str = Field(description="Label volume to write, such as labels.zarr")
    roi: str | None = Field(
        None, description="Only this box, as z0:z1,y0:y1,x0:x1; the output keeps the volume's shape"
    )


class SegmentConfig(HowToSegment, _WhatToSegment):
    """Parameters of `segment`."""

    restart: bool = Field(False, description="Take away what an earlier run wrote there, and begin anew")
    retry_failed: bool = Field(False, description="Do those blocks alone that are in quarantine")
    partial: bool = Field(False, description="Take an input volume that is not complete, too")


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
    cluster: str | dict[str, Any] | None = Field(
        None, description="TOML file that says where Dask workers come from; or its table itself"
    )
    restart: bool = Field(False, description="Take away what an earlier run wrote there, and begin anew")
    retry_failed: bool = Field(False, description="Do those blocks alone that are in quarantine")
