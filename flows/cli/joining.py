"""Commands for machines that lend workers to a scheduler which runs already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from unet_core.errors import InputError


@app.command()
def certificates(
    folder: Annotated[str, typer.Argument(help="New folder; only you may read what is in it")],
) -> None:
    """Make certificates for a Dask scheduler, its workers and the runs that use it: who has them may join."""
    from flows.cluster.certificates import options_of, write_certificates

    place = Path(folder).expanduser()
    write_certificates(place)
    print(f"{place} has them now. Bring the folder to every machine that takes part, then there:")
    tls = " ".join(options_of(place))
    print(f"  dask scheduler --protocol tls --dashboard-address 127.0.0.1:8787 {tls}")
    print(f"  unet-flows worker tls://SCHEDULER:8786 --tls {place}")
    print(f'and in the cluster file: kind = "address", address = "tls://SCHEDULER:8786", tls = "{place}"')


@app.command()
def worker(
    scheduler: Annotated[str, typer.Argument(help="Address of the scheduler, such as tls://host:8786")],
    tls: Annotated[str | None, typer.Option(help="Folder with its certificates")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of its arithmetic; the default is all cores")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="The one GPU that it sees, as nvidia-smi numbers them")
    ] = None,
    walltime: Annotated[
        str | None, typer.Option(help="[days-]hours:minutes:seconds after which this machine is taken away")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS: whoever reaches its port may run code here")
    ] = False,
) -> None:
    """Lend this machine to a Dask scheduler, as runs need it; one GPU each, so start as many as there are."""
    from flows.cluster.address import security_at
    from flows.cluster.certificates import options_of
    from flows.config import validate
    from flows.config.cluster import Address, seconds_of
    from flows.start_worker import main

    given = {"address": scheduler, "tls": tls, "insecure": insecure}
    config = validate(Address, {"kind": "address", **given}, options=("tls", "insecure"))
    security_at(config)
    options = [scheduler]
    if config.tls is not None:
        options += options_of(Path(config.tls).expanduser().absolute())
    if threads is not None:
        options.append(f"--nthreads={threads}")
    if walltime is not None:
        try:
            seconds_of(walltime)
        except ValueError as error:
            raise InputError(f"this walltime is {error}", where="--walltime", found=walltime) from None
        options.append(f"--walltime={walltime}")
    main(options, gpu=gpu)
