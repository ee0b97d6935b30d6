"""How the volumes under a prefix stand."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.report.words import counted, duration


def print_watch(document: dict[str, Any]) -> None:
    """As a table on stdout; those that were done before are only counted."""
    table = Table(title=f"watch: {document['status']}", title_justify="left")
    for name in ("volume", "state", "reason"):
        table.add_column(name, overflow="fold")
    for volume in document["volumes"]:
        if volume["state"] != "done":
            table.add_row(Text(volume["volume"]), volume["state"], Text(volume["reason"] or ""))
    console = Console()
    if table.row_count:
        console.print(table)
    for note in document["notes"]:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    counts = ", ".join(f"{number:,} {state}" for state, number in document["counts"].items() if number)
    console.print(
        f"{counted(len(document['volumes']), 'volume')} under {document['prefix']}: {counts}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    where = f"{document['output']}  in {duration(document['seconds'])}"
    console.print(where, soft_wrap=True, highlight=False, markup=False)
