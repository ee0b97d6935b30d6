"""`deploy`: onto a Prefect server, for schedules and workers."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.app import AsJson, app, report


@app.command()
def deploy(
    server: Annotated[
        str | None,
        typer.Option(help="Prefect's server, such as http://127.0.0.1:4200; PREFECT_API_URL otherwise"),
    ] = None,
    file: Annotated[
        str, typer.Option(help="What to deploy; work-pools/ and automations/ lie beside it")
    ] = "deploy/prefect.yaml",
    pool_type: Annotated[
        str, typer.Option(help="process, docker or kubernetes: what a worker starts runs as")
    ] = "process",
    pool: Annotated[str | None, typer.Option(help="Work pool; the default is the file's, by kind")] = None,
    image: Annotated[
        str | None, typer.Option(help="Image of docker and kubernetes, with unet-flows installed")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="DEPLOYMENT.PARAMETER=VALUE",
            help="A parameter of a deployment, kept until it is set anew; may be given again",
        ),
    ] = None,
    resume: Annotated[
        list[str] | None,
        typer.Option(metavar="DEPLOYMENT", help="Switch this deployment's schedules on; may be given again"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put work pool, deployments, schedules and automations on a Prefect server; again, only what differs."""
    from flows.deployments import PoolKind, Request, install
    from flows.parsing import choice
    from flows.summary.deploying import print_deployment

    request = Request(
        server=server,
        file=file,
        kind=choice("--pool-type", pool_type, PoolKind),
        pool=pool,
        image=image,
        values=tuple(set_ or ()),
        resume=tuple(resume or ()),
    )
    report(install(request), as_json, print_deployment)
