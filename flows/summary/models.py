"""Models: proposed, trained, judged, given to other software and taken from it."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from flows.evaluate import Evaluation
from flows.report.tables import comparison_table, instance_tables, scores_table, thresholds_table
from flows.report.words import duration, size
from flows.summary.rows import print_rows
from unet_core.evaluation import CRITERIA, InstanceScores


def print_export(document: dict[str, Any]) -> None:
    """What `export` wrote."""
    sizes = (
        f"{axis} {n} + k·{document['input_step'][axis]}" for axis, n in document["smallest_input"].items()
    )
    rows = [
        ("output", f"{document['output']}  ({document['format']}, {size(document['bytes'])})"),
        ("opset", str(document["opset"])),
        ("input sizes", ", ".join(sizes)),
        ("output smaller by", ", ".join(f"{axis} {n}" for axis, n in document["output_smaller_by"].items())),
        ("halo, each side", ", ".join(f"{axis} {n}" for axis, n in document["halo"].items())),
    ]
    if (validation := document["validation"]) is not None:
        rows.append(("bioimage.io", f"{validation['status']}, format {validation['format_version']}"))
        rows.extend(("", warning) for warning in validation["warnings"])
    print_rows("export", rows)


def print_import(document: dict[str, Any]) -> None:
    """What `import` made of its source."""
    spec = document["spec"]
    rows = [
        ("model", document["model"]),
        ("network", f"{len(spec['kernels'][0])}D, widths {spec['widths']}, {spec['upsampling']}"),
        ("classes", ", ".join(document["classes"])),
        *(("assumed", text) for text in document["assumed"]),
    ]
    print_rows("import", rows)


def print_proposal(document: dict[str, Any]) -> None:
    """Where a proposed configuration lies, and what to do with it."""
    rows = [
        ("written", document["written"]),
        ("time", f"roughly {duration(document['seconds_predicted'])} on this machine: one step was measured"),
        ("next", f"look at it, then: unet-flows train {document['written']}"),
    ]
    print_rows("train --init: nothing was trained", rows)


def print_training(document: dict[str, Any]) -> None:
    """How a training went, as a table on stdout."""
    rows = [
        ("model", document["model"]),
        ("best step", f"{document['best_step']} of {document['steps']}, last loss {document['loss']:.4f}"),
        ("time", duration(document["seconds"])),
    ]
    scores = document["validation"]
    if scores is None:
        rows.append(("validation", "none: no region was held out"))
    else:
        for name, values in scores["classes"].items():
            rows.append((f"IoU {name}", "-" if values["iou"] is None else f"{values['iou']:.3f}"))
        rows.append(("voxel error", f"{scores['pixel_error']:.3f} on regions held out"))
    print_rows("train: complete", rows)


def print_evaluation(result: Evaluation) -> None:
    """Scores per class, and the trivial answers beside them where they were asked for."""
    console = Console()
    console.print(scores_table(result.scores))
    if result.thresholds is not None:
        console.print(thresholds_table(map(result.thresholds.best, CRITERIA)))
    if result.trivial is not None:
        answers = {
            "prediction": result.scores,
            "best threshold": result.trivial.threshold,
            "majority class": result.trivial.majority,
        }
        console.print(comparison_table(answers, title="beside trivial answers"))
    if result.picture is not None:
        console.print(f"picture: {result.picture}", soft_wrap=True, highlight=False)


def print_instances(scores: InstanceScores) -> None:
    """Every measure of instances, and what was found at each IoU."""
    for table in instance_tables(scores):
        Console().print(table)
