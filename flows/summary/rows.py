"""A table of names and values."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from unet_core.geometry import Shape


def print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    """On stdout."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


def sides(shape: Shape | list[int]) -> str:
    """Such as 64×64×64."""
    return "×".join(map(str, shape))
