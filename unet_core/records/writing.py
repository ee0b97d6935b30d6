"""All records of a training into its model folder, local or s3://."""

from __future__ import annotations

from collections.abc import Sequence

from unet_core.records.card import CARD
from unet_core.records.curve import CURVE, curve_png
from unet_core.records.events import NAME, event_file
from unet_core.records.rows import TABLE, TrainingRow, csv_table
from unet_core.volumes import Store


def write_records(
    store: Store,
    rows: Sequence[TrainingRow],
    *,
    title: str = "",
    best_step: int | None = None,
) -> None:
    """Write metrics.csv, the event file and training.png anew, each whole or not at all.

    Meant to follow each validation. `best_step`: see `curve_png`.

    Raises
    ------
    StoreError
        The store does not take them. What was there before is as it was.
    """
    store.write(TABLE, csv_table(rows))
    store.write(NAME, event_file(rows))
    store.write(CURVE, curve_png(rows, title=title, best_step=best_step))


def write_card(store: Store, text: str) -> None:
    """Write the model card (`model_readme`)."""
    store.write(CARD, text.encode())
