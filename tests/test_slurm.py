"""A real SLURM: runs over its jobs, which are cancelled, run out of time, wait, fail and are refused.

`bash tests/slurm.sh` runs all of it. Within the suite what takes minutes is left out, and all of it where no
SLURM can be had: it needs root, and Debian's packages.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from killing import (
    COMMAND,
    Running,
    make_inputs,
    prefect_server,
    segment_command,
    voxels,
    wait_for_blocks,
    wait_until,
)
from pipeline import save_random_model

from flows.cluster import open_client
from flows.config.cluster import Local, Slurm
from unet_core.architecture import UNetSpec
from unet_core.errors import InputError, RunError
from unet_core.training import Checkpoints
from unet_core.volumes import Store

pytestmark = pytest.mark.timeout(600)
_SCRIPT = Path(__file__).with_name("slurm_cluster.sh")
in_full = pytest.mark.skipif("SLURM_TESTS" not in os.environ, reason="takes minutes: bash tests/slurm.sh")


@pytest.fixture(scope="module", autouse=True)
def _slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """SLURM on this machine, of one node."""
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons need root")
    folder = tmp_path_factory.mktemp("slurm")
    # It ends with this process: `read` waits for the end of what stands on its input.
    script = f'source "{_SCRIPT}" "{folder}" >&2 || exit 1; echo up; read -r; slurm_stop'
    shell = subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with shell, pytest.MonkeyPatch.context() as patch:
        assert shell.stdout is not None
        if shell.stdout.readline() != "up\n":
            pytest.skip("SLURM cannot be started here; its words stand on stderr")
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as environment:
        yield environment


def table(root: Path, **values: object) -> Slurm:
    basic = {"kind": "slurm", "cores": 1, "memory": "1500MB", "walltime": "00:10:00", "workers": 2}
    return Slurm.model_validate({**basic, "shared": str(root / "shared"), **values})


def file_of(cluster: Slurm, root: Path, name: str = "cluster.toml") -> str:
    """The table as people write it."""
    values = cluster.model_dump(exclude_defaults=True)
    (root / name).write_text("[cluster]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()))
    return str(root / name)


def jobs(state: str = "RUNNING") -> list[str]:
    command = ["squeue", "--noheader", "--format=%i", f"--states={state}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def state_of(job: str) -> str:
    told = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True)
    return next(word for word in told.stdout.split() if word.startswith("JobState="))


def completed(running: Running) -> dict[str, object]:
    code, document, errors = running.end(500)
    assert (code, document["status"]) == (0, "complete"), errors
    return document


def test_a_segmentation_loses_a_job_and_ends_as_one_on_this_machine(
    root: Path, server: dict[str, str]
) -> None:
    here, there = root / "here.zarr", root / "there.zarr"
    cluster = file_of(table(root), root)
    running = Running.start(segment_command(root, there, "--cluster", cluster), **server)
    wait_for_blocks(running, there, 2)
    before = jobs()
    subprocess.run(["scancel", before[0]], check=True)
    wait_until(lambda: set(jobs()) - set(before) or running.process.poll() is not None, "another job")
    document = completed(running)
    assert document["stages"]["predict"]["failed"] == []
    completed(Running.start(segment_command(root, here), **server))
    assert voxels(there) == voxels(here)
    wait_until(lambda: not jobs(), "the jobs to end with the run", 30)
    assert [*(root / "shared").iterdir()] == [root / "shared" / "logs"], "certificates are gone"


def test_what_is_between_the_jobs_is_encrypted_and_for_those_with_a_key(root: Path) -> None:
    from distributed import Client

    with open_client(table(root, workers=1, environment={"SAID": "so"})) as client:
        address = client.scheduler.address
        assert address.startswith("tls://")
        assert all(worker.startswith("tls://") for worker in client.scheduler_info()["workers"])
        keys = [*(root / "shared").glob("tls-*")]
        assert [oct(file.stat().st_mode & 0o777) for file in keys[0].iterdir()] == ["0o600"] * 3
        assert client.submit(os.getenv, "SAID").result() == "so"
        assert client.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        assert float(client.submit(os.getenv, "UNET_FLOWS_DEADLINE").result()) > time.time()
        for stranger in (address, address.replace("tls://", "tcp://")):
            with pytest.raises((OSError, TimeoutError, TypeError)):
                Client(stranger, timeout="2s")


def test_slurm_says_why_it_refuses(root: Path) -> None:
    with (
        pytest.raises(InputError, match=r"(?s)SLURM refuses.*[Ii]nvalid partition.*nope"),
        open_client(table(root, queue="nope")),
    ):
        pass


def test_slurm_says_why_nobody_comes(root: Path) -> None:
    subprocess.run(["sbatch", "--exclusive", "--output=/dev/null", "--wrap=sleep 60"], check=True)
    try:
        with (
            pytest.raises(RunError, match=r"(?s)within 0.05 minutes.*PENDING \((Resources|None|Priority)\)"),
            open_client(table(root, patience=0.05)),
        ):
            pass
    finally:
        subprocess.run(["scancel", f"--user={os.environ.get('USER', 'root')}"], check=True)
    wait_until(lambda: not jobs(), "the queue to empty", 60)


def test_jobs_that_end_at_once_are_not_asked_for_again_and_again(root: Path) -> None:
    with (
        pytest.raises(RunError, match=r"(?s)3 jobs ended.*ExitCode=3:0.*module: not here"),
        open_client(table(root, workers=3, prologue=["echo 'module: not here' >&2", "exit 3"])),
    ):
        pass


@in_full
def test_every_stage_runs_over_slurm_and_cpu_stages_have_jobs_of_their_own(
    root: Path, server: dict[str, str]
) -> None:
    here, there = root / "objects-here.zarr", root / "objects-there.zarr"
    path = file_of(table(root), root, "two.toml")
    with Path(path).open("a") as file:
        file.write(
            "[cluster.cpu]\n" + Path(file_of(table(root, minimum=0), root)).read_text().partition("\n")[2]
        )
    options = ("--instances", "components", "--foreground", "1,2")
    completed(Running.start(segment_command(root, there, "--cluster", path, *options), **server))
    completed(Running.start(segment_command(root, here, *options), **server))
    assert voxels(there) == voxels(here)


@in_full
def test_a_walltime_of_a_minute_is_enough_for_a_run_of_two(root: Path, server: dict[str, str]) -> None:
    image = np.random.default_rng(1).integers(0, 255, (120, 512, 512), dtype="u1")
    (root / "long").mkdir()
    zarr.create_array(
        root / "long" / "volume.zarr", data=image, chunks=(1, 128, 128), dimension_names=list("zyx")
    )
    save_random_model(root / "long" / "model", UNetSpec.build(ndim=2, depth=3, base=32, classes=3), seed=1)
    here, there = root / "long-here.zarr", root / "long-there.zarr"
    cluster = file_of(table(root, walltime="00:01:00"), root, "short.toml")
    began = time.time()
    running = Running.start(
        segment_command(root / "long", there, "--cluster", cluster, "--dtype", "float32"), **server
    )
    seen: set[str] = set()
    while running.process.poll() is None:
        seen |= set(jobs())
        time.sleep(0.5)
    completed(running)
    assert time.time() - began > 60, "nothing is shown by a run that ends before its walltime"
    assert len(seen) > 2
    assert {state_of(job) for job in seen} <= {"JobState=COMPLETED", "JobState=CANCELLED"}, (
        "none ran out of time"
    )
    completed(Running.start(segment_command(root / "long", here, "--dtype", "float32"), **server))
    assert voxels(there) == voxels(here)


@in_full
def test_two_ranks_train_over_slurm_through_a_cancelled_job(root: Path, server: dict[str, str]) -> None:
    image = zarr.open_array(root / "volume.zarr", mode="r")
    truth = {"chunks": (1, 128, 128), "dimension_names": list("zyx")}
    zarr.create_array(root / "truth.zarr", data=(image[:] > 127).astype("u1"), **truth)

    def begin(to: Path, *cluster: str) -> Running:
        command = [
            *(*COMMAND, "train", "--image", str(root / "volume.zarr"), "--labels", str(root / "truth.zarr")),
            *("--to", str(to), "--ndim", "2", "--depth", "1", "--base", "4", "--patch", "32,32"),
            *("--region", "0:20,0:256,0:256", "--validation-region", "20:30,0:256,0:256", "--batch", "2"),
            *("--steps", "300", "--checkpoint-every", "20", "--validate-every", "100", "--json", *cluster),
        ]
        return Running.start(command, **server)

    completed(begin(root / "here", "--workers", "2"))
    running = begin(root / "there", "--cluster", file_of(table(root), root))
    checkpoints = Checkpoints(Store(root / "there"))
    wait_until(lambda: checkpoints.latest() is not None or running.process.poll() is not None, "a checkpoint")
    subprocess.run(["scancel", jobs()[0]], check=True)
    completed(running)
    weights = [(root / name / "weights.safetensors").read_bytes() for name in ("here", "there")]
    assert weights[0] == weights[1]


@in_full
def test_a_run_that_is_stopped_leaves_no_job_and_goes_on(root: Path, server: dict[str, str]) -> None:
    to = root / "stopped.zarr"
    command = segment_command(root, to, "--cluster", file_of(table(root), root))
    running = Running.start(command, **server)
    wait_for_blocks(running, to, 2)
    running.process.send_signal(signal.SIGTERM)
    assert running.end()[0] != 0
    wait_until(lambda: not jobs(), "the jobs to end with the run", 30)
    document = completed(Running.start(command, **server))
    assert document["stages"]["predict"]["skipped"] > 0


def test_a_cluster_of_this_machine_has_nothing_to_do_with_slurm() -> None:
    with open_client(Local(workers=1)) as client:
        assert client.submit(os.getenv, "UNET_FLOWS_DEADLINE").result() is None
