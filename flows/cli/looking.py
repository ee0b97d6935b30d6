"""Commands that look at what is there: scores, runs, this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from flows.cli.app import AsJson, Output, app, report, require_there
from flows.config import TargetName
from unet_core.errors import InputError

_NO_RUN = "no run of unet-flows is here"


@app.command()
def evaluate(
    labels: Annotated[str, typer.Argument(help="Predicted label volume")],
    truth: Annotated[str, typer.Argument(help="True label volume: classes, or instance ids with --target")],
    target: Annotated[
        str | None, typer.Option(help="Make classes from instance ids, as the target of `train` does")
    ] = None,
    instances: Annotated[
        bool, typer.Option("--instances", help="Both volumes hold one id per object: match and score objects")
    ] = False,
    roi: Annotated[str | None, typer.Option(help="Only this box, as z0:z1,y0:y1,x0:x1")] = None,
    planar: Annotated[
        bool, typer.Option("--planar", help="The z planes are images of their own, not a volume")
    ] = False,
    ignore: Annotated[
        int | None, typer.Option(help="True id or class of voxels that nobody labelled; they do not count")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also score every threshold of what `segment` wrote so")
    ] = False,
    image: Annotated[str | None, typer.Option(help="The image, for --trivial and --picture")] = None,
    trivial: Annotated[
        str | None, typer.Option(help="Also score trivial answers that are chosen on this box")
    ] = None,
    picture: Annotated[
        str | None, typer.Option(help="New .png to write: raw, truth, prediction, side by side")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Evaluate labels that are not complete, too")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare labels with the truth, block by block: IoU, Dice and pixel error per class, or, with
    --instances, Rand, information, average precision, panoptic quality and SEG."""
    require_there("no such volume", labels, truth, image)
    from flows.evaluate import doubts, evaluate_instances
    from flows.evaluate import evaluate as run
    from flows.parsing import choice
    from flows.summary.models import print_evaluation, print_instances

    place: dict[str, Any] = {"command": "evaluate", "labels": labels, "truth": truth}
    if instances:
        if probabilities or target is not None or trivial is not None:
            raise InputError(
                "--instances compares ids as they are",
                expected="no --target, --probabilities or --trivial beside it",
            )
        scores = evaluate_instances(
            labels,
            truth,
            roi=roi,
            planar=planar,
            ignore=ignore,
            partial=partial,
            image=image,
            picture=picture,
        )
        notes = doubts(labels, truth)
        document = {
            **place,
            "roi": roi,
            "planar": planar,
            "ignore": ignore,
            **scores.to_dict(),
            "notes": notes,
        }
        _tell(notes)
        report(document, as_json, lambda _: print_instances(scores))
        return
    result = run(
        labels,
        truth,
        target=choice("--target", target, TargetName),
        roi=roi,
        planar=planar,
        ignore=ignore,
        partial=partial,
        probabilities=probabilities,
        image=image,
        trivial_from=trivial,
        picture=picture,
    )
    _tell(result.notes)
    report({**place, **result.to_dict()}, as_json, lambda _: print_evaluation(result))


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


@app.command()
def status(output: Output, as_json: AsJson = False) -> None:
    """Show how a run stands, from disk alone: while it runs, after it ended, or was killed."""
    require_there(_NO_RUN, output)
    from flows.inspection import status as look
    from flows.summary.runs import print_status

    report(look(output), as_json, print_status)


@app.command()
def verify(
    output: Output,
    repair: Annotated[
        bool, typer.Option("--repair", help="Open damaged blocks again, for the next run to do")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read; 0 reads in this one, without a cluster")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Read every finished block back and compare it with what was committed; find gaps and leftovers."""
    require_there(_NO_RUN, output)
    from contextlib import nullcontext

    from flows.cluster import open_client
    from flows.config import Local
    from flows.inspection import verify as check
    from flows.summary.runs import print_verification

    with open_client(Local(workers=workers)) if workers else nullcontext(None) as client:
        found = check(output, repair=repair, client=client)
    report(found.to_dict(), as_json, print_verification)
    if not found.sound:
        raise typer.Exit(1)


@app.command()
def clean(output: Output, as_json: AsJson = False) -> None:
    """Take away what killed runs left behind: staging files, records of failures since mended."""
    require_there(_NO_RUN, output)
    from flows.inspection import clean as sweep
    from flows.summary.runs import print_cleaning

    report(sweep(output), as_json, print_cleaning)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: versions, devices, memory, whether Prefect and Dask start here."""
    from flows.doctor import examine
    from flows.summary.runs import print_findings

    findings = examine()
    document = {"command": "doctor", "findings": [asdict(f) for f in findings]}
    report(document, as_json, lambda _: print_findings(findings))
    if not all(f.ok for f in findings):
        raise typer.Exit(1)
