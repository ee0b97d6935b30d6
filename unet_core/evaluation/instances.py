"""Predicted instances against true ones, block by block: never two whole volumes in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from unet_core.errors import InputError
from unet_core.evaluation.comparison import (
    BLOCK_VOXELS,
    blocks_of,
    require_inside,
    require_labels,
    require_same_shape,
)
from unet_core.evaluation.contingency import Contingency
from unet_core.evaluation.matching import (
    Matching,
    Overlaps,
    foreground_dice,
    matchings,
    mean_average_precision,
)
from unet_core.evaluation.partitions import (
    AdaptedRand,
    SplitMerge,
    Variation,
    adapted_rand,
    v_info,
    v_rand,
    variation_of_information,
)
from unet_core.geometry import Box, Grid
from unet_core.volumes import Volume


@dataclass(frozen=True, kw_only=True)
class InstanceScores:
    """All measures of instances; each is defined, with its source, at the function that makes it.

    `images` is 1 for a volume, the number of labelled planes for a stack of them: Rand, information and
    variation are then means over planes, all others count the objects of all planes together. A figure
    that is not defined, because there is nothing to be measured, is None, never NaN.
    """

    images: int
    voxels: int
    true_objects: int
    predicted_objects: int
    adapted_rand: AdaptedRand
    variation: Variation
    variation_foreground: Variation
    v_rand: SplitMerge
    v_info: SplitMerge
    matchings: tuple[Matching, ...]
    panoptic: Matching
    seg: float | None
    dice: float | None

    @classmethod
    def of(cls, table: Contingency) -> InstanceScores:
        """What follows from a table."""
        overlaps = Overlaps.of(table)
        return cls(
            images=int(np.unique(table.image).size),
            voxels=int(table.voxels.sum()),
            true_objects=overlaps.true_count,
            predicted_objects=overlaps.predicted_count,
            adapted_rand=adapted_rand(table),
            variation=variation_of_information(table),
            variation_foreground=variation_of_information(table, foreground=True),
            v_rand=v_rand(table),
            v_info=v_info(table),
            matchings=matchings(overlaps),
            panoptic=overlaps.panoptic(),
            seg=overlaps.seg(),
            dice=foreground_dice(table),
        )

    @property
    def mean_average_precision(self) -> float | None:
        """Mean of the average precision over IoU 0.5 to 0.95."""
        return mean_average_precision(self.matchings)

    def to_dict(self) -> dict[str, Any]:
        """Everything by name, JSON-ready."""
        return {
            "images": self.images,
            "voxels": self.voxels,
            "true_objects": self.true_objects,
            "predicted_objects": self.predicted_objects,
            "adapted_rand": asdict(self.adapted_rand),
            "variation_of_information": _variation(self.variation),
            "variation_of_information_foreground": _variation(self.variation_foreground),
            "v_rand": asdict(self.v_rand),
            "v_info": asdict(self.v_info),
            "mean_average_precision": self.mean_average_precision,
            "matching": [
                {
                    **asdict(m),
                    "average_precision": m.average_precision,
                    "f1": m.f1,
                    "precision": m.precision,
                    "recall": m.recall,
                    "mean_matched_iou": m.mean_matched_iou,
                }
                for m in self.matchings
            ],
            "panoptic": {
                "quality": self.panoptic.panoptic_quality,
                "segmentation": self.panoptic.mean_matched_iou,
                "recognition": self.panoptic.f1,
            },
            "seg": self.seg,
            "dice": self.dice,
        }


@dataclass(frozen=True, kw_only=True)
class InstanceComparison:
    """Predicted instances against true ones, as blocks that can be counted anywhere, in any order.

    Parameters
    ----------
    labels, truth
        Ids, integers of any type, one channel, one shape; 0 is background.
    roi
        In voxels of the volumes, None for everything. Objects are what of them lies inside.
    planar
        The z planes are images of their own: one id in two planes is two objects.
    ignore
        True id of voxels that nobody labelled; they count nowhere.
    block_voxels
        No block holds more than about so many.

    Raises
    ------
    InputError
        Shapes that differ, volumes that are not labels, an ROI outside the volume.
    """

    labels: Volume
    truth: Volume
    roi: Box | None = None
    planar: bool = False
    ignore: int | None = None
    block_voxels: int = BLOCK_VOXELS

    def __post_init__(self) -> None:
        require_labels(self.labels, what="the prediction")
        require_labels(self.truth, what="the truth")
        require_same_shape(self.labels, self.truth)
        require_inside(self.roi, self.truth, what="the ROI")

    @cached_property
    def blocks(self) -> Grid:
        """Blocks of whole chunks that meet the ROI; clip them with `intersect`."""
        return blocks_of([self.labels, self.truth], self.roi, self.block_voxels)

    def table(self, index: int) -> Contingency:
        """Block `index`, counted. Raises InputError for negative ids."""
        box = self.blocks[index].intersect(self.blocks.extent)
        return Contingency.of(
            self.truth.read(box)[0],
            self.labels.read(box)[0],
            planar=self.planar,
            image=box.lower[0] if self.planar else 0,
            ignore=self.ignore,
            where=f"{self.labels.url} against {self.truth.url}, box {box}",
        )

    def finish(self, total: Contingency) -> InstanceScores:
        """What follows from the sum of all blocks' tables.

        Raises
        ------
        InputError
            Not one labelled voxel was compared.
        """
        if not len(total):
            raise InputError(
                "no voxel of this region is labelled",
                where=self.truth.url,
                expected=None if self.ignore is None else f"ids other than {self.ignore}, which is ignored",
                found=f"none in {self.blocks.extent}",
            )
        return InstanceScores.of(total)


def evaluate_instances(
    labels: Volume,
    truth: Volume,
    *,
    roi: Box | None = None,
    planar: bool = False,
    ignore: int | None = None,
    block_voxels: int = BLOCK_VOXELS,
) -> InstanceScores:
    """Compare predicted instances with true ones, one block in memory at a time.

    Memory beyond a block is O(pairs of a true and a predicted object that meet). Parameters and errors
    as those of `InstanceComparison` and its methods.
    """
    comparison = InstanceComparison(
        labels=labels, truth=truth, roi=roi, planar=planar, ignore=ignore, block_voxels=block_voxels
    )
    return comparison.finish(Contingency.merge(map(comparison.table, range(len(comparison.blocks)))))


def _variation(variation: Variation) -> dict[str, float | None]:
    return {**asdict(variation), "total": variation.total}
