"""What a container or batch job allows is what plans count on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from unet_core import machine

GIB = 2**30
LARGE = 2**60  # what version 1 says where there is no limit, or nearly
Groups = Callable[[str, dict[str, dict[str, str | int]]], None]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """A machine's groups: what /proc/self/cgroup says, and files in folders."""
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OF_PROCESS", tmp_path / "self")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("psutil.virtual_memory", lambda: _Memory(total=512 * GIB, available=400 * GIB))

    def write(of_process: str, folders: dict[str, dict[str, str | int]]) -> None:
        (tmp_path / "self").write_text(of_process)
        for folder, files in folders.items():
            (tmp_path / "cgroup" / folder).mkdir(parents=True, exist_ok=True)
            for name, value in files.items():
                (tmp_path / "cgroup" / folder / name).write_text(f"{value}\n")

    return write


class _Memory:
    def __init__(self, *, total: int, available: int) -> None:
        self.total, self.available = total, available


def test_without_groups_it_is_the_machine(groups: Groups) -> None:
    assert (machine.cores(), machine.total_memory(), machine.free_memory()) == (64, 512 * GIB, 400 * GIB)


def test_a_batch_job_has_what_its_groups_allow(groups: Groups) -> None:
    """Version 2, as SLURM nests them: the job limits memory, the step nothing."""
    job = "system.slice/slurmstepd.scope/job_7"
    groups(
        f"0::/{job}/step_batch/user/task_0\n",
        {
            f"{job}/step_batch/user/task_0": {
                "memory.max": "max",
                "memory.current": GIB,
                "cpu.max": "max 100000",
            },
            job: {
                "memory.max": 32 * GIB,
                "memory.current": 10 * GIB,
                "memory.stat": f"anon {4 * GIB}\nactive_file {GIB}\ninactive_file {3 * GIB}\nslab 5",
                "cpu.max": "350000 100000",
            },
            ".": {"memory.max": "max", "memory.current": 90 * GIB},
        },
    )
    assert machine.total_memory() == 32 * GIB
    assert machine.free_memory() == 26 * GIB, "files that are cached are given up"
    assert machine.cores() == 4


def test_a_container_sees_its_group_as_the_root(groups: Groups) -> None:
    groups(
        "0::/kubepods/pod1/of-the-host\n",
        {".": {"memory.max": 8 * GIB, "memory.current": 9 * GIB, "cpu.max": "50000 100000"}},
    )
    assert machine.total_memory() == 8 * GIB
    assert machine.free_memory() == 0
    assert machine.cores() == 1


def test_version_1(groups: Groups) -> None:
    groups(
        "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/\n0::/\n",
        {
            "memory/job": {
                "memory.limit_in_bytes": 16 * GIB,
                "memory.usage_in_bytes": 6 * GIB,
                "memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}",
            },
            "memory": {"memory.limit_in_bytes": LARGE, "memory.usage_in_bytes": 100 * GIB},
            "cpu,cpuacct/job": {"cpu.cfs_quota_us": 800000, "cpu.cfs_period_us": 100000},
            "cpu,cpuacct": {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000},
        },
    )
    assert machine.total_memory() == 16 * GIB
    assert machine.free_memory() == 12 * GIB
    assert machine.cores() == 8


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "2048"}, 2 * GIB),
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "3"}, 3 * GIB),
        ({"SLURM_MEM_PER_NODE": "0"}, 512 * GIB),
        ({"SLURM_MEM_PER_CPU": "1024"}, 512 * GIB),
    ],
)
def test_what_slurm_promised_counts_where_nothing_enforces_it(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert machine.total_memory() == expected
    assert machine.free_memory() == min(expected, 400 * GIB)


def test_this_machine() -> None:
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert 0 < machine.free_memory() <= machine.total_memory() <= psutil.virtual_memory().total
