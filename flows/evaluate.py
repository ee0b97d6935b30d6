"""Labels against the truth, block by block in this process: quick enough to need no server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.parsing import parse_box
from flows.report.objects import write_object_picture
from flows.report.picture import write_picture
from unet_core.errors import InputError
from unet_core.evaluation import (
    InstanceScores,
    Scores,
    Thresholds,
    TrivialScores,
    Truth,
    evaluate_thresholds,
    trivial_scores,
)
from unet_core.evaluation import evaluate as compare
from unet_core.evaluation import evaluate_instances as compare_instances
from unet_core.evaluation.comparison import require_inside, require_same_shape
from unet_core.geometry import Box
from unet_core.ingestion import KIND as INGESTED
from unet_core.ledger import RunRecord, read_record, require_complete
from unet_core.targets import Target, class_names
from unet_core.volumes import Store, Volume, group_metadata


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; `thresholds`, `trivial` and `picture` where they were asked for.

    `notes`: what makes one doubt that these two can be compared so.
    """

    scores: Scores
    thresholds: Thresholds | None
    trivial: TrivialScores | None
    picture: Path | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.scores.to_dict(),
            "thresholds": None if self.thresholds is None else self.thresholds.to_dict(),
            "trivial": None if self.trivial is None else self.trivial.to_dict(),
            "picture": None if self.picture is None else str(self.picture),
            "notes": list(self.notes),
        }


def evaluate(
    labels: str,
    truth: str,
    *,
    target: Target | None = None,
    roi: str | None = None,
    planar: bool = False,
    ignore: int | None = None,
    partial: bool = False,
    probabilities: bool = False,
    image: str | None = None,
    trivial_from: str | None = None,
    picture: str | None = None,
) -> Evaluation:
    """Scores of the label volume at `labels`; class names and the ROI come from its run record if it has one.

    Parameters
    ----------
    planar, ignore
        See `unet_core.evaluation.Truth`. What a 2D model predicted is planar in any case.
    probabilities
        Also score every threshold of the probabilities that lie beside the labels.
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
    _require_picture(image, picture, trivial_from)
    if not partial:
        _require_complete(labels, truth, *([image] if image else []))
    record = _segmentation(labels)
    if record is not None and "instances" in record.plan:
        raise InputError(
            "the prediction holds instances, not classes",
            where=labels,
            expected="classes",
            fix=f"--instances compares them; the classes are {Store(labels).url}/classes",
        )
    of_truth = _segmentation(truth)
    if target in (None, "semantic") and of_truth is not None and "instances" in of_truth.plan:
        raise InputError(
            "the truth holds instances, not classes",
            where=truth,
            expected="classes",
            fix="add --target foreground or --target boundary: it makes classes of instances",
        )
    plan: dict[str, Any] = {} if record is None else dict(record.plan)
    predicted, true = Volume.open(labels), Volume.open(truth)
    notes = doubts(labels, truth)
    region = parse_box(roi, true.shape) or (Box.parse(plan["tiling"]["roi"]) if plan else None)
    common: dict[str, Any] = {
        "target": target,
        "roi": region,
        "class_names": plan.get("classes"),
        "planar": planar or (bool(plan) and plan["tiling"]["tile"][0] == 1),
        "ignore": ignore,
    }
    # Looked at before the scores, which take long: what cannot be used is said at once.
    box = parse_box(trivial_from, true.shape)
    require_inside(box, true, what="the training region")
    intensities = None
    if image is not None:
        intensities = _image_of(record, image)
        require_same_shape(predicted, intensities)
    thresholds = None
    if probabilities:
        names = tuple(plan.get("classes") or class_names(target or "semantic", 2))
        known = Truth(
            volume=true,
            target=target,
            names=names,
            planar=common["planar"],
            ignore=ignore,
            region=region,
        )
        beside = f"{Store(labels).url}/probabilities"
        if not Store(beside).exists():
            raise InputError(
                "there are no probabilities beside these labels",
                where=beside,
                fix="segment with --probabilities, or evaluate without",
            )
        thresholds = evaluate_thresholds(Volume.open(beside), known, roi=region)
    scores = compare(predicted, true, **common)
    trivial = None
    written = None
    if intensities is not None:
        if box is not None:
            trivial = trivial_scores(intensities, true, train=box, **common)
        if picture is not None:
            planes = _shown(region or true.box)
            written = write_picture(
                picture, image=intensities, labels=predicted, truth=true, planes=planes, **common
            )
    if target is None and not plan:
        notes += _doubted_classes(scores)
    return Evaluation(scores, thresholds, trivial, written, tuple(notes))


def doubts(labels: str, truth: str) -> list[str]:
    """What makes one doubt that two volumes are labels.

    Raises
    ------
    InputError
        One of them was ingested as an image.
    """
    notes = []
    for what, url in (("the prediction", labels), ("the truth", truth)):
        store = Store(url)
        record = read_record(store)
        if record is not None and record.kind == INGESTED and record.identity.get("kind") == "image":
            raise InputError(
                f"{what} was ingested as an image",
                where=store.url,
                expected="labels",
                fix="is it the right volume? if it holds labels, ingest it again with --as labels",
            )
        ome = ((group_metadata(store) or {}).get("attributes") or {}).get("ome") or {}
        if "multiscales" in ome and "image-label" not in ome:
            notes.append(f"{what}, {store.url}, is an OME-Zarr image that does not say that it holds labels")
    return notes


def _doubted_classes(scores: Scores) -> list[str]:
    """Where nobody said what the classes are, ids of objects look like many of them."""
    true, predicted = (
        sum(n > 0 for n in voxels[1:]) for voxels in (scores.true_voxels, scores.predicted_voxels)
    )
    if true <= predicted:
        return []
    return [
        f"the truth holds {true} values above 0 and the prediction {predicted}: if those are ids of objects"
        " and not classes, add --target foreground, or another"
    ]


def evaluate_instances(
    labels: str,
    truth: str,
    *,
    roi: str | None = None,
    planar: bool = False,
    ignore: int | None = None,
    partial: bool = False,
    image: str | None = None,
    picture: str | None = None,
) -> InstanceScores:
    """Scores of the instances at `labels` against those at `truth`: 0 is background, other ids are objects.

    Parameters
    ----------
    roi, planar, ignore
        See `unet_core.evaluation.InstanceComparison`.
    picture
        PNG to write: `image`, truth and objects in three planes.

    Raises
    ------
    InputError
        Volumes that are missing, incomplete (unless `partial`), of another shape or not labels, classes
        in place of instances, a bad ROI, or not one labelled voxel.
    """
    _require_picture(image, picture)
    if not partial:
        _require_complete(labels, truth)
    for what, url in (("the prediction", labels), ("the truth", truth)):
        if (record := _segmentation(url)) is not None and "instances" not in record.plan:
            raise InputError(
                f"{what} holds classes, not instances",
                where=url,
                expected="one id per object",
                found=", ".join(record.plan["classes"]),
                fix="leave --instances out to compare classes; the order is LABELS TRUTH",
            )
    predicted, true = Volume.open(labels), Volume.open(truth)
    doubts(labels, truth)
    region = parse_box(roi, true.shape)
    intensities = _image_of(_segmentation(labels), image) if image is not None else None
    if intensities is not None:
        require_same_shape(predicted, intensities)
    scores = compare_instances(predicted, true, roi=region, planar=planar, ignore=ignore)
    if intensities is not None and picture is not None:
        planes = _shown(region or true.box)
        write_object_picture(
            picture, image=intensities, labels=predicted, truth=true, planes=planes, roi=region
        )
    return scores


def _require_picture(image: str | None, picture: str | None, *others: str | None) -> None:
    """The image is there for what needs it; the picture is a PNG that takes nothing's place."""
    if (image is None) != all(other is None for other in (picture, *others)):
        raise InputError(
            "the image is needed for this" if image is None else "the image is not needed for this",
            expected="--image VOLUME beside --trivial or --picture",
            found="one without the other",
        )
    if picture is None:
        return
    place = Path(picture)
    for wrong, found in (
        (not place.absolute().parent.is_dir(), "no such folder"),
        (
            place.suffix.lower() != ".png",
            f"a name in {place.suffix}" if place.suffix else "a name without .png",
        ),
        (place.exists() or place.is_symlink(), "there is something already"),
    ):
        if wrong:
            raise InputError(
                "the picture cannot be written",
                where=place.absolute(),
                expected="a new file, such as picture.png",
                found=found,
                fix="choose another --picture, or remove what is there" if "already" in found else None,
            )


def _image_of(record: RunRecord | None, image: str) -> Volume:
    """The intensities, of the level, channels and time point that were segmented."""
    plan: dict[str, Any] = {} if record is None else dict(record.plan)
    return Volume.open(
        image, level=plan.get("level", 0), channels=plan.get("channels"), timepoint=plan.get("timepoint", 0)
    )


def _shown(region: Box) -> list[int]:
    """Three planes of a region, evenly spread."""
    low, high = region.lower[0], region.upper[0]
    return sorted({low + (high - low) * k // 6 for k in (1, 3, 5)})


def _require_complete(*urls: str) -> None:
    for url in urls:
        require_complete(Store(url))


def _segmentation(url: str) -> RunRecord | None:
    """The record of the run of `segment` or `stitch` that made this volume, if one did."""
    record = read_record(Store(url))
    return record if record is not None and record.kind in ("segment", "stitch") else None
