"""Labels against the truth, block by block in this process: quick enough to need no server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.config import parse_box
from flows.report import write_picture
from unet_core.errors import InputError
from unet_core.evaluation import Scores, TrivialScores, trivial_scores
from unet_core.evaluation import evaluate as compare
from unet_core.geometry import Box
from unet_core.ledger import read_record, require_complete
from unet_core.targets import Target
from unet_core.volumes import Store, Volume


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; `trivial` and `picture` where they were asked for."""

    scores: Scores
    trivial: TrivialScores | None
    picture: Path | None

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.scores.to_dict(),
            "trivial": None if self.trivial is None else self.trivial.to_dict(),
            "picture": None if self.picture is None else str(self.picture),
        }


def evaluate(
    labels: str,
    truth: str,
    *,
    target: Target | None = None,
    roi: str | None = None,
    partial: bool = False,
    image: str | None = None,
    trivial_from: str | None = None,
    picture: str | None = None,
) -> Evaluation:
    """Scores of the label volume at `labels`; class names and the ROI come from its run record if it has one.

    Parameters
    ----------
    image
        The intensities, needed by the next two.
    trivial_from
        Region on which trivial answers (majority class, best threshold) are chosen, to be scored as well.
    picture
        PNG to write: raw, truth, prediction and differences in three planes.

    Raises
    ------
    InputError
        Volumes that are missing, incomplete (unless `partial`), of another shape or not labels; a bad ROI.
    """
    if image is None and (trivial_from is not None or picture is not None):
        raise InputError(
            "the image is needed for this", expected="--image VOLUME beside --trivial or --picture"
        )
    for url in (labels, truth, *([image] if image else [])):
        if not partial:
            require_complete(Store(url))
    record = read_record(Store(labels))
    plan: dict[str, Any] = dict(record.plan) if record is not None and record.kind == "segment" else {}
    region = parse_box(roi) or (Box.parse(plan["tiling"]["roi"]) if plan else None)
    common: dict[str, Any] = {
        "target": target,
        "roi": region,
        "class_names": plan.get("classes"),
        "planar": bool(plan) and plan["tiling"]["tile"][0] == 1,
    }
    predicted, true = Volume.open(labels), Volume.open(truth)
    scores = compare(predicted, true, **common)
    trivial = None
    written = None
    if image is not None:
        intensities = Volume.open(
            image,
            level=plan.get("level", 0),
            channels=plan.get("channels"),
            timepoint=plan.get("timepoint", 0),
        )
        if (box := parse_box(trivial_from)) is not None:
            trivial = trivial_scores(intensities, true, train=box, **common)
        if picture is not None:
            shown = region or true.box
            low, high = shown.lower[0], shown.upper[0]
            planes = sorted({low + (high - low) * k // 6 for k in (1, 3, 5)})
            written = write_picture(
                picture, image=intensities, labels=predicted, truth=true, planes=planes, **common
            )
    return Evaluation(scores, trivial, written)
