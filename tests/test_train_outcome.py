"""How a training stands and how it ended, as the disk says it: no server, no ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_training import QUICK, blobs, split

from flows.inspection import status
from flows.outcome import told
from flows.report.training import show_training, show_validation
from flows.summary.models import print_training
from flows.summary.runs import print_status
from flows.supervise import InterruptionError
from flows.tasks import look_at_training, training_stands
from flows.train import recorded
from unet_core import training
from unet_core.architecture import UNetSpec
from unet_core.errors import RunError
from unet_core.ledger import Lease, RunRecord, begin, hold, set_status
from unet_core.volumes import Store

SPEC = UNetSpec.build(ndim=3, depth=1, base=2, norm="none", dropout=0.0)


@pytest.fixture
def plan(tmp_path: Path) -> training.Plan:
    source, held_out = split(tmp_path, *blobs((12, 12, 24), seed=0))
    return training.prepare([source], [held_out], SPEC, replace(QUICK, steps=2, validate_every=1))


@pytest.fixture
def begun(plan: training.Plan, tmp_path: Path) -> Iterator[tuple[Store, Lease]]:
    store = Store(tmp_path / "model")
    with hold(store, every=3600) as lease:
        begin(store, RunRecord(training.KIND, {"name": "model"}, plan.to_dict()), arrays=False)
        set_status(store, "partial")
        yield store, lease


def lost_server(**_: Any) -> dict[str, Any]:
    raise httpx.ConnectError("gone")


def test_prefects_death_leaves_a_complete_trainings_document(plan, begun, capsys):
    store, lease = begun
    with pytest.raises(RunError, match="not complete"):
        told(lost_server, "train", {"to": store.url}, recorded=recorded)
    trained = training.run(plan, checkpoints=training.Checkpoints(store, lease.epoch))
    set_status(store, "complete")
    document = told(lost_server, "train", {"to": store.url}, recorded=recorded)
    assert (document["steps_done"], document["model"]) == (2, store.url)
    assert document["validation"] == trained.history.best["scores"]
    print_training(document)
    assert "IoU" in capsys.readouterr().out


def test_an_interruption_claims_no_progress_that_was_not_made(begun, tmp_path):
    def interrupted(**_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    for to, says in ((begun[0].url, "goes on where it stopped"), (str(tmp_path / "new"), "before anything")):
        with pytest.raises(InterruptionError, match=says):
            told(interrupted, "train", {"to": to})


def test_a_training_that_goes_on_is_shown(plan, begun, capsys):
    store, lease = begun
    lease.report(training_stands({"step": 1, "patches_per_second": 0.5}, plan.settings))
    lease.beat()
    progress = status(store.url)["progress"]
    assert progress["done"] == 1
    assert progress["seconds_left"] == 2.0 * plan.settings.batch
    print_status(status(store.url))
    assert "1 of 2" in capsys.readouterr().out


class Shown:
    """Stands for what Prefect shows."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def show_curve(self, png: bytes, text: str) -> None:
        assert png
        self.told["curve"] = text

    def show_metrics(self, rows: Any, text: str) -> None:
        assert rows
        self.told["metrics"] = text

    def show_pictures(self, png: bytes, text: str) -> None:
        self.told["pictures"] = text


@pytest.mark.parametrize("held_out", [True, False])
def test_a_curve_is_shown_also_where_nothing_is_held_out(plan, tmp_path, held_out):
    if not held_out:
        plan = replace(plan, validation=(), validation_scales=())
    store, shown = Store(tmp_path / "model"), Shown()

    def show(now: training.Progress) -> None:
        if now.looked:
            show_training(shown, store, look_at_training(asdict(now)))  # type: ignore[arg-type]

    training.run(plan, on_progress=show, on_validation=partial(show_validation, store, plan))
    if held_out:
        assert set(shown.told) == {"curve", "metrics", "pictures"}
        assert "step 2: foreground IoU" in shown.told["curve"]
    else:
        assert set(shown.told) == {"curve", "pictures"}
        assert "step 2: loss" in shown.told["curve"]
