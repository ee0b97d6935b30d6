"""What this machine can and cannot do, found out by doing it: `unet-flows doctor`.

Prefect and Dask are started for real, in subprocesses that a timeout ends, so that a broken install
cannot hang the doctor or leave servers behind. Heavy packages are imported inside functions only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30
LEAST_MEMORY, LEAST_DISK = 2 * GIB, 1 * GIB
# A first start migrates Prefect's database: 10 to 30 s were measured on two busy cores.
PREFECT_TIMEOUT, DASK_TIMEOUT = 150.0, 90.0
_REINSTALL = "in a fresh virtual environment: pip install -c deploy/constraints.txt -e ."
# Why a version matters that nothing in the error it causes would tell.
_REASONS = {
    "fastapi": "later ones crash Prefect 3.8 at import",
    "sqlalchemy": "2.1 silently stops Prefect 3.8's scheduler: schedules get no runs",
    "prefect": "flows, deployments and their pins were tested with 3.8 only",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at. `fix` says what to do and is empty where nothing is wrong."""

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ProbeError(Exception):
    """A probe that did not work: what was seen, and what to do about it where that is known."""

    def __init__(self, detail: str, *, fix: str | None = None) -> None:
        super().__init__(detail)
        self.fix = fix


def examine() -> list[Finding]:
    """Look at everything; takes 10 to 40 s, most of it Prefect's start. Never raises."""
    checks: list[tuple[str, Callable[[], str], str]] = [
        ("python", _python, "use Python 3.11 or newer: python3.11 -m venv .venv"),
        ("torch", _torch, _REINSTALL),
        ("cores and memory", _memory, "ask for more memory, or use a smaller --tile"),
        ("disk", _disk, "free space here, or write elsewhere with --to"),
        ("temporary folder", _temporary, "set TMPDIR to a folder that you may write to"),
        ("zarr", _zarr, _REINSTALL),
        ("prefect", _prefect, "read the message; `prefect config view` shows the settings in force"),
        ("dask", _dask, "read the message; a firewall or proxy must leave 127.0.0.1 alone"),
    ]
    with ThreadPoolExecutor() as pool:
        # Prefect and Dask wait for subprocesses: everything else is done meanwhile.
        found = list(pool.map(lambda check: _finding(*check), checks))
    return [found[0], *_packages(), *found[1:]]


def findings_table(findings: Sequence[Finding]) -> Table:
    """All findings with what to do, for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for heading in ("", "checked", "found"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        # The word carries the meaning, the colour only helps.
        mark = Text("ok", style="green") if finding.ok else Text("FAILS", style="bold red")
        found = Text(finding.detail)
        if finding.fix:
            found.append(f"\nto do: {finding.fix}", style="bold")
        table.add_row(mark, finding.name, found)
    return table


def _finding(name: str, check: Callable[[], str], fix: str) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=check())
    except ProbeError as error:
        return Finding(name=name, ok=False, detail=str(error), fix=error.fix or fix)
    except Exception as error:
        # A doctor that dies of the disease helps nobody: whatever broke is the finding.
        return Finding(name=name, ok=False, detail=f"{type(error).__name__}: {error}", fix=fix)


def _python() -> str:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info < (3, 11):  # noqa: UP036 - installs are not always made with pip
        raise ProbeError(found)
    return found


def _packages() -> Iterator[Finding]:
    """Our own requirements against what is installed; wrong ones one by one, the others in one line."""
    from packaging.requirements import Requirement

    try:
        stated = metadata.requires("unet-flows") or []
    except metadata.PackageNotFoundError:
        yield Finding(name="packages", ok=False, detail="unet-flows is not installed", fix=_REINSTALL)
        return
    fine = []
    for requirement in map(Requirement, stated):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        if version != "not installed" and requirement.specifier.contains(version, prereleases=True):
            fine.append(f"{requirement.name} {version}")
            continue
        reason = _REASONS.get(requirement.name)
        yield Finding(
            name=f"package {requirement.name}",
            ok=False,
            detail=f"{version}; needed {requirement.specifier}" + (f": {reason}" if reason else ""),
            fix=f"pip install '{requirement.name}{requirement.specifier}', or {_REINSTALL}",
        )
    yield Finding(name="packages", ok=True, detail=", ".join(fine))


def _torch() -> str:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    found = [f"torch {torch.__version__}; CPU with {capability}"]
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    for device in devices:
        # A convolution, because a device that is listed may still lack kernels for this build.
        ones = torch.ones(1, 1, 4, 4, 4, device=device)
        result = torch.nn.functional.conv3d(ones, ones[..., :3, :3, :3])
        if result.flatten().tolist() != [27.0] * 8:
            raise ProbeError(f"a convolution on {device} gives wrong numbers")
        if device != "cpu":
            properties = torch.cuda.get_device_properties(device)
            found.append(f"{device} is {properties.name} with {properties.total_memory / GIB:.0f} GiB")
    if len(devices) == 1:
        found.append("no GPU" if torch.version.cuda is None else "no GPU that this build of torch can use")
    return "; ".join(found)


def _memory() -> str:
    from unet_core import machine

    available = machine.free_memory()
    memory = f"{available / GIB:.1f} of {machine.total_memory() / GIB:.1f} GiB of memory available"
    found = f"{machine.cores()} cores; {memory}"
    if available < LEAST_MEMORY:
        raise ProbeError(f"{found}; a worker needs {LEAST_MEMORY / GIB:.0f} GiB")
    return found


def _disk() -> str:
    import shutil

    here = Path.cwd()
    free = shutil.disk_usage(here).free
    found = f"{free / GIB:.1f} GiB free in {here}"
    if free < LEAST_DISK:
        raise ProbeError(f"{found}; results want {LEAST_DISK / GIB:.0f} GiB or more")
    return found if os.access(here, os.W_OK) else f"{found}, which you may not write to"


def _temporary() -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "probe").write_bytes(b"probe")
        return str(Path(folder).parent)


def _zarr() -> str:
    """Write, read and damage a volume: what comes back must be equal, or an error."""
    import numpy as np
    import zarr

    from unet_core.geometry import Box
    from unet_core.metadata import PyramidLevel
    from unet_core.volumes import Store, Volume, create_multiscale, open_for_writing, write_box

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder).child("probe.zarr")
        shape = (4, 16, 16)
        create_multiscale(
            store,
            kind="labels",
            axes="zyx",
            leading=(),
            levels=[PyramidLevel(0, shape, (1, 1, 1))],
            dtype=np.dtype(np.uint8),
            chunk=shape,
            shard=shape,
            voxel_size=(1.0,) * 3,
            origin=(0.0,) * 3,
            unit=None,
            name="probe",
        )
        written = np.arange(4 * 16 * 16, dtype=np.uint8).reshape(shape)
        write_box(open_for_writing(store, "0"), Box.of_shape(shape), written)
        volume = Volume.open(store.url)
        if not np.array_equal(volume.read(volume.box)[0], written):
            raise ProbeError("what was written does not come back")
        shard = next(f for f in (store.path / "0" / "c").rglob("*") if f.is_file())
        data = bytearray(shard.read_bytes())
        data[8] ^= 1  # inside the only chunk: the shard's index lies at its end
        shard.write_bytes(data)
        try:
            Volume.open(store.url).read(volume.box)
        except Exception:
            return f"zarr {zarr.__version__}: round trip equal, one flipped bit noticed by crc32c"
        raise ProbeError("a flipped bit in a chunk was not noticed: the crc32c codec does not work")


def _prefect() -> str:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        _writable_home()
    fix = (
        f"start a server there (prefect server start), or unset PREFECT_API_URL: {without_credentials(url)}"
        if url
        else None
    )
    return _probe("probe_prefect", timeout=PREFECT_TIMEOUT, fix=fix)


def _writable_home() -> None:
    # Prefect waits two minutes for a database that it cannot create: ask first.
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ProbeError(
            f"Prefect's folder {home} cannot be written: {error.strerror}",
            fix="set PREFECT_HOME to a folder that you may write to, on a local disk",
        ) from None


def _dask() -> str:
    return _probe("probe_dask", timeout=DASK_TIMEOUT, fix=None)


def probe_prefect() -> str:
    """In a subprocess: whichever Prefect API the settings name, started if it is the ephemeral one."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        version = client.api_version()
        client.read_flows(limit=1)  # the database answers, too
        kind, url = client.server_type.value, without_credentials(str(client.api_url))
    return f"API {version} answers: {kind} at {url}"


def probe_dask() -> str:
    """In a subprocess: a cluster of one worker process on loopback, as flows start it."""
    from flows.cluster import open_client
    from flows.config import Local

    with open_client(Local(workers=1)) as client:
        worker = client.submit(os.getpid).result(timeout=60)
        if worker == os.getpid():
            raise RuntimeError("the worker is not a process of its own")
        return f"a worker process answers through {client.scheduler.address}"


def without_credentials(url: str) -> str:
    """A URL that may be shown."""
    split = urlsplit(url)
    return split._replace(netloc=split.netloc.rpartition("@")[2]).geturl()


def _probe(name: str, *, timeout: float, fix: str | None) -> str:
    """Run one of this module's functions in a new session, which a timeout ends with all it started."""
    code = f"import json, flows.doctor as d; print(json.dumps(d.{name}()))"
    environment = {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONWARNINGS": "ignore",
    }
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise ProbeError(f"no answer after {timeout:.0f} s", fix=fix) from None
        finally:
            # The session may hold a server whose parent died; where all went well nobody is left.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        if process.returncode or not output.strip():
            raise ProbeError(lines[-1] if lines else f"ended with code {process.returncode}", fix=fix)
    return str(json.loads(output.splitlines()[-1]))
