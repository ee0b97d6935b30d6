"""A table of names and values."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    """On stdout."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)
