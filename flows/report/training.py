"""Pictures and tables of a training, written into its model folder while it goes on.

batch.png          patches before and after augmentation, once
validation.png     image, truth, prediction and where they differ, at the latest validation
training.png, metrics.csv, tensorboard/      see `unet_core.records`
"""

from __future__ import annotations

import csv
import io

from flows.report.artifacts import TrainingArtifacts
from flows.report.batch import batch_picture
from flows.report.picture import Plane, picture_png
from unet_core.model import UNet
from unet_core.records import CURVE, TABLE, rows_of, write_records
from unet_core.sampling import Patch, generator
from unet_core.training import History, Plan, preview
from unet_core.volumes import Store

BATCH, VALIDATION = "batch.png", "validation.png"
_PATCHES = 4


def show_batch(store: Store, plan: Plan) -> None:
    """What the first steps see, if nobody has drawn it yet: a look at it finds most mistakes in the data."""
    if store.read(BATCH) is not None:
        return

    def drawn(*, augmented: bool) -> list[Patch]:
        generators = (generator(plan.settings.seed, step, 0) for step in _steps(plan))
        return [plan.sampler.draw(rng, augmented=augmented) for rng in generators]

    picture = batch_picture(
        drawn(augmented=False),
        drawn(augmented=True),
        footprint=plan.sampler.footprint,
        class_names=plan.class_names,
    )
    data = io.BytesIO()
    picture.save(data, format="PNG")
    store.write(BATCH, data.getvalue())


def show_validation(store: Store, plan: Plan, history: History, network: UNet) -> None:
    """What the latest validation saw, and all numbers so far."""
    seen = preview(plan, network)
    plane = Plane(title=seen.where, image=seen.image, predicted=seen.found, truth=seen.truth)
    store.write(VALIDATION, picture_png([plane], plan.class_names))
    write_records(
        store, rows_of(history.rows), title=store.url.rpartition("/")[2], best_step=history.best_step
    )


def show_training(artifacts: TrainingArtifacts, store: Store, text: str) -> None:
    """What lies in the model folder by now, in Prefect's UI; `text` says how it stands."""
    if (curve := store.read(CURVE)) is not None:
        artifacts.show_curve(curve, text)
    if (table := store.read(TABLE)) is not None:
        rows = csv.DictReader(io.StringIO(table.decode()))
        if validated := [row for row in rows if row.get("foreground_iou")]:
            artifacts.show_metrics(validated, text)
    if (picture := store.read(VALIDATION)) is not None:
        artifacts.show_pictures(picture, text)


def _steps(plan: Plan) -> range:
    return range(1, min(_PATCHES, plan.settings.steps) + 1)
