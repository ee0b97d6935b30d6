"""Labels against the truth, block by block in this process: quick enough to need no server."""

from __future__ import annotations

from typing import Any

from flows.config import parse_box
from unet_core.evaluation import Scores
from unet_core.evaluation import evaluate as compare
from unet_core.geometry import Box
from unet_core.ledger import read_record, require_complete
from unet_core.targets import Target
from unet_core.volumes import Store, Volume


def evaluate(
    labels: str, truth: str, *, target: Target | None = None, roi: str | None = None, partial: bool = False
) -> Scores:
    """Scores of the label volume at `labels`; class names and the ROI come from its run record if it has one.

    Raises
    ------
    InputError
        Volumes that are missing, incomplete (unless `partial`), of another shape or not labels; a bad ROI.
    """
    for url in (labels, truth):
        if not partial:
            require_complete(Store(url))
    record = read_record(Store(labels))
    plan: dict[str, Any] = dict(record.plan) if record is not None and record.kind == "segment" else {}
    segmented = Box.parse(plan["tiling"]["roi"]) if plan else None
    return compare(
        Volume.open(labels),
        Volume.open(truth),
        target=target,
        roi=parse_box(roi) or segmented,
        class_names=plan.get("classes"),
        planar=bool(plan) and plan["tiling"]["tile"][0] == 1,
    )
