"""The doctor finds what is wrong, says what to do, and survives whatever it meets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
from killing import prefect_home
from rich.console import Console

from flows import doctor
from flows.doctor import Finding, ProbeError, examine, findings_table, without_credentials


def found(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_this_machine_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything for real: Prefect's ephemeral API and a Dask worker start and answer."""
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home(tmp_path / "prefect")))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    findings = examine()
    assert [f for f in findings if not f.ok] == []
    assert all(not f.fix for f in findings)
    names = [f.name for f in findings]
    assert names[:2] == ["python", "packages"]
    assert set(names[2:]) == {
        "torch",
        "cores and memory",
        "disk",
        "temporary folder",
        "zarr",
        "prefect",
        "dask",
    }
    assert "EPHEMERAL" in found(findings, "prefect").detail.upper()
    assert "crc32c" in found(findings, "zarr").detail
    assert json.loads(json.dumps([f.to_dict() for f in findings]))[0]["ok"] is True


def test_nothing_heavy_is_imported_beforehand() -> None:
    code = (
        "import sys, flows.doctor; print([m for m in ('torch', 'zarr', 'numpy', 'dask', 'distributed',"
        " 'prefect', 'rich') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize(
    ("package", "version", "reason"),
    [
        ("fastapi", "0.156.0", "crash Prefect 3.8 at import"),
        ("sqlalchemy", "2.1.0", "silently stops"),
        ("prefect", "3.9.0", "3.8 only"),
        ("zarr", "2.18.0", "needed >=3.1"),
    ],
)
def test_broken_versions_are_named(
    package: str, version: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version if name == package else real(name))
    findings = list(doctor._packages())
    wrong = found(findings, f"package {package}")
    assert not wrong.ok
    assert version in wrong.detail
    assert reason in wrong.detail
    assert f"pip install '{package}" in wrong.fix
    assert [f.name for f in findings if not f.ok] == [wrong.name]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "h5py":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "not installed" in found(list(doctor._packages()), "package h5py").detail

    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    (finding,) = doctor._packages()
    assert not finding.ok
    assert "pip install" in finding.fix


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("PREFECT_API_URL", f"http://someone:secret@127.0.0.1:{port}/api")
    finding = doctor._finding("prefect", doctor._prefect, "-")
    assert not finding.ok
    assert f"127.0.0.1:{port}" in finding.fix
    assert "unset PREFECT_API_URL" in finding.fix
    assert "secret" not in finding.detail + finding.fix


def test_a_prefect_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    finding = doctor._finding("prefect", doctor._prefect, "-")
    assert not finding.ok
    assert "PREFECT_HOME" in finding.fix


def test_probes_that_hang_are_ended_with_all_they_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
        started.append(popen([*command[:2], code], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    begin = time.monotonic()
    with pytest.raises(ProbeError, match="no answer after 1 s"):
        doctor._probe("probe_dask", timeout=1.0, fix=None)
    assert time.monotonic() - begin < 20
    # A killed process is there until the kernel has taken it apart: its death is certain, its moment is not.
    deadline = time.monotonic() + 20
    while (left := _alive_in_group(started[0].pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _alive_in_group(group: int) -> list[psutil.Process]:
    alive = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def test_probes_that_fail_tell_their_last_line() -> None:
    with pytest.raises(ProbeError, match="no attribute 'no_such_probe'") as caught:
        doctor._probe("no_such_probe", timeout=60, fix="do this")
    assert caught.value.fix == "do this"


@pytest.mark.parametrize(
    ("limit", "check", "expected"),
    [("LEAST_MEMORY", doctor._memory, "a worker needs"), ("LEAST_DISK", doctor._disk, "results want")],
)
def test_small_machines_are_told(
    limit: str, check: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, limit, 2**60)
    finding = doctor._finding("x", check, "get more")
    assert not finding.ok
    assert expected in finding.detail
    assert finding.fix == "get more"


def test_other_troubles_are_findings_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert not doctor._finding("temporary folder", doctor._temporary, "set TMPDIR").ok
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = doctor._finding("torch", doctor._torch, "reinstall")
    assert "ModuleNotFoundError" in finding.detail
    monkeypatch.setattr(sys, "version_info", (3, 10))
    assert not doctor._finding("python", doctor._python, "3.11").ok


def test_credentials_are_not_shown() -> None:
    assert without_credentials("https://me:secret@host:4200/api") == "https://host:4200/api"
    assert without_credentials("http://127.0.0.1:4200/api") == "http://127.0.0.1:4200/api"


def test_the_table_says_what_to_do() -> None:
    console = Console(width=90)
    with console.capture() as captured:
        console.print(
            findings_table(
                [
                    Finding(name="dask", ok=True, detail="answers"),
                    Finding(name="disk", ok=False, detail="[full]", fix="free some"),
                ]
            )
        )
    text = captured.get()
    assert "FAILS" in text
    assert "[full]" in text, "what looks like rich markup is text"
    assert "to do: free some" in text
