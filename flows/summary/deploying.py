"""What `deploy` did, and what comes next."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_STYLES = {"made": "green", "updated": "yellow", "unchanged": "dim"}


def print_deployment(document: dict[str, Any]) -> None:
    """Everything on the server that is ours, a line each, on stdout."""
    table = Table(title=f"deploy: {document['server']}", title_justify="left")
    for name in ("what", "name", "done", "now"):
        table.add_column(name, overflow="fold")
    for change in document["changes"]:
        did = change["did"]
        table.add_row(change["kind"], change["name"], f"[{_STYLES[did]}]{did}[/]", change["note"])
    console = Console()
    console.print(table)
    for pool in document["pools"]:
        console.print(
            f"a worker for it: PREFECT_API_URL={document['server']} prefect worker start --pool {pool}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
