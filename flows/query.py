"""`query`: questions about a label volume, and `unet_core.query`'s answers as JSON-ready documents."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.query import Labels, json_rows, save_crop, save_mask, save_table, unknown_column

# Rows that are printed where nobody says how many.
PRINTED = 20
_BRIEF = ("id", "class", "voxels", "volume", "z", "y", "x", "touches_border")


def info(labels: Labels) -> dict[str, Any]:
    """What these labels are."""
    return _document("info", labels, labels.info())


def at(labels: Labels, position: str, *, physical: bool) -> dict[str, Any]:
    """The object at a place, with its measurements where there is a table."""
    voxel = labels.voxel_at(_place(position), physical=physical)
    identity = labels.at(voxel)
    measured = identity > 0 and labels.has_table
    found = _described(labels, identity) if measured else None
    return _document(
        "at",
        labels,
        {
            "position": position,
            "physical": physical,
            "voxel": list(voxel),
            "id": identity,
            "object": found,
        },
    )


def one(labels: Labels, identity: int) -> dict[str, Any]:
    """The measurements of one object."""
    return _document("object", labels, {"id": identity, "object": _described(labels, identity)})


def mask(labels: Labels, identity: int, *, to: str) -> dict[str, Any]:
    """An object's mask, written."""
    box = save_mask(labels, identity, to)
    return _document(
        "mask", labels, {"id": identity, "box": str(box), "shape": list(box.shape), "written": [to]}
    )


def box(labels: Labels, region: str, *, exact: bool) -> dict[str, Any]:
    """The objects in a box."""
    found = labels.box(Box.parse(region), exact=exact)
    by = "voxels" if exact else "bounding boxes"
    return _document("box", labels, {"box": region, "exact": exact, "by": by, **_rows(found)})


def crop(labels: Labels, region: str, *, to: str, image: bool) -> dict[str, Any]:
    """A box of labels and image, written."""
    written = save_crop(labels, Box.parse(region), to, image=image)
    return _document("crop", labels, {"box": region, "written": written})


def neighbours(labels: Labels, identity: int) -> dict[str, Any]:
    """The objects that touch one."""
    return _document("neighbours", labels, {"id": identity, **_rows(labels.neighbours(identity))})


def objects(
    labels: Labels, *, where: str | None, sort: str, limit: int | None, columns: str | None
) -> pa.Table:
    """The objects that fulfil a condition, with the columns asked for."""
    table = labels.objects(where, sort=sort, limit=limit)
    return table if columns is None else table.select(_columns(labels, columns))


def objects_document(labels: Labels, table: pa.Table, *, where: str | None, sort: str) -> dict[str, Any]:
    """The same as a document, with how many fulfil the condition in all."""
    facts = {"where": where, "sort": sort, "matching": labels.count(where)}
    return _document("objects", labels, {**facts, **_rows(table)})


def save_objects(labels: Labels, table: pa.Table, to: str) -> dict[str, Any]:
    """The same as a file."""
    save_table(table, to)
    return _document("objects", labels, {"rows": table.num_rows, "written": [to]})


def brief_columns(labels: Labels) -> str:
    """The columns that fit a terminal."""
    return ",".join(name for name in _BRIEF if name in labels.table.columns)


def _columns(labels: Labels, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in labels.table.columns:
            raise unknown_column(name, labels.table.columns, where="--columns", found=text)
    return names


def identity(text: str) -> int:
    """An id, as it was typed."""
    try:
        return int(text)
    except ValueError:
        raise InputError(
            "this is not an id",
            where="ID",
            expected="an integer from 1, such as 7",
            found=repr(text),
            fix="unet-flows query LABELS objects lists them",
        ) from None


def _place(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            "this is not a place", expected="z,y,x, such as 12,340.5,96", found=repr(text)
        ) from None


def _described(labels: Labels, identity: int) -> dict[str, Any]:
    """One object's measurements, with the name of its class."""
    row = json_rows(labels.objects_of([identity]))[0]
    return {**row, "class_name": labels.classes[row["class"]]} if "class" in row else row


def _rows(table: pa.Table) -> dict[str, Any]:
    return {"count": table.num_rows, "rows": json_rows(table)}


def _document(verb: str, labels: Labels, facts: dict[str, Any]) -> dict[str, Any]:
    return {"command": "query", "verb": verb, "labels": labels.store.url, **facts}
