"""`query`: questions to a finished label volume."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.app import AsJson, app, report
from unet_core.errors import InputError

if TYPE_CHECKING:
    from unet_core.query import Labels

verbs = typer.Typer(rich_markup_mode=None)
app.add_typer(verbs, name="query")

# Text, so that what is no id is refused as everything else is, -3 too.
Identity = Annotated[str, typer.Argument(metavar="ID", help="An object's id", show_default=False)]
_NEGATIVE = {"ignore_unknown_options": True}  # a number below 0 looks like an option
Region = Annotated[
    str, typer.Argument(metavar="BOX", help="z0:z1,y0:y1,x0:x1 in voxels, half-open", show_default=False)
]
Partial = Annotated[
    bool,
    typer.Option("--partial", help="Read labels that are not complete, too: what is missing is background"),
]


@verbs.callback()
def query(
    context: typer.Context,
    labels: Annotated[
        str, typer.Argument(metavar="LABELS", help="An output of segment, local or s3://", show_default=False)
    ],
) -> None:
    """Ask a label volume: what is here, which objects are there, where is this one."""
    context.obj = labels


@verbs.command()
def info(context: typer.Context, partial: Partial = False, as_json: AsJson = False) -> None:
    """What these labels are: sizes, units, objects, columns."""
    from flows import query as ask

    report(ask.info(_open(context, partial)), as_json, _facts)


@verbs.command(context_settings=_NEGATIVE)
def at(
    context: typer.Context,
    position: Annotated[str, typer.Argument(metavar="Z,Y,X", help="A place", show_default=False)],
    physical: Annotated[
        bool, typer.Option("--physical", help="The place is in the volume's units, not in voxels")
    ] = False,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Which object is at a place."""
    from flows import query as ask

    report(ask.at(_open(context, partial), position, physical=physical), as_json, _facts)


@verbs.command("object", context_settings=_NEGATIVE)
def object_(
    context: typer.Context, identity: Identity, partial: Partial = False, as_json: AsJson = False
) -> None:
    """The measurements of one object."""
    from flows import query as ask

    report(ask.one(_open(context, partial), ask.identity(identity)), as_json, _facts)


@verbs.command(context_settings=_NEGATIVE)
def mask(
    context: typer.Context,
    identity: Identity,
    to: Annotated[str, typer.Option(help="File to write: .zarr, .tif or .npz")],
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Write which voxels are an object's, cropped to its box."""
    from flows import query as ask

    report(ask.mask(_open(context, partial), ask.identity(identity), to=to), as_json, _facts)


@verbs.command()
def box(
    context: typer.Context,
    region: Region,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="By voxels: leave out objects of which only the bounding box reaches in"
        ),
    ] = False,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Which objects are in a box, as a whole or in part; by bounding boxes, with --exact by voxels."""
    from flows import query as ask

    report(ask.box(_open(context, partial), region, exact=exact), as_json, _rows)


@verbs.command()
def objects(
    context: typer.Context,
    where: Annotated[
        str | None, typer.Option(help="Condition, such as 'volume > 1000 and touches_border == false'")
    ] = None,
    sort: Annotated[str, typer.Option(help="Column to sort by; -volume has the largest first")] = "id",
    limit: Annotated[
        int | None, typer.Option(help="Most rows; 20 where they are printed, all where they are written")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns, such as id,volume; in the terminal a few, else all")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="csv or json, to stdout; a table for people otherwise")
    ] = None,
    to: Annotated[str | None, typer.Option(help="File to write: .csv, .json or .parquet")] = None,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Which objects fulfil a condition, in the table's units: places and boxes (z, z0, z1) in voxels; volume,
    axes, moments and z_physical in units of the voxel size, which `info` tells column by column."""
    from flows import query as ask
    from unet_core.query import table_bytes

    if format not in (None, "csv", "json"):
        raise InputError("--format is not known", expected="csv or json; --to writes files", found=format)
    if format is not None and (as_json or to is not None):
        raise InputError(
            "these options each say where the rows go, and how",
            expected="one of --json, --format and --to",
            found=f"--format {format} and {'--json' if as_json else f'--to {to}'}",
            fix="leave one out; the name after --to says how it is written: .csv, .json or .parquet",
        )
    labels = _open(context, partial)
    printed = to is None and format is None
    if printed and limit is None:
        limit = ask.PRINTED
    if printed and columns is None and not as_json:
        columns = ask.brief_columns(labels)
    table = ask.objects(labels, where=where, sort=sort, limit=limit, columns=columns)
    if to is not None:
        report(ask.save_objects(labels, table, to), as_json, _facts)
    elif format is not None:
        sys.stdout.write(table_bytes(table, f".{format}").decode())
    else:
        report(ask.objects_document(labels, table, where=where, sort=sort), as_json, _rows)


@verbs.command()
def crop(
    context: typer.Context,
    region: Region,
    to: Annotated[str, typer.Option(help="File to write: .zarr, .tif or .npz")],
    no_image: Annotated[bool, typer.Option("--no-image", help="The labels alone")] = False,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Write a box of the labels and of the image under them."""
    from flows import query as ask

    report(ask.crop(_open(context, partial), region, to=to, image=not no_image), as_json, _facts)


@verbs.command(context_settings=_NEGATIVE)
def neighbours(
    context: typer.Context, identity: Identity, partial: Partial = False, as_json: AsJson = False
) -> None:
    """Which objects touch one, and over what area."""
    from flows import query as ask

    report(ask.neighbours(_open(context, partial), ask.identity(identity)), as_json, _rows)


def _open(context: typer.Context, partial: bool) -> Labels:
    from unet_core.query import Labels

    return Labels.open(context.obj, partial=partial)


def _facts(document: dict[str, Any]) -> None:
    from flows.report.answers import print_facts

    print_facts(document)


def _rows(document: dict[str, Any]) -> None:
    from flows.report.answers import print_rows

    print_rows(document)
