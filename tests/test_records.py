"""What a training leaves to read, as other programs read it."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from unet_core.architecture import UNetSpec
from unet_core.checkpoint import ModelCard
from unet_core.evaluation import Scores
from unet_core.normalisation import NormalisationRule, Scale
from unet_core.records import (
    TrainingRow,
    csv_table,
    curve_png,
    event_file,
    model_readme,
    rows_of,
    software,
    write_card,
    write_records,
)
from unet_core.records.card import fingerprint
from unet_core.volumes import Store

NUMBERS = st.floats(-1e6, 1e6, width=32) | st.none()
NAMES = ["iou membrane", 'dice "odd, name"', "mean_iou"]


@st.composite
def histories(draw: st.DrawFn) -> list[TrainingRow]:
    steps = sorted(draw(st.sets(st.integers(1, 10**7), max_size=12)))
    seconds = sorted(draw(st.lists(st.floats(0, 1e6), min_size=len(steps), max_size=len(steps))))
    return [
        TrainingRow(
            step=step,
            loss=draw(NUMBERS),
            learning_rate=draw(NUMBERS),
            patches_per_second=draw(NUMBERS),
            seconds=passed,
            time=draw(st.floats(1e9, 4e9)),
            metrics=draw(st.dictionaries(st.sampled_from(NAMES), NUMBERS)),
        )
        for step, passed in zip(steps, seconds)
    ]


def history(steps: int = 1000, every: int = 100) -> list[TrainingRow]:
    rng = np.random.default_rng(0)
    rows = []
    for step in range(1, steps + 1):
        loss = 2.5 * np.exp(-step / 150) + 0.12 + 0.05 * rng.random()
        metrics: dict[str, float | None] = {}
        if step % every == 0:
            iou = 0.85 * (1 - np.exp(-step / 300)) + 0.02 * rng.random()
            metrics = {"iou membrane": iou, "dice membrane": 2 * iou / (1 + iou)}
            metrics |= {"pixel_error": 0.3 - iou / 4, "threshold probability": 0.5}
        row = TrainingRow(
            step=step,
            loss=float(loss),
            learning_rate=1e-2,
            patches_per_second=3.0,
            seconds=step / 3,
            metrics=metrics,
        )
        rows.append(row)
    return rows


@settings(max_examples=50)
@given(rows=histories())
def test_the_table_holds_every_number(rows: list[TrainingRow]) -> None:
    read = list(csv.DictReader(io.StringIO(csv_table(rows).decode(), newline="")))
    assert len(read) == len(rows)
    for line, row in zip(read, rows):
        found = {name: float(value) for name, value in line.items() if value}
        assert found == {name: value for name, value in row.to_dict().items() if value is not None}


def events_of(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """What TensorBoard reads: tag to (step, value, wall time)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(e.step, e.value, e.wall_time) for e in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


@settings(max_examples=25)
@given(rows=histories())
def test_tensorboard_reads_every_number(
    rows: list[TrainingRow], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("events")
    (folder / "events.out.tfevents.0").write_bytes(event_file(rows))
    expected: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        named: dict[str, float | None] = {
            f"training/{name}": getattr(row, name) for name in ("loss", "learning_rate", "patches_per_second")
        }
        named |= {f"validation/{name.replace(' ', '_')}": value for name, value in row.metrics.items()}
        for tag, value in named.items():
            if value is not None:
                expected.setdefault(tag, []).append((row.step, value, row.time))
    assert events_of(folder) == expected


@settings(max_examples=25)
@given(rows=histories(), data=st.data())
def test_later_rows_change_no_byte_before(rows: list[TrainingRow], data: st.DataObject) -> None:
    """TensorBoard remembers how far it has read."""
    early = rows[: data.draw(st.integers(0, len(rows)))]
    assert event_file(rows).startswith(event_file(early))


def test_a_resumed_training_has_no_row_twice(tmp_path: Path) -> None:
    store, rows = Store(tmp_path / "model"), history(60, every=20)
    write_records(store, rows[:47], best_step=40)
    write_records(store, rows[:20] + rows[20:], best_step=60)  # from the checkpoint of step 20 on
    assert sorted(store.keys()) == [
        "metrics.csv",
        "tensorboard/events.out.tfevents.0000000000.training",
        "training.png",
    ]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "model" / "metrics.csv").read_text())))
    assert [int(line["step"]) for line in lines] == list(range(1, 61))
    found = events_of(tmp_path / "model" / "tensorboard")
    assert [step for step, _, _ in found["training/loss"]] == list(range(1, 61))
    assert [step for step, _, _ in found["validation/iou_membrane"]] == [20, 40, 60]


def test_records_on_s3_are_those_on_disk(bucket: str, tmp_path: Path) -> None:
    rows = history(40, every=20)
    stores = Store(f"{bucket}/model"), Store(tmp_path / "model")
    for store in stores:
        write_records(store, rows[:20], title="model")
        write_records(store, rows, title="model", best_step=40)
        write_card(store, "# model\n")
    remote, local = ({key: store.read(key) for key in list(store.keys())} for store in stores)
    assert remote == local
    assert len(local) == 4


def test_scores_of_an_evaluation_become_metrics() -> None:
    scores = Scores(np.array([[90, 5, 0], [5, 0, 0], [0, 0, 0]]), ("background", "membrane", "synapse"))
    nested = {**scores.to_dict(), "threshold": {"probability": 0.25, "kind": "iou"}, "instances": {"ap": 0.5}}
    without, row = rows_of([{"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "scores": nested}])
    assert without.metrics == {}
    assert row.loss is None
    assert row.metrics == {
        "pixel_error": scores.pixel_error,
        "mean_iou": scores.mean_iou,
        "iou background": 0.9,
        "iou membrane": 0.0,
        "iou synapse": None,
        "dice background": 180 / 190,
        "dice membrane": 0.0,
        "dice synapse": None,
        "threshold probability": 0.25,
        "instances ap": 0.5,
    }


def picture(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened.convert("RGB")).astype(int)


def near(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(image - colour).max(axis=-1) < 40


def test_the_curve_shows_where_the_numbers_lie() -> None:
    rows = history()
    shown = picture(curve_png(rows, title="fib25", best_step=900))
    assert shown.shape == (540, 900, 3)
    upper, lower = shown[56:230], shown[315:490]
    columns = np.flatnonzero(near(upper, (0, 114, 178)).any(axis=0))
    columns = columns[columns > 76]
    assert columns[0] < 90
    assert columns[-1] > 870
    # The loss falls: its line lies lower on the right, by most of the panel.
    left, right = (np.flatnonzero(near(upper, (0, 114, 178))[:, c]).mean() for c in (120, 870))
    assert right - left > 80
    # The IoU rises, in the panel below.
    blue = near(lower, (0, 114, 178))
    assert np.flatnonzero(blue[:, 160]).mean() > np.flatnonzero(blue[:, 870]).mean() + 40
    # Nothing is validated: one panel.
    assert picture(curve_png([r for r in rows if not r.metrics])).shape == (260, 900, 3)


@settings(max_examples=15)
@given(rows=histories(), best=st.none() | st.integers(0, 10**7))
def test_any_numbers_can_be_drawn(rows: list[TrainingRow], best: int | None) -> None:
    best = best if any(row.step == best for row in rows) else None
    assert picture(curve_png(rows, best_step=best)).shape[1] == 900


SPEC = UNetSpec.build(ndim=3, depth=2, base=8, classes=3, anisotropic_levels=1)
CARD = ModelCard(
    spec=SPEC,
    class_names=("background", "membrane", "a | b"),
    target="semantic",
    normalisation=NormalisationRule(),
    scale=Scale((10.0,), (200.0,)),
    voxel_size=(50.0, 4.0, 4.0),
    unit="nanometer",
)


def data_of(place: str, content: str = "aa", validation: bool = True) -> dict[str, Any]:
    volume = {"shape": [24, 512, 512], "dtype": "|u1", "metadata": "00", "content": [content]}
    entry = {
        "image": {"url": f"{place}/volume.zarr", **volume},
        "labels": {"url": f"{place}/labels.zarr", **volume},
        "region": "0:20,0:512,0:512",
        "ignore": None,
    }
    held_out = [{**entry, "region": "20:24,0:512,0:512"}] if validation else []
    return {"training": [entry], "validation": held_out}


def readme(rows: Sequence[TrainingRow], data: dict[str, Any]) -> str:
    return model_readme(
        CARD,
        name="membranes",
        data=data,
        config={"steps": 1000, "augment": {"flips": True}, "ignore": None, "cluster": "/home/a/c.toml"},
        rows=rows,
        best_step=900,
        versions=software(),
    )


def test_the_card_says_what_people_ask() -> None:
    import torch

    text = readme(history(), data_of("/home/somebody"))
    for said in (
        "# membranes",
        "50 × 4 × 4 nanometer",
        "percentiles 1 and 99",
        "(x − 10) / 200",
        "0 background, 1 membrane",
        "| iou membrane | 0.8",
        "weights of step 900",
        "24,512,512",
        "0:20,0:512,0:512",
        "| augment.flips | True |",
        f"torch {torch.__version__}",
        software()["code"],
        "licence of the training data is not known",
        "![training curve](training.png)",
    ):
        assert said in text, said
    assert "somebody/volume.zarr" in text
    assert "/home" not in text, "whose machine it was is nobody's business"
    assert "None" not in text


def test_the_cards_tables_are_tables() -> None:
    """As CommonMark with tables reads them: every row as wide as its head."""
    tokens = MarkdownIt("commonmark").enable("table").parse(readme(history(), data_of("/data")))
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == 4
    rows, cells = kinds.count("tr_open"), kinds.count("td_open") + kinds.count("th_open")
    text = [token.content for token in tokens if token.type == "inline"]
    assert "0 background, 1 membrane, 2 a | b" in text
    # Tables of 2, 2, 7 and 2 columns; that of the regions has a head and two rows.
    assert cells == 2 * (rows - 3) + 7 * 3


def test_the_cards_commands_are_commands() -> None:
    from typer.main import get_command

    from flows.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    block = readme(history(), data_of("/data")).split("```sh\n")[1].split("```")[0]
    lines = [shlex.split(line) for line in block.splitlines()]
    assert [line[:2] for line in lines] == [["unet-flows", "segment"], ["unet-flows", "evaluate"]]
    for _, name, *arguments in lines:
        commands[name].make_context(name, arguments)  # raises what a shell would print


def test_a_model_that_was_not_validated_says_so() -> None:
    rows = [TrainingRow(step=900, loss=0.1)]
    assert "nothing is known about its quality" in readme(rows, data_of("/data", validation=False))


def test_the_fingerprint_is_of_the_data_not_of_its_place() -> None:
    assert fingerprint(data_of("/here")) == fingerprint(data_of("s3://there"))
    assert fingerprint(data_of("/here")) != fingerprint(data_of("/here", content="ab"))
    assert fingerprint(data_of("/here")) != fingerprint(data_of("/here", validation=False))
