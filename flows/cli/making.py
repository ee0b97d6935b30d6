"""Commands that make something: volumes, models, labels."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from flows.cli.app import AsJson, Yes, app, confirm_restart, options_of, report, require_new, require_there
from flows.config import IngestConfig, SegmentConfig, StitchConfig, TrainConfig


@app.command()
@options_of(IngestConfig)
def ingest(yes: Yes = False, as_json: AsJson = False, **parameters: Any) -> None:
    """Convert TIFF, HDF5, NPZ or PNG to a sharded, multiscale OME-Zarr volume."""
    from flows.config import validate
    from unet_core.sources import files_of, open_source

    config = validate(IngestConfig, parameters, options=parameters)
    files_of(config.sources)
    if not config.each:
        open_source(config.sources, dataset=config.dataset, axes=config.axes).close()
    from flows.ingest import ingest as flow
    from flows.ingest import plan, plan_each
    from flows.outcome import told
    from flows.summary.runs import print_run

    if config.each:
        plan_each(config)
    else:
        plan(config)
    confirm_restart(config, yes)
    report(told(flow, "ingest", parameters), as_json, print_run)


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
    from flows.config import read_cluster, read_training
    from flows.pairs import pairs_of

    given = {k: v for k, v in parameters.items() if v is not None}
    if init is not None:
        require_there("no such volume", given.get("image"), given.get("labels"))
        require_new("the configuration cannot be written", init, fix="choose another --init")
        from flows.init import write
        from flows.summary.models import print_proposal

        report(write(init, config=config, given=given), as_json, print_proposal)
        return
    settings = read_training(config, given)
    pairs, held_out = pairs_of(settings)
    for pair in (*pairs, *held_out):
        require_there("no such volume", pair.image, pair.labels)
    require_there("no such model", settings.fine_tune)
    read_cluster(settings.cluster, workers=settings.workers)
    if settings.fine_tune is not None:
        from unet_core.model_folder import require_model

        require_model(settings.fine_tune)
    from flows.outcome import told
    from flows.summary.models import print_training
    from flows.train import flow_of, prepare, recorded

    planned = prepare(settings, tell=lambda note: print(f"note: {note}", file=sys.stderr))
    confirm_restart(settings, yes)
    document = told(flow_of(planned), "train", settings.model_dump(), recorded=recorded)
    report(document, as_json, print_training)


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

    config = validate(SegmentConfig, parameters, options=parameters)
    require_there("no such volume", config.volume)
    require_there("no such mask", config.mask)
    require_there("no such model", config.model, fix="train one: unet-flows train --help")
    cluster = read_cluster(config.cluster, workers=config.workers)
    # Here too, in a second: what follows takes five to load.
    from unet_core.model_folder import require_model
    from unet_core.volumes import Volume

    require_model(config.model)
    Volume.open(config.volume, level=config.level)
    from flows.outcome import told
    from flows.segment import plan as make_plan
    from flows.segment import segment as flow
    from flows.summary.plan import plan_document, print_plan
    from flows.summary.runs import print_run

    planned = make_plan(config)
    document = plan_document(planned, workers=cluster.workers)
    if plan:
        report(document, as_json, print_plan)
        return
    confirm_restart(config, yes)
    if not as_json:
        print_plan(document)
    report(told(flow, "segment", parameters), as_json, print_run)


@app.command()
@options_of(StitchConfig)
def stitch(yes: Yes = False, as_json: AsJson = False, **parameters: Any) -> None:
    """Merge the instances of an output anew, under other thresholds, without the network."""
    from flows.config import validate

    config = validate(StitchConfig, parameters, options=parameters)
    require_there("no such labels", config.labels)
    from flows.outcome import told
    from flows.stitch import plan
    from flows.stitch import stitch as flow
    from flows.summary.runs import print_run

    plan(config)
    confirm_restart(config, yes)
    report(told(flow, "stitch", parameters), as_json, print_run)
