"""What a training leaves to read, beside the weights in the model folder.

metrics.csv                    every row: loss, learning rate, speed, validation metrics
tensorboard/events.out.tfevents...  the same for TensorBoard
training.png                   loss and validation metrics over the steps
README.md                      the model card

Everything is made from all rows so far and written whole, one object at a time: a store on S3 cannot append,
a reader never sees half a file, and a resumed training has no row twice. How many rows there are is the
training's business (`unet_core.training.history` keeps about 2,000 losses, and every validation).
"""

from unet_core.records.card import CARD, model_readme, software
from unet_core.records.curve import CURVE, curve_png
from unet_core.records.events import event_file
from unet_core.records.rows import TABLE, TrainingRow, csv_table, rows_of
from unet_core.records.writing import write_card, write_records

__all__ = [
    "CARD",
    "CURVE",
    "TABLE",
    "TrainingRow",
    "csv_table",
    "curve_png",
    "event_file",
    "model_readme",
    "rows_of",
    "software",
    "write_card",
    "write_records",
]
