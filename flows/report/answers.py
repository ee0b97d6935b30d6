"""Answers of `query` in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_SHOWN = 1000  # rows
# What it means that an object is in a box.
_BY = {
    "bounding boxes": "; by bounding boxes: some may have no voxel in the box, --exact leaves these out",
    "voxels": "; each with a voxel in the box",
}


def print_facts(document: dict[str, Any]) -> None:
    """One thing and what is known about it."""
    table = Table(title=document["verb"], title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    facts = _flat(document)
    if facts.get("units"):  # of `info`: a column and what it is measured in
        named = facts.pop("units")
        facts["columns"] = [f"{name} ({unit})" if unit else name for name, unit in named.items()]
    for name, value in facts.items():
        if name not in ("command", "verb", "labels"):
            table.add_row(name, _text(value))
    Console().print(table)


def print_rows(document: dict[str, Any]) -> None:
    """Several things, one a line."""
    rows: Sequence[dict[str, Any]] = document["rows"]
    names = list(rows[0]) if rows else []
    table = Table(title=document["verb"], title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows[:_SHOWN]:
        table.add_row(*(_text(row[name]) for name in names))
    console = Console()
    if rows:
        console.print(table)
    total = document.get("matching", document["count"])
    said = f"{min(len(rows), _SHOWN):,} of {total:,}" if total else "none"
    said += _BY.get(document.get("by", ""), "")
    console.print(said, soft_wrap=True, highlight=False)


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its object's measurements among its own facts."""
    inner = document.get("object") if isinstance(document.get("object"), dict) else None
    facts = {name: value for name, value in document.items() if name != "object"}
    return facts if inner is None else {**facts, **inner}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "" if value is None else str(value)
