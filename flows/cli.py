"""`unet-flows`: each command a thin way into a flow or a core function. Imports nothing heavy by itself."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from flows.config import Config, IngestConfig, SegmentConfig, TargetName, TrainConfig
from flows.supervise import INTERRUPTED, supervised
from unet_core.errors import InputError, UnetFlowsError

# The terminal shows our progress and our errors; Prefect's log lines go to its API and UI.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

app = typer.Typer(
    name="unet-flows",
    help="Exact tiled U-Net segmentation of microscopy volumes too big for one machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before --restart takes an output away")]
Output = Annotated[str, typer.Argument(help="An output of ingest or segment", show_default=False)]


def options_of(
    model: type[Config], *, over_file: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a config as arguments and options: one schema, one help text.

    With `over_file` an option that is not given is None, so that a file's value stands.
    """

    def parameter(name: str, field: FieldInfo) -> inspect.Parameter:
        hints = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if hints.get("argument"):
            mark: Any = typer.Argument(help=field.description, show_default=False)
        else:
            flag = str(hints.get("option", f"--{name.replace('_', '-')}"))
            mark = typer.Option(flag, help=field.description)
        kind: Any = field.annotation
        default = inspect.Parameter.empty if field.is_required() else field.default
        if over_file:
            kind, default = kind | None, None
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, mark]
        )

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters.values()
        shared = [
            parameter(name, field)
            for name, field in model.model_fields.items()
            if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("file_only"))
        ]
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*shared, *(p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind != p.VAR_KEYWORD)]
        )
        return function

    return decorate


@app.command()
@options_of(IngestConfig)
def ingest(yes: Yes = False, as_json: AsJson = False, **parameters: Any) -> None:
    """Convert TIFF, HDF5, NPZ or PNG to a sharded, multiscale OME-Zarr volume."""
    from flows.config import validate
    from flows.ingest import ingest as flow
    from flows.ingest import plan
    from flows.outcome import told
    from flows.summary import print_run

    config = validate(IngestConfig, parameters)
    plan(config)
    _confirm_restart(config, yes)
    _report(told(flow, "ingest", parameters), as_json, print_run)


@app.command()
@options_of(TrainConfig, over_file=True)
def train(
    config: Annotated[
        str | None, typer.Argument(help="TOML file; flags given as well win over it", show_default=False)
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Write a commented TOML file for --image and --labels, and train nothing"),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
    **parameters: Any,
) -> None:
    """Train a U-Net on labelled boxes of one or several volumes; the same command again goes on."""
    from flows.outcome import told
    from flows.summary import print_proposal, print_training
    from flows.train import prepare, read_config
    from flows.train import train as flow
    from unet_core.training import notes as training_notes

    given = {k: v for k, v in parameters.items() if v is not None}
    if init is not None:
        from flows.init import write

        _report(write(init, config=config, given=given), as_json, print_proposal)
        return
    settings = read_config(config, given)
    for note in training_notes(prepare(settings).plan):
        print(f"note: {note}", file=sys.stderr)
    _confirm_restart(settings, yes)
    _report(told(flow, "train", settings.model_dump()), as_json, print_training)


@app.command()
@options_of(SegmentConfig)
def segment(
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would be done and what it costs; start nothing")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    **parameters: Any,
) -> None:
    """Segment a volume: exact overlapping tiles in, one seamless label volume out."""
    from flows.config import read_cluster, validate
    from flows.outcome import told
    from flows.segment import plan as make_plan
    from flows.segment import segment as flow
    from flows.summary import plan_document, print_plan, print_run

    config = validate(SegmentConfig, parameters)
    planned = make_plan(config)
    cluster = read_cluster(config.cluster, workers=config.workers)
    document = plan_document(planned, workers=cluster.workers)
    if plan:
        _report(document, as_json, print_plan)
        return
    _confirm_restart(config, yes)
    if not as_json:
        print_plan(document)
    _report(told(flow, "segment", parameters), as_json, print_run)


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
        str | None, typer.Option(help="PNG to write: raw, truth, prediction, differences")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Evaluate labels that are not complete, too")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare labels with the truth, block by block: IoU, Dice and pixel error per class, or, with
    --instances, Rand, information, average precision, panoptic quality and SEG."""
    from flows.config import choice
    from flows.evaluate import evaluate as run
    from flows.evaluate import evaluate_instances
    from flows.summary import print_evaluation, print_instances

    place: dict[str, Any] = {"command": "evaluate", "labels": labels, "truth": truth}
    if instances:
        if probabilities or any(option is not None for option in (target, image, trivial, picture)):
            raise InputError(
                "--instances compares ids as they are",
                expected="no --target, --probabilities, --image, --trivial or --picture beside it",
            )
        scores = evaluate_instances(labels, truth, roi=roi, planar=planar, ignore=ignore, partial=partial)
        document = {**place, "roi": roi, "planar": planar, "ignore": ignore, **scores.to_dict()}
        _report(document, as_json, lambda _: print_instances(scores))
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
    _report({**place, **result.to_dict()}, as_json, lambda _: print_evaluation(result))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Model folder", show_default=False)],
    format: Annotated[
        str, typer.Option(help="onnx: the bare network; bioimageio: a bioimage.io model package")
    ],
    to: Annotated[str, typer.Option(help="File to write")],
    name: Annotated[str | None, typer.Option(help="The model's name, for people")] = None,
    description: Annotated[str | None, typer.Option(help="What it is for, in a sentence")] = None,
    author: Annotated[list[str] | None, typer.Option(help="Who made it; may be given again")] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier; CC-BY-4.0 otherwise")] = None,
    image: Annotated[
        str | None, typer.Option(help="Volume whose middle is the example and the cover; noise otherwise")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a trained model for other software: an ONNX file, or a bioimage.io package."""
    from flows.config import choice
    from flows.exchange import Format, about, export_model
    from flows.summary import print_export

    document = export_model(
        model,
        format=choice("--format", format, Format),
        to=to,
        about=about(name, description, author, licence),
        image=image,
    )
    _report(document, as_json, print_export)


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="bioimage.io package (.zip or folder), or state dict (.safetensors, .pt, .pth)",
            show_default=False,
        ),
    ],
    to: Annotated[str, typer.Option(help="Model folder to write")],
    spec: Annotated[
        str | None,
        typer.Option(help="JSON or TOML with class_names, target, scale and so on, as in a model.json"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a model folder from a bioimage.io package or a PyTorch state dict of this network."""
    from flows.exchange import import_model
    from flows.summary import print_import

    _report(import_model(source, to=to, spec=spec), as_json, print_import)


@app.command()
def status(output: Output, as_json: AsJson = False) -> None:
    """Show how a run stands, from disk alone: while it runs, after it ended, or was killed."""
    from flows.inspection import status as look
    from flows.summary import print_status

    _report(look(output), as_json, print_status)


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
    from contextlib import nullcontext

    from flows.cluster import open_client
    from flows.config import ClusterConfig
    from flows.inspection import verify as check
    from flows.summary import print_verification

    with open_client(ClusterConfig(workers=workers)) if workers else nullcontext(None) as client:
        found = check(output, repair=repair, client=client)
    _report(found.to_dict(), as_json, print_verification)
    if not found.sound:
        raise typer.Exit(1)


@app.command()
def clean(output: Output, as_json: AsJson = False) -> None:
    """Take away what killed runs left behind: staging files, records of failures since mended."""
    from flows.inspection import clean as sweep
    from flows.summary import print_cleaning

    _report(sweep(output), as_json, print_cleaning)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: versions, devices, memory, whether Prefect and Dask start here."""
    from flows.doctor import examine
    from flows.summary import print_findings

    findings = examine()
    document = {"command": "doctor", "findings": [asdict(f) for f in findings]}
    _report(document, as_json, lambda _: print_findings(findings))
    if not all(f.ok for f in findings):
        raise typer.Exit(1)


def main() -> None:
    """The console script. Exit codes: 0 done, 1 partial or failed, 2 bad input, 130 interrupted."""
    sys.exit(supervised(run))


def run() -> int:
    """Run the command in `sys.argv` in this process; returns its exit code."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        return _fail(InputError(error.format_message(), fix="unet-flows --help, or COMMAND --help"))
    except UnetFlowsError as error:
        return _fail(error)
    if code == INTERRUPTED:  # typer turns KeyboardInterrupt into this
        _interrupted()
    return code if isinstance(code, int) else 0


def _fail(error: UnetFlowsError) -> int:
    document: dict[str, Any] = getattr(error, "document", None) or {"command": _command(), "status": "failed"}
    if "--json" in sys.argv:
        print(json.dumps({**document, "error": error.as_dict()}, indent=1))
    elif "stages" in document:
        from flows.summary import print_run

        print_run(document)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _interrupted() -> None:
    if "--json" in sys.argv:
        print(json.dumps({"command": _command(), "status": "interrupted"}, indent=1))
    goes_on = _command() in ("ingest", "segment", "train")
    hint = "; the same command goes on where it stopped" if goes_on else ""
    print(f"interrupted{hint}", file=sys.stderr)


def _command() -> str:
    return sys.argv[1] if len(sys.argv) > 1 else ""


def _confirm_restart(config: Config, yes: bool) -> None:
    """Ask before an output is taken away.

    Raises
    ------
    InputError
        Nobody is there to answer, or the answer is no.
    """
    from unet_core.volumes import Store

    if not getattr(config, "restart", False) or yes or not Store(config.to).exists():  # type: ignore[attr-defined]
        return
    if not sys.stdin.isatty():
        raise InputError(
            "--restart takes the output away, and nobody is here to be asked", fix="add --yes to mean it"
        )
    try:
        sure = typer.confirm(f"Delete {config.to} and begin anew?", err=True)  # type: ignore[attr-defined]
    except typer.Abort:  # the end of input
        sure = False
    if not sure:
        raise InputError("nothing was taken away, nothing was begun")


def _report(document: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        show(document)
