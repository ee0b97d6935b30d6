"""Processes really killed, disks really full: nothing is lost, the final bytes are an undisturbed run's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr
from killing import (
    COMMAND,
    PLANES,
    Running,
    dask_cluster,
    done,
    make_inputs,
    prefect_home,
    segment_command,
    soak,
    voxels,
    wait_for_blocks,
    wait_until,
)
from skimage import measure

from flows.inspection import status, verify
from unet_core.ledger import hold
from unet_core.volumes import Store

pytestmark = pytest.mark.timeout(600)
BLOCKS = PLANES


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def server(prefect_api: dict[str, str]) -> dict[str, str]:
    return prefect_api


@pytest.fixture(scope="module")
def reference(root: Path, server: dict[str, str]) -> dict[str, bytes]:
    """The stored voxels of a run that nobody disturbed."""
    code, document, errors = begin(root, root / "reference.zarr", server).end()
    assert (code, document["status"]) == (0, "complete"), errors
    assert document["stages"]["predict"]["done"] == BLOCKS
    return voxels(root / "reference.zarr")


def begin(root: Path, to: Path, environment: dict[str, str], *options: str) -> Running:
    return Running.start(segment_command(root, to, *options), **environment)


def goes_on(root: Path, to: Path, environment: dict[str, str], *options: str) -> dict[str, Any]:
    """The same command again, until it is complete."""
    code, document, errors = begin(root, to, environment, *options).end()
    assert (code, document["status"]) == (0, "complete"), errors
    return document


def test_one_run_killed_in_every_way(
    root: Path, server: dict[str, str], reference: dict[str, bytes], tmp_path: Path
) -> None:
    """A worker, the flow's process, SIGTERM, Ctrl-C; each time it goes on. Everything at once: see below."""
    to = tmp_path / "labels.zarr"

    running = begin(root, to, server, "--workers", "2")
    wait_for_blocks(running, to, 2)
    running.workers()[0].kill()
    wait_for_blocks(running, to, done(to) + 4)
    assert running.process.poll() is None, "the run goes on with a new worker"
    flow = running.flow()
    assert flow is not None
    flow.kill()
    code, _, _ = running.end()
    assert code == 137
    before = done(to)
    assert before >= 6
    there = status(str(to))
    assert (there["status"], there["held_by"]) == ("partial", None), "its process is gone"

    with hold(Store(to), every=0.5):  # another run, alive
        code, document, errors = begin(root, to, server).end()
    assert (code, document["status"]) == (2, "failed")
    assert "another run is at work on this output" in errors

    for number in (signal.SIGTERM, signal.SIGINT):
        running = begin(root, to, server, "--workers", "2")
        wait_for_blocks(running, to, before + 3)
        family = [running.supervisor, *running.supervisor.children(recursive=True)]
        running.process.send_signal(number)
        code, document, errors = running.end()
        ended = -number if number == signal.SIGINT else 130  # a shell says 130 for both
        assert (code, document["status"]) == (ended, "interrupted")
        assert "goes on where it stopped" in errors
        assert "Traceback" not in errors
        _, alive = psutil.wait_procs(family, timeout=10)  # a killed process takes a moment to be gone
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], "orphans"
        there = status(str(to))
        assert (there["status"], there["held_by"]) == ("partial", None)
        assert done(to) >= before + 3
        before = done(to)

    assert before < BLOCKS
    document = goes_on(root, to, server)
    assert document["stages"]["predict"]["skipped"] == before, "what was done is not done again"
    assert voxels(to) == reference
    assert verify(str(to)).sound


@pytest.mark.unattended
def test_a_nanny_and_then_the_scheduler_are_killed(
    root: Path, server: dict[str, str], reference: dict[str, bytes], tmp_path: Path
) -> None:
    to = tmp_path / "labels.zarr"
    with dask_cluster(tmp_path, workers=2) as (cluster, file):
        running = begin(root, to, server, "--cluster", str(file))
        wait_for_blocks(running, to, 2)
        assert cluster.nannies is not None
        cluster.nannies[0].kill()
        wait_for_blocks(running, to, done(to) + 3)
        assert running.process.poll() is None, "the other worker goes on"
        assert cluster.scheduler is not None
        cluster.scheduler.kill()
        code, document, errors = running.end()
        assert (code, document.get("status")) == (1, "partial"), errors
        assert "scheduler went away" in errors
        before = done(to)
        cluster.stop()
        cluster.keep(1)
        document = goes_on(root, to, server, "--cluster", str(file))
    assert document["stages"]["predict"]["skipped"] == before
    assert voxels(to) == reference


def test_an_ingest_is_killed(server: dict[str, str], tmp_path: Path) -> None:
    """Everything at once, between the slabs of many time points; the mechanism is a segmentation's."""
    movie = np.random.default_rng(0).integers(0, 255, (300, 4, 150, 140), dtype="u1")
    np.savez(tmp_path / "movie.npz", movie=movie)
    to = tmp_path / "movie.zarr"
    command = [*COMMAND, "ingest", str(tmp_path / "movie.npz"), "--to", str(to), "--axes", "tzyx", "--json"]
    running = Running.start(command, **server)
    wait_for_blocks(running, to, 10, stage="copy")
    running.kill_all()
    before = done(to, "copy")
    assert 10 <= before < 300
    code, document, errors = Running.start(command, **server).end()
    assert (code, document["status"]) == (0, "complete"), errors
    assert document["stages"]["copy"]["skipped"] == before
    np.testing.assert_array_equal(zarr.open_array(to / "0", mode="r")[:], movie)
    assert verify(str(to)).sound


@pytest.mark.unattended
def test_prefects_server_is_killed(root: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    """The embedded one: the run goes on to its end, and says that Prefect was not told."""
    to = tmp_path / "labels.zarr"
    # Each of the calls that fail would be tried twice more, seconds apart.
    environment = {"PREFECT_HOME": str(prefect_home(tmp_path / "prefect")), "PREFECT_API_URL": ""}
    environment["PREFECT_CLIENT_MAX_RETRIES"] = "0"
    running = begin(root, to, environment)
    wait_for_blocks(running, to, 3)
    (uvicorn, *_) = running.find("uvicorn")
    uvicorn.kill()
    code, document, errors = running.end(300)
    assert (code, document["status"]) == (0, "complete"), errors
    assert "Prefect's server went away" in errors
    assert document["stages"]["predict"]["done"] == BLOCKS
    assert voxels(to) == reference


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def test_the_disk_gets_full_and_then_turns_read_only(
    root: Path, server: dict[str, str], reference: dict[str, bytes], small_disk: Path
) -> None:
    to = small_disk / "labels.zarr"
    running = begin(root, to, server)
    wait_for_blocks(running, to, 3)
    with suppress(OSError), (small_disk / "ballast").open("wb") as ballast:
        while True:
            ballast.write(bytes(2**20))
            ballast.flush()
    code, document, errors = running.end()
    assert (code, document["status"]) == (1, "partial"), errors
    assert "the disk is full" in errors
    assert document["stages"]["predict"]["failed"] == [], "it is no block's fault"
    before = done(to)
    assert 3 <= before < BLOCKS
    (small_disk / "ballast").unlink()

    running = begin(root, to, server)
    wait_for_blocks(running, to, before + 3)
    wait_until(lambda: remount(small_disk, "ro") == 0 or running.process.poll() is not None, "read-only")
    code, document, errors = running.end()
    assert (code, document["status"]) == (1, "partial"), errors
    assert "the file system is read-only" in errors
    assert document["stages"]["predict"]["skipped"] == before
    before = done(to)
    remount(small_disk, "rw")
    document = goes_on(root, to, server)
    assert document["stages"]["predict"]["skipped"] == before
    assert voxels(to) == reference


def remount(mount: Path, mode: str) -> int:
    return subprocess.run(
        ["mount", "-o", f"remount,{mode}", str(mount)], capture_output=True, check=False
    ).returncode


@pytest.mark.unattended
def test_a_short_soak(
    root: Path, server: dict[str, str], reference: dict[str, bytes], tmp_path: Path
) -> None:
    """The benchmark `soak.py` does this two hundred times."""
    to = tmp_path / "labels.zarr"
    soak(root, to, kills=1, seed=int(os.environ.get("SOAK_SEED", "1")), environment=server)
    assert voxels(to) == reference
    assert verify(str(to)).sound


@pytest.mark.unattended
def test_instances_are_killed(
    root: Path, server: dict[str, str], reference: dict[str, bytes], tmp_path: Path
) -> None:
    """Everything at once, while ids are written: skimage's ids in the end."""
    to = tmp_path / "instances.zarr"
    options = ("--instances", "components", "--connectivity", "full", "--workers", "2")
    running = begin(root, to, server, *options)
    wait_for_blocks(running, to, 1, "relabel")
    assert running.process.poll() is None
    running.kill_all()
    document = goes_on(root, to, server, *options)
    assert document["stages"]["label"]["done"] == 0, "what was done is not done again"
    classes = zarr.open_array(root / "reference.zarr" / "0", mode="r")[:]
    found = zarr.open_array(to / "0", mode="r")[:]
    np.testing.assert_array_equal(found, measure.label(classes, connectivity=3))
    assert found.max() > 1
    assert verify(str(to)).sound
