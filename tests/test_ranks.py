"""Training on several ranks, each a process under a Dask worker: as one rank does it, and through deaths."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import zarr
from distributed import Client
from test_training import CALM, QUICK, blobs, same_weights, split

from flows import deadline, rank_host
from flows.cluster import open_client
from flows.config import Local
from flows.ranks import RankDiedError, RankedTraining
from unet_core import training
from unet_core.architecture import UNetSpec
from unet_core.errors import RunError
from unet_core.ledger import RunRecord, begin, hold
from unet_core.training import Checkpoints, Plan, network_of
from unet_core.volumes import Store

PLAIN = UNetSpec.build(ndim=3, depth=1, base=4, norm="none", dropout=0.0)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with open_client(Local(workers=3, threads=1)) as client:
        client.wait_for_workers(3)
        yield client


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    source, held_out = split(tmp_path, *blobs((12, 12, 24), seed=0))
    # Calm: nothing of it needs numba, which every rank would compile anew, for longer than it trains.
    wanted = replace(QUICK, batch=5, steps=20, validate_every=10, checkpoint_every=4, augment=CALM)
    return training.prepare([source], [held_out], PLAIN, wanted)


def train_on(
    client: Client,
    folder: Path,
    plan: Plan,
    ranks: int,
    *,
    hook: Callable[[dict[str, Any]], None] = lambda now: None,
    max_restarts: int = 3,
) -> tuple[torch.nn.Module, list[float], list[str]]:
    """The trained network, its loss by step, and what was said of restarts."""
    store = Store(folder)
    losses: dict[int, float] = {}
    said: list[str] = []
    record = RunRecord(training.KIND, {"name": folder.name}, plan.to_dict())

    def progress(now: dict[str, Any]) -> None:
        losses[now["step"]] = now["loss"]
        hook(now)

    with hold(store, every=60) as lease:
        begin(store, record)
        ranked = RankedTraining(
            client=client,
            job={"output": store.url, "fingerprint": record.fingerprint, "epoch": lease.epoch, "loaders": 1},
            most=ranks,
            max_restarts=max_restarts,
            on_progress=progress,
            on_restart=said.append,
        )
        assert ranked.run() == {"stopped": False}
    found = Checkpoints(store).latest()
    history = found.facts["history"]
    assert found.step == plan.settings.steps
    rows = [row["loss"] for row in history["rows"]]
    return network_of(plan, Checkpoints(store).best(history["best_step"])), rows, said


def rank_processes() -> list[psutil.Process]:
    """Ranks among this process's descendants."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "flows.rank" in child.cmdline():
                found.append(child)
    return found


def test_any_number_of_ranks_trains_as_one_does(client, plan, tmp_path):
    alone = training.run(plan)
    expected = [row["loss"] for row in alone.history.rows]
    assert len(expected) == 20
    for ranks in (1, 3):
        network, losses, said = train_on(client, tmp_path / f"{ranks}", plan, ranks)
        np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)
        for one, other in zip(network.parameters(), alone.network.parameters()):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert said == []
        assert rank_processes() == []


def test_ranks_stop_before_their_workers_have_to_go_and_go_on_elsewhere(client, plan, tmp_path, monkeypatch):
    """The deadline is over when they have loaded: they stop at once, together, with a checkpoint."""
    end = {deadline.VARIABLE: str(time.time() + deadline.MARGIN)}
    client.run(lambda: os.environ.update(end))
    left: list[list[str]] = []

    def others_come(self: RankedTraining, workers: list[str]) -> None:
        left.append(workers)
        self.client.run(lambda: os.environ.pop(deadline.VARIABLE))

    monkeypatch.setattr(RankedTraining, "_leave", others_come)
    alone = training.run(plan)
    _, losses, said = train_on(client, tmp_path / "late", plan, 2)
    assert [len(workers) for workers in left] == [2]
    assert said == [], "that is no restart"
    np.testing.assert_allclose(losses, [row["loss"] for row in alone.history.rows], atol=1e-5, rtol=0)


def test_deaths_change_nothing(client, plan, tmp_path):
    """Batch norm and dropout are on: they depend on the ranks, and these are the same after a death.

    First a rank dies, then, of those that were begun anew, a worker.
    """
    spec = replace(PLAIN, norm="batch", dropout=0.2)
    plan = replace(plan, spec=spec)
    whole, losses, _ = train_on(client, tmp_path / "whole", plan, 2)
    scores = scores_of(tmp_path / "whole")
    # Of the very network that was kept, whichever rank measured them.
    assert training.validate(plan, whole).to_dict() in scores
    victims = ["worker", "rank"]

    def strike(now: dict[str, Any]) -> None:
        if now["step"] >= 9 and victims:
            rank = rank_processes()[-1]
            process = rank if victims.pop() == "rank" else rank.parent()
            os.kill(process.pid, signal.SIGKILL)

    network, again, said = train_on(client, tmp_path / "struck", plan, 2, hook=strike)
    assert victims == []
    assert len(said) == 2
    assert again == losses
    assert same_weights(network, whole)
    assert scores_of(tmp_path / "struck") == scores


def scores_of(folder: Path) -> list[dict[str, Any]]:
    rows = Checkpoints(Store(folder)).latest().facts["history"]["rows"]
    return [row["scores"] for row in rows if "scores" in row]


def test_an_error_that_would_come_again_is_told_at_once(client, plan, tmp_path):
    source = plan.sampler.sources[0]
    semantic = replace(plan.settings, target="semantic", class_names=("a", "b"))
    labels = zarr.open_array(source.labels.url, mode="r+")
    labels[...] = 1
    wrong = training.prepare([source], [], PLAIN, semantic)
    labels[...] = 2
    with pytest.raises(RunError, match="class") as caught:
        train_on(client, tmp_path / "model", wrong, 2)
    assert "labels.zarr" in caught.value.where
    assert rank_processes() == []


def test_a_rank_that_does_not_stop_is_gone_before_others_begin(tmp_path, monkeypatch):
    """It is deaf, as in a collective whose partner died: `flows.ranks` waits for `PATIENCE` and 2 s."""
    deaf = tmp_path / "deaf"
    deaf.write_text("#!/bin/sh\ntrap '' TERM\nexec sleep 60\n")
    deaf.chmod(0o700)
    monkeypatch.setattr(rank_host.sys, "executable", str(deaf))
    monkeypatch.setattr(rank_host, "PATIENCE", 3.0)
    began = time.monotonic()
    told = rank_host.run({"rank": 0}, lambda event: None, lambda: False)
    assert told["code"] == -signal.SIGKILL
    assert time.monotonic() - began < rank_host.PATIENCE + 2


class Queue:
    """A client whose workers come one at each look, up to a number."""

    def __init__(self, most: int) -> None:
        self.most, self.there = most, 0

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        self.there = min(self.there + 1, self.most)
        return {"workers": [f"tcp://10.0.0.1:{k}" for k in range(self.there)]}


@pytest.mark.parametrize(
    ("come", "asked", "most", "begins_with", "notes"),
    [
        (3, 3, 8, 3, ["waiting"]),
        (2, 3, 8, 2, ["waiting", "2 of 3 workers that came"]),
        (4, 4, 2, 2, ["waiting", "2 workers stay idle"]),
        (1, 1, 8, 1, []),
    ],
)
def test_workers_that_were_asked_for_are_waited_for(come, asked, most, begins_with, notes, monkeypatch):
    """A job queue brings them one by one: a training must not go on with the first alone to its end."""
    monkeypatch.setattr("flows.ranks._LOOK", 0.01)
    monkeypatch.setattr("flows.ranks._ARRIVAL", 0.3)
    begun: list[int] = []

    def attempt(_: RankedTraining, workers: list[str]) -> dict[str, Any]:
        begun.append(len(workers))
        return {"stopped": False, "in_time": False}

    monkeypatch.setattr(RankedTraining, "_attempt", attempt)
    said: list[str] = []
    ranked = RankedTraining(
        client=Queue(come),
        job={},
        most=most,
        max_restarts=0,
        on_progress=print,
        on_restart=print,
        asked=asked,
        on_note=said.append,
    )
    assert ranked.run() == {"stopped": False}
    assert begun == [begins_with]
    assert len(said) == len(notes)
    assert all(part in text for part, text in zip(notes, said))


def test_deaths_without_end_are_given_up(client, plan, tmp_path):
    def strike(_: dict[str, Any]) -> None:
        for rank in rank_processes()[:1]:
            rank.kill()

    with pytest.raises(RankDiedError, match="signal 9"):
        train_on(client, tmp_path / "model", plan, 1, hook=strike, max_restarts=1)
