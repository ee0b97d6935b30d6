"""The rows that every record of a training is made from, and their CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TABLE = "metrics.csv"
_FIELDS = ("step", "loss", "learning_rate", "patches_per_second", "seconds")
_PER_CLASS = ("iou", "dice")


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """The state after `step` optimiser steps.

    `loss` is the mean since the row before. `seconds` count from the first step, over all resumptions but
    not the pauses between them; `time` is the Unix time of the row, 0 where nobody noted it.
    `metrics` are those of a validation that followed the step, by name; None is a metric without a value,
    such as the IoU of a class that is nowhere. Empty where no validation followed.
    """

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    patches_per_second: float | None = None
    seconds: float | None = None
    time: float = 0.0
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Flat and JSON-ready: the row of the CSV."""
        return {**{name: getattr(self, name) for name in _FIELDS}, **self.metrics}


def rows_of(history: Iterable[Mapping[str, Any]]) -> tuple[TrainingRow, ...]:
    """Rows from plain dicts: the fields of a `TrainingRow`, and `metrics`, flat, or `scores`, nested.

    `scores` is what `evaluation.Scores.to_dict` gives: "iou membrane" and "dice membrane" are taken of each
    class, and every number that stands above or in a group: "threshold probability".
    """
    return tuple(
        TrainingRow(
            step=row["step"],
            **{name: row.get(name) for name in _FIELDS[1:]},
            time=row.get("time", 0.0),
            metrics=row.get("metrics") or dict(_flat(row.get("scores") or {})),
        )
        for row in history
    )


def csv_table(rows: Sequence[TrainingRow]) -> bytes:
    """RFC 4180: one header line, one line per row, nothing where there is no value."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*_FIELDS, *metric_names(rows)], restval="")
    writer.writeheader()
    writer.writerows(row.to_dict() for row in rows)
    return text.getvalue().encode()


def metric_names(rows: Iterable[TrainingRow]) -> tuple[str, ...]:
    """All metrics, in the order in which they first occur."""
    return tuple(dict.fromkeys(name for row in rows for name in row.metrics))


def _flat(scores: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for name, value in scores.items():
        if name == "classes":
            for metric in _PER_CLASS:
                for label, measures in value.items():
                    if metric in measures:
                        yield f"{metric} {label}", measures[metric]
        elif isinstance(value, Mapping):
            yield from ((f"{name} {inner}", number) for inner, number in _flat(value))
        elif name != "voxels" and (value is None or isinstance(value, int | float)):
            yield name, value
