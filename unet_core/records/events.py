"""TensorBoard event files as bytes.

Format: TFRecord (length, masked CRC-32C of it, data, masked CRC-32C of that) of `Event` messages, both as
tensorboardX has them; its own writer is a thread that appends to a local file, here a file is put whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unet_core.records.rows import TrainingRow

FOLDER = "tensorboard"
# One name, so that every writing replaces the one before; TensorBoard looks for "tfevents".
NAME = f"{FOLDER}/events.out.tfevents.0000000000.training"


def event_file(rows: Sequence[TrainingRow]) -> bytes:
    """One scalar per row and number that there is, at the row's own time; nothing where there are no rows.

    Rows that are added later are added at the end and change no byte before, whenever they are written: a
    TensorBoard that watches the file goes on reading where it was.
    """
    if not rows:
        return b""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        writer = RecordWriter(str(path))
        writer.write(Event(wall_time=rows[0].time, file_version="brain.Event:2").SerializeToString())
        for row in rows:
            event: Any = Event(wall_time=row.time, step=row.step)
            for tag, value in _scalars(row):
                event.summary.value.add(tag=tag, simple_value=value)
            writer.write(event.SerializeToString())
        writer.close()
        return path.read_bytes()


def _scalars(row: TrainingRow) -> Iterator[tuple[str, float]]:
    named = {
        "training/loss": row.loss,
        "training/learning_rate": row.learning_rate,
        "training/patches_per_second": row.patches_per_second,
        **{f"validation/{name.replace(' ', '_')}": value for name, value in row.metrics.items()},
    }
    for tag, value in named.items():
        if value is not None:
            yield tag, value
