"""Tables for the terminal; `--json` prints the same as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table

from unet_core.evaluation import InstanceScores, Scores, Threshold


def scores_table(scores: Scores, *, title: str | None = None) -> Table:
    """One row per class; mean IoU and voxel error in the caption."""
    table = Table(
        title=title,
        caption=f"mean IoU {_number(scores.mean_iou)}, voxel error {_share(scores.pixel_error)}"
        f" of {scores.voxels:,} voxels",
    )
    table.add_column("class")
    for heading in ("IoU", "Dice", "in truth", "predicted"):
        table.add_column(heading, justify="right")
    total = max(scores.voxels, 1)
    for name, iou, dice, true, predicted in zip(
        scores.class_names, scores.iou, scores.dice, scores.true_voxels, scores.predicted_voxels
    ):
        table.add_row(name, _number(iou), _number(dice), _share(true / total), _share(predicted / total))
    return table


def comparison_table(answers: Mapping[str, Scores], *, title: str | None = None) -> Table:
    """Several answers to one question, one row each, such as a prediction beside the trivial ones."""
    table = Table(title=title)
    table.add_column("answer")
    names = next(iter(answers.values())).class_names if answers else ()
    for heading in ("mean IoU", *(f"IoU {name}" for name in names), "voxel error"):
        table.add_column(heading, justify="right")
    for answer, scores in answers.items():
        table.add_row(answer, _number(scores.mean_iou), *map(_number, scores.iou), _share(scores.pixel_error))
    return table


def thresholds_table(best: Iterable[Threshold | None]) -> Table:
    """The best thresholds of the second class's probability, one row per criterion."""
    table = Table(title="best thresholds")
    table.add_column("criterion")
    for heading in ("threshold", "of 255", "score"):
        table.add_column(heading, justify="right")
    for found in best:
        if found is not None:
            name = found.criterion.replace("_", " ")
            table.add_row(name, f"{found.probability:.3f}", str(found.value), f"{found.score:.4f}")
    return table


def instance_tables(scores: InstanceScores) -> tuple[Table, Table]:
    """What instances scored over all voxels and objects, and how many were found at each IoU."""
    images = f" in {scores.images:,} planes" if scores.images > 1 else ""
    measures = Table(
        title="instances",
        caption=f"{scores.true_objects:,} objects in truth, {scores.predicted_objects:,} predicted,"
        f" {scores.voxels:,} voxels{images}",
    )
    measures.add_column("measure")
    for heading in ("total", "split", "merge"):
        measures.add_column(heading, justify="right")
    measures.add_column("")
    rand, panoptic = scores.adapted_rand, scores.panoptic
    measures.add_row("adapted Rand error", _number(rand.error), "", "", "0 is best")
    measures.add_row("  recall, precision", "", _number(rand.recall), _number(rand.precision), "1 is best")
    for name, variation in (
        ("variation of information", scores.variation),
        ("  on the true foreground", scores.variation_foreground),
    ):
        figures = (variation.total, variation.split, variation.merge)
        measures.add_row(name, *map(_number, figures), "bits, 0 is best")
    for name, score in (("V-Rand", scores.v_rand), ("V-Info", scores.v_info)):
        measures.add_row(name, *map(_number, (score.f_score, score.split, score.merge)), "1 is best")
    quality = _number(panoptic.panoptic_quality)
    parts = f"segmentation {_number(panoptic.mean_matched_iou)}, recognition {_number(panoptic.f1)}"
    measures.add_row("panoptic quality", quality, "", "", parts)
    measures.add_row("SEG", _number(scores.seg), "", "", "mean Jaccard of the true objects")
    measures.add_row("foreground Dice", _number(scores.dice), "", "", "")

    matching = Table(title="objects found", caption=f"mean AP {_number(scores.mean_average_precision)}")
    for heading in ("IoU from", "AP", "F1", "precision", "recall", "found", "false", "missed", "mean IoU"):
        matching.add_column(heading, justify="right")
    for m in scores.matchings:
        matching.add_row(
            f"{m.threshold:.2f}",
            *map(_number, (m.average_precision, m.f1, m.precision, m.recall)),
            *(f"{count:,}" for count in (m.true_positives, m.false_positives, m.false_negatives)),
            _number(m.mean_matched_iou),
        )
    return measures, matching


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
