"""What Prefect's server holds of a training, asked through its API; and that a server may be gone."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prefect import flow

from flows import publishing
from flows.report.artifacts import TrainingArtifacts
from flows.report.picture import Plane, picture_png
from unet_core.records import TrainingRow, curve_png


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_EVERY", 0.02)


def stored(key: str) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def shown_picture(markdown: str) -> Image.Image:
    """The picture inside, as a browser decodes it."""
    found = re.search(r"!\[[^\]]*\]\(data:image/(png|jpeg);base64,([^)]+)\)", markdown)
    assert found is not None
    picture = Image.open(io.BytesIO(base64.b64decode(found[2], validate=True)))
    assert picture.format == found[1].upper()
    return picture


def rows(last: int) -> list[TrainingRow]:
    return [TrainingRow(step=s, loss=1 / s, metrics={"iou": 0.5, "dice": None}) for s in range(1, last + 1)]


def validation() -> bytes:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (1, 900, 900), np.uint8)
    classes = (image[0] > 100).astype(np.uint8)
    return picture_png([Plane("a", image, classes, classes)], ("background", "bright"))


@pytest.mark.usefixtures("in_prefect")
def test_curve_table_and_pictures_are_shown_and_updated_in_place() -> None:
    @flow
    def training() -> None:
        with TrainingArtifacts("My Model_1") as shown:
            for last in (3, 5):
                shown.show_curve(curve_png(rows(last)), f"step {last}")
                shown.show_metrics([row.to_dict() for row in rows(last)], f"step {last}")
                shown.show_pictures(validation(), f"step {last}")
                if last == 3:
                    wait_until(lambda: len(shown._made) == 3)

    training()
    (curve,), (table,), (pictures,) = (stored(f"{k}-my-model-1") for k in ("curve", "metrics", "validation"))
    assert {curve.type, pictures.type, table.type} == {"markdown", "table"}
    assert {a.description for a in (curve, table, pictures)} == {"step 5"}
    assert curve.data.startswith("step 5\n")
    assert shown_picture(curve.data).width == 900
    assert shown_picture(pictures.data).width == 1400, "what is wide is made smaller"
    assert len(pictures.data) < 1.5e6
    lines = json.loads(table.data)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[2]["loss"] == pytest.approx(1 / 3, abs=1e-5)
    assert (lines[2]["iou"], lines[2]["dice"]) == (0.5, "")


@pytest.mark.filterwarnings("ignore:Artifact creation outside:FutureWarning")
def test_a_server_that_is_gone_costs_artifacts_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    monkeypatch.setattr(publishing, "_EVERY_RETRY", 0.0)
    tried: list[str] = []
    publish = TrainingArtifacts._publish

    def counted(self: TrainingArtifacts, kind: str, content: Any) -> None:
        tried.append(kind)
        publish(self, kind, content)

    monkeypatch.setattr(TrainingArtifacts, "_publish", counted)
    # Nothing listens on port 9, "discard".
    away = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}

    # Not in a flow run: there the run's own client would be used, to the server that lives.
    with temporary_settings(away), TrainingArtifacts("m") as shown:
        shown.show_curve(curve_png(rows(2)), "")
        shown.show_metrics([], "")
        wait_until(lambda: len(tried) == 2)
        shown.show_curve(curve_png(rows(3)), "")
        wait_until(lambda: len(tried) == 3)
        assert shown._publisher._thread.is_alive()
    assert not shown._publisher._thread.is_alive()
    assert tried == ["curve", "metrics", "curve"]
    assert not shown._made
    shown.stop()


def wait_until(reached: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.01)
