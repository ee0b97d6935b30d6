"""What `watch` may be asked for."""

from __future__ import annotations

from pydantic import Field

from flows.config.base import Config, argument
from flows.config.segment import HowToSegment


class _WhatToWatch(Config):
    prefix: str = argument("Folder in which OME-Zarr volumes appear; a local path or s3:// URL")
    to: str = Field(
        description="Folder for the labels: TO/MODEL-DIGEST/VOLUME.zarr, so that another model makes others"
    )
    marker: str | None = Field(
        None,
        description="A volume is finished when this file is in it; the default goes by age and what is there",
    )
    quiet: float = Field(
        10.0,
        ge=0,
        allow_inf_nan=False,
        description="Without --marker: minutes without writing after which a volume may be finished",
    )
    most: int | None = Field(None, ge=1, description="Volumes to segment in one call; the default is all")


class WatchConfig(HowToSegment, _WhatToWatch):
    """Parameters of `watch`."""

    retry_failed: bool = Field(False, description="Try volumes again that were set aside")
