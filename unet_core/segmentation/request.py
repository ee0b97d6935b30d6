"""What may be asked of a segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unet_core.geometry import Box, Shape
from unet_core.instances import InstanceRequest
from unet_core.keeping import KeepRequest


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """What is asked for. None and "auto" leave a choice to the plan; boxes and shapes are z, y, x.

    `restart`: what lies at `to` is to be replaced. `partial`: the input need not be complete. `memory`: bytes
    that one worker may take.
    """

    volume: str
    model: str
    to: str
    roi: Box | None = None
    level: int = 0
    channels: tuple[int, ...] | None = None
    timepoint: int = 0
    probabilities: bool = False
    instances: InstanceRequest | None = None
    keep: KeepRequest | None = None
    tile: Shape | None = None
    block: Shape | None = None
    memory: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    normalisation: Literal["volume", "model"] = "volume"
    restart: bool = False
    partial: bool = False
