"""A small segmentation of many blocks, as real processes that tests can kill, and what it must end as."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from pipeline import save_random_model

from unet_core.architecture import UNetSpec
from unet_core.ledger import hold, read_record, set_status
from unet_core.verification import RunOnDisk
from unet_core.volumes import Store

COMMAND = (sys.executable, "-c", "from flows.cli import main; main()")
PLANES, SIDE = 30, 256


# Seconds: beside other work a run can take minutes to begin.
PATIENCE = 900.0
# How often each is struck: what makes the run begin again takes longest.
_VICTIMS = {"worker": 8, "nanny": 4, "scheduler": 3, "flow": 3, "all": 2}


def make_inputs(root: Path) -> None:
    """A stack of planes and a 2D model: a plane is a block, of some 200 ms."""
    image = np.random.default_rng(0).integers(0, 255, (PLANES, SIDE, SIDE), dtype="u1")
    zarr.create_array(root / "volume.zarr", data=image, chunks=(1, 128, 128), dimension_names=list("zyx"))
    save_random_model(root / "model", UNetSpec.build(ndim=2, depth=2, base=16, classes=3), seed=1)


def segment_command(root: Path, to: Path | str, *options: str) -> list[str]:
    volume, model = str(root / "volume.zarr"), str(root / "model")
    return [
        *COMMAND,
        *("segment", volume, "--model", model, "--to", str(to), "--tile", "1,128,128", "--json"),
        *options,
    ]


@dataclass
class Running:
    """A command under way."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, command: list[str], **environment: str) -> Running:
        return cls(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "UNET_FLOWS_HEARTBEAT_SECONDS": "0.5", **environment},
                start_new_session=True,
            )
        )

    @property
    def supervisor(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def find(self, *words: str) -> list[psutil.Process]:
        """Descendants whose command line holds all the words."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in self.supervisor.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if all(word in " ".join(child.cmdline()) for word in words):
                        found.append(child)
        return found

    def workers(self) -> list[psutil.Process]:
        """Dask's local workers: what the flow's process has spawned, but for the tracker of resources."""
        return self.find("multiprocessing.spawn", "--multiprocessing-fork")

    def flow(self) -> psutil.Process | None:
        """The process that the flow runs in: the supervisor's one child."""
        with suppress(psutil.NoSuchProcess):
            return next(iter(self.supervisor.children()), None)
        return None

    def end(self, timeout: float = 300) -> tuple[int, dict[str, Any], str]:
        """Wait for the end: exit code, the document on stdout, what stderr says."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise
        return self.process.returncode, json.loads(out) if out.strip() else {}, err

    def kill_all(self) -> None:
        """Everything at once, as when a machine loses power."""
        family = [self.supervisor, *self.supervisor.children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.communicate()


def done(to: Path, stage: str = "predict") -> int:
    """Blocks of a run under way, or ended, that are done."""
    store = Store(to)
    if read_record(store) is None:
        return 0
    return RunOnDisk.open(store).ledger(stage).read().done.sum()


def wait_until(condition: Any, what: str, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(0.02)


def wait_for_blocks(running: Running, to: Path, count: int, stage: str = "predict") -> None:
    """Until so many blocks are done, or the run has ended."""
    wait_until(lambda: done(to, stage) >= count or running.process.poll() is not None, f"{count} blocks")


def voxels(output: Path) -> dict[str, bytes]:
    """Every stored object that holds voxels."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and "/c/" in str(path) and "#" not in path.name
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The database that the first server of this process made for itself, as it was before anything was in it.
_made: list[Path] = []


def prefect_home(folder: Path) -> Path:
    """A home for a Prefect server; to make its database anew would take longer than all else it does."""
    folder.mkdir(exist_ok=True)
    if _made:
        shutil.copyfile(_made[0], folder / "prefect.db")
    return folder


def _keep_database(home: Path) -> None:
    copy = home / "made.db"
    with closing(sqlite3.connect(home / "prefect.db")) as there, closing(sqlite3.connect(copy)) as here:
        there.backup(here)
    _made.append(copy)


@contextmanager
def prefect_server(home: Path) -> Iterator[dict[str, str]]:
    """A Prefect server for several commands, as an environment for them: it starts only once."""
    port = free_port()
    environment = {"PREFECT_HOME": str(prefect_home(home)), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def answers() -> bool:
        with suppress(OSError):
            urllib.request.urlopen(f"{environment['PREFECT_API_URL']}/health", timeout=5).close()
            return True
        return False

    try:
        wait_until(answers, "Prefect's server")
        if not _made:
            _keep_database(home)
        yield environment
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass
class Cluster:
    """A Dask scheduler and workers with nannies, each a process of its own on loopback."""

    port: int
    scheduler: subprocess.Popen[bytes] | None = None
    nannies: list[subprocess.Popen[bytes]] | None = None

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def keep(self, workers: int) -> None:
        """Start whatever of it is not running."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            self.scheduler = self._start(
                "distributed.cli.dask_scheduler", "--host", self.address, "--dashboard-address", "127.0.0.1:0"
            )
        self.nannies = [n for n in self.nannies or [] if n.poll() is None]
        while len(self.nannies) < workers:
            self.nannies.append(
                self._start(
                    *("distributed.cli.dask_worker", self.address, "--nthreads", "1", "--nworkers", "1"),
                    *("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--death-timeout", "60"),
                )
            )

    def workers(self) -> list[psutil.Process]:
        found = []
        for nanny in self.nannies or []:
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(nanny.pid).children()
                found += [c for c in children if "multiprocessing-fork" in " ".join(c.cmdline())]
        return found

    def stop(self) -> None:
        for process in [*(self.nannies or []), *([self.scheduler] if self.scheduler else [])]:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @staticmethod
    def _start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
        }
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


@contextmanager
def dask_cluster(root: Path, *, workers: int) -> Iterator[tuple[Cluster, Path]]:
    """A cluster, and the file for --cluster."""
    cluster = Cluster(free_port())
    file = root / f"cluster-{cluster.port}.toml"
    file.write_text(f'kind = "address"\naddress = "{cluster.address}"\nworkers = {workers}\n')
    try:
        cluster.keep(workers)
        yield cluster, file
    finally:
        cluster.stop()


def soak(
    root: Path,
    to: Path,
    kills: int,
    seed: int,
    environment: dict[str, str],
    on_kill: Callable[[dict[str, int], int], None] | None = None,
    seconds: float = float("inf"),
) -> dict[str, Any]:
    """Kill random processes of a run, beginning it again whenever it ended, until it is complete.

    Returns how many kills hit what, and how often the run was begun; after `seconds` it kills no more. Blocks
    that were done stay done: AssertionError otherwise.
    """
    chance = random.Random(seed)
    hits: dict[str, int] = {}
    begun = 0
    until = time.monotonic() + seconds
    running: Running | None = None

    def stop() -> None:
        if running is not None and running.process.poll() is None:
            running.kill_all()

    with dask_cluster(root, workers=2) as (cluster, file), ExitStack() as stack:
        stack.callback(stop)
        before = 0
        while True:
            cluster.keep(2)
            if running is None:
                running = Running.start(segment_command(root, to, "--cluster", str(file)), **environment)
                begun += 1
            left = kills - sum(hits.values()) if time.monotonic() < until else 0
            if left > 0:
                if chance.random() < 0.8:  # else it is struck while it begins
                    _wait_for_progress(running, cluster, to, before)
                time.sleep(chance.uniform(0.0, 2.0))
                (victim,) = chance.choices(list(_VICTIMS), list(_VICTIMS.values()))
                if not _strike(victim, running, cluster, chance):
                    continue
                hits[victim] = hits.get(victim, 0) + 1
                now = done(to)
                if now < before:
                    raise AssertionError(f"{before - now} blocks lost after {hits}")
                before = now
                if on_kill is not None:
                    on_kill(hits, now)
            if running.process.poll() is not None or left <= 0:
                code, document, errors = running.end(timeout=PATIENCE)
                running = None
                if code == 0 and left <= 0:
                    return {"kills": hits, "begun": begun, "last": document}
                if code == 0:
                    # Complete too soon: one more run over what verification would open again.
                    reopen_some(to, chance)
                    before = done(to)
                elif code not in (1, -9, 137):
                    raise AssertionError(f"exit {code}: {document} {errors}")


def _wait_for_progress(running: Running, cluster: Cluster, to: Path, before: int) -> None:
    """Until a block more is done, or the run has ended; workers that die of a lost scheduler are replaced."""

    def progress() -> bool:
        cluster.keep(2)
        return done(to) > before or running.process.poll() is not None

    wait_until(progress, f"more than {before} blocks", PATIENCE)


def reopen_some(to: Path, chance: random.Random) -> None:
    """Take some blocks of every stage out of the ledgers again, to have work to disturb."""
    run = RunOnDisk.open(Store(to))
    with hold(run.store) as lease:
        for stage in run.stages:
            without = [index for index in range(stage.count) if chance.random() < 0.7]
            run.ledger(stage.name, epoch=lease.epoch).seal(without=without)
        set_status(run.store, "partial")


def _strike(victim: str, running: Running, cluster: Cluster, chance: random.Random) -> bool:
    """Kill one victim, or everything; whether there was one."""
    if victim == "all":
        with suppress(psutil.NoSuchProcess):
            running.kill_all()
        cluster.stop()
        return True
    processes: list[Any] = []
    if victim == "worker":
        processes = cluster.workers()
    elif victim == "nanny":
        processes = [psutil.Process(n.pid) for n in cluster.nannies or [] if n.poll() is None]
    elif victim == "scheduler" and cluster.scheduler is not None and cluster.scheduler.poll() is None:
        processes = [psutil.Process(cluster.scheduler.pid)]
    elif victim == "flow":
        flow = running.flow()
        processes = [flow] if flow else []
    if not processes:
        return False
    with suppress(psutil.NoSuchProcess):
        chance.choice(processes).kill()
        return True
    return False
