"""What a segmentation is, resolved: plain data that travels as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unet_core.geometry import Box
from unet_core.instances import InstancePlan
from unet_core.keeping import KeepPlan
from unet_core.ledger import Stage
from unet_core.normalisation import Scale
from unet_core.probe import Probe
from unet_core.pyramid import PyramidPlan
from unet_core.tiling import Footprint, Tiling

KIND = "segment"
PREDICT = "predict"


@dataclass(frozen=True, kw_only=True)
class SegmentPlan:
    """Everything that was resolved, JSON-ready: the same plan gives the same bytes, whoever computes it."""

    volume: str
    level: int
    channels: tuple[int, ...]
    timepoint: int
    model: str
    model_digest: str
    classes: tuple[str, ...]
    probabilities: bool
    dtype: str
    device: str
    tiling: Tiling
    pyramid: PyramidPlan
    scale: Scale | None = None
    probe: Probe | None = None
    instances: InstancePlan | None = None
    keep: KeepPlan | None = None

    def to_dict(self) -> dict[str, Any]:
        document = asdict(self)
        if self.instances is None:
            del document["instances"]  # as it was before there were any
        else:
            document["instances"] = self.instances.to_dict()
        if self.keep is None:
            del document["keep"]
        document["tiling"] = {**asdict(self.tiling), "roi": str(self.tiling.roi)}
        document["pyramid"] = self.pyramid.to_dict()
        document["scale"] = None if self.scale is None else self.scale.to_dict()
        document["probe"] = None if self.probe is None else self.probe.to_dict()
        return document

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SegmentPlan:
        t = data["tiling"]
        shapes = {name: tuple(t[name]) for name in ("volume", "tile", "chunk", "shard", "block")}
        return cls(
            **{
                **data,
                "channels": tuple(data["channels"]),
                "classes": tuple(data["classes"]),
                "tiling": Tiling(
                    roi=Box.parse(t["roi"]),
                    footprint=Footprint(**{name: tuple(v) for name, v in t["footprint"].items()}),
                    **shapes,
                ),
                "pyramid": PyramidPlan.from_dict(data["pyramid"]),
                "scale": None if data["scale"] is None else Scale.from_dict(data["scale"]),
                "probe": None if data["probe"] is None else Probe.from_dict(data["probe"]),
                "instances": InstancePlan.from_dict(data["instances"]) if "instances" in data else None,
                "keep": KeepPlan.from_dict(data["keep"]) if "keep" in data else None,
            }
        )

    @property
    def predicted(self) -> str:
        """Path of the array that holds the network's classes."""
        return "0" if self.instances is None else "classes/0"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order."""
        written = (self.predicted, "probabilities/0") if self.probabilities else (self.predicted,)
        predict = Stage(
            name=PREDICT,
            count=len(self.tiling.blocks),
            arrays=written,
            target=lambda index: (0, self.tiling.block_box(index)),
        )
        instances = () if self.instances is None else self.instances.stages
        return (predict, *instances, *self.pyramid.stages)
