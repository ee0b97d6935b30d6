"""Runs whose machine died: marked by the automation, their place given to the next. Waits for minutes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from deployed import (
    PLANES,
    QUICK,
    emit_arrival,
    eventually,
    gone,
    on_real_data,
    runs_of,
    switch,
    worker,
)
from killing import done, prefect_server, wait_until
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType

from flows.deployments import Request, install
from flows.inspection import verify
from unet_core.ledger import read_status
from unet_core.volumes import Store

pytestmark = [pytest.mark.unattended, pytest.mark.timeout(900)]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        with prefect_server(tmp_path_factory.mktemp("prefect")) as environment:
            yield environment


def test_dead_runs_are_marked_and_others_take_their_place(
    server: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker is stopped under one run, everything is killed under another; a third one was complete."""
    to, arrived, complete = (tmp_path / f"{name}.zarr" for name in ("labels", "arrived", "complete"))
    file = on_real_data(tmp_path, to, "* * * * * */5")
    volume = f"{tmp_path}/fib25.zarr"
    with SyncPrefectClient(server["PREFECT_API_URL"]) as client:
        install(Request(server=server["PREFECT_API_URL"], file=file))
        with worker(server, tmp_path) as running:
            emit_arrival(server, volume, str(complete))
            eventually(lambda: runs_of(client, "segment/arrived", StateType.COMPLETED), "a run to complete")
            emit_arrival(server, volume, str(arrived))
            wait_until(lambda: done(arrived) >= 3, "blocks")
            processes = running.runs()
            running.stop()
            assert gone(processes)
        with worker(server, tmp_path) as running:
            switch(client, "segment/segment", active=True)
            wait_until(lambda: done(to) >= 3, "blocks")
            processes = running.runs()
            for process in (psutil.Process(running.process.pid), *processes):
                process.kill()
            began = time.monotonic()
            assert gone(processes)
        before = done(to)
        assert before < PLANES

        with worker(server, tmp_path):
            for deployment in ("segment/arrived", "segment/segment"):
                eventually(
                    lambda d=deployment: runs_of(client, d, StateType.CRASHED),
                    f"the dead run of {deployment}",
                )
            marked = time.monotonic() - began
            eventually(lambda: runs_of(client, "segment/segment", StateType.COMPLETED), "the next run")
            switch(client, "segment/segment", active=False)
        assert len(runs_of(client, "segment/segment", StateType.CANCELLED)) > 3, (
            "until then others were refused"
        )
        assert len(runs_of(client, "segment/arrived", StateType.COMPLETED)) == 1, "what was complete stays so"
    recorded = read_status(Store(to))
    assert recorded is not None
    assert recorded["stages"]["predict"]["skipped"] == before
    assert verify(str(to)).sound
    with capsys.disabled():
        print(f"dead runs were marked after {marked:.0f} s")
