"""What `ingest` may be asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flows.config.base import Config, argument


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
    restart: bool = Field(False, description="Take away what an earlier run wrote there, and begin anew")
    retry_failed: bool = Field(False, description="Do those blocks alone that are in quarantine")
