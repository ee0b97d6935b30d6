"""Commands that take models to other software, and from it."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.app import AsJson, app, report, require_there


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
    require_there("no such model", model, fix="train one: unet-flows train --help")
    from flows.exchange import Format, about, export_model
    from flows.parsing import choice
    from flows.summary.models import print_export

    document = export_model(
        model,
        format=choice("--format", format, Format),
        to=to,
        about=about(name, description, author, licence),
        image=image,
    )
    report(document, as_json, print_export)


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
    require_there("there is nothing to import", source)
    require_there("there is no such description", spec)
    from flows.exchange import import_model
    from flows.summary.models import print_import

    report(import_model(source, to=to, spec=spec), as_json, print_import)
