"""Tables for the terminal; `--json` prints the same as data."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from unet_core.evaluation import Scores


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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
