"""A Prefect server, deployments on it and a worker that does their runs, all real and on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import psutil
import yaml
import zarr
from killing import wait_until
from pipeline import save_random_model
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, StateType

from unet_core.architecture import UNetSpec

DEPLOY = Path(__file__).parents[1] / "deploy"
# What takes a server and a worker a minute by default takes them a second.
QUICK = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_PREFETCH_SECONDS": "1",
    "DO_NOT_TRACK": "1",
}
PLANES = 64


def make_inputs(root: Path) -> dict[str, str]:
    """Planes of real FIB-SEM and a random network, as parameters of `segment`: a plane is a block."""
    with h5py.File(Path(__file__).parent / "data" / "fib25" / "fib25_crop.h5") as file:
        image = file["raw"][:PLANES]
    zarr.create_array(root / "fib25.zarr", data=image, chunks=(1, 96, 96), dimension_names=list("zyx"))
    save_random_model(root / "model", UNetSpec.build(ndim=2, depth=2, base=24, classes=3), seed=1)
    return {"volume": str(root / "fib25.zarr"), "model": str(root / "model"), "tile": "1,96,96"}


def edited(folder: Path, change: Callable[[dict[str, dict[str, Any]]], None]) -> str:
    """A copy of deploy/ in which `change` was done to the deployments, by name; its prefect.yaml."""
    for name in ("automations", "work-pools"):
        shutil.copytree(DEPLOY / name, folder / name)
    values = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())
    change({d["name"]: d for d in values["deployments"]})
    (folder / "prefect.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return str(folder / "prefect.yaml")


def prefect(environment: dict[str, str], *arguments: str) -> str:
    """Prefect's own command; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def on_real_data(root: Path, to: Path, cron: str) -> str:
    """A prefect.yaml with a cron of `segment` on what `make_inputs` makes; `arrived` uses the same model."""
    given = make_inputs(root)

    def change(deployments: dict[str, dict[str, Any]]) -> None:
        deployments["segment"]["parameters"] = {**given, "to": str(to)}
        deployments["segment"]["schedules"] = [{"slug": "nightly", "cron": cron, "active": False}]
        deployments["arrived"]["parameters"] = {"model": given["model"], "tile": given["tile"]}

    return edited(root / "deploy", change)


@dataclass
class Worker:
    """A Prefect worker of kind process."""

    process: subprocess.Popen[bytes]

    def runs(self) -> list[psutil.Process]:
        """The processes of runs under way, Dask's workers among them."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def stop(self) -> None:
        """As an init system does it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@contextmanager
def worker(environment: dict[str, str], folder: Path, *, pool: str = "unet-flows") -> Iterator[Worker]:
    """It writes `folder`/worker.log; killed in the end, with its runs, where the test did not stop it."""
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"],
            env={**os.environ, **environment},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # On SIGTERM it sends itself SIGINT, which a shell's background jobs are born without.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    running = Worker(process)
    try:
        yield running
    finally:
        left = running.runs()
        for one in (*left, process):
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                one.kill()
        process.wait()


def gone(processes: list[psutil.Process], seconds: float = 60) -> bool:
    """Whether these processes end in time; a zombie has ended."""
    wait_until(
        lambda: all(not p.is_running() or _is_zombie(p) for p in processes), "processes to end", seconds
    )
    return True


def _is_zombie(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def emit_arrival(environment: dict[str, str], volume: str, to: str) -> None:
    """As the comment in deploy/prefect.yaml has it."""
    name, payload = "unet-flows.volume", json.dumps({"volume": volume, "to": to})
    prefect(
        environment, "event", "emit", f"{name}.arrived", "--resource-id", f"{name}.new", "--payload", payload
    )


def runs_of(client: SyncPrefectClient, deployment: str, kind: StateType) -> list[FlowRun]:
    """Those in a state of this kind; of scheduled ones, those whose time has come."""
    identity = client.read_deployment_by_name(deployment).id
    found = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[identity])))
    now = datetime.now(UTC)
    return [
        run
        for run in found
        if run.state_type == kind and (kind != StateType.SCHEDULED or run.next_scheduled_start_time < now)
    ]


def eventually(condition: Callable[[], Any], what: str) -> None:
    """Ask a server now and then: asked all the time, it would do nothing else on two cores."""

    def asked() -> Any:
        time.sleep(0.5)
        return condition()

    wait_until(asked, what)


def switch(client: SyncPrefectClient, deployment: str, *, active: bool) -> None:
    """A schedule on or off; Prefect takes back what it had planned for later."""
    there = client.read_deployment_by_name(deployment)
    for schedule in there.schedules:
        client.update_deployment_schedule(there.id, schedule.id, active=active)
