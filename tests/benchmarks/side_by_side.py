"""What the benchmarks beside other software share: processes of their own, turns, memory, a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def peak_bytes() -> int:
    """Of this process alone: getrusage counts what its parent had when it was forked."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def as_a_worker() -> None:
    """Start this script anew with the environment that workers have: it is read when a process begins."""
    from flows.environment import thread_environment  # which the interpreters of others do not have

    environment = thread_environment(len(os.sched_getaffinity(0)))
    if any(os.environ.get(name) != value for name, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment})


def of_process(python: str, script: str, *arguments: object, environment: dict[str, str]) -> dict[str, Any]:
    """The JSON that a script beside this one prints, run by `python` with this checkout's packages."""
    done = subprocess.run(
        [python, str(HERE / script), *map(str, arguments)],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def in_turns(repeats: int, *works: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """The fastest run of each, by its `seconds`: all take turns, so that other load hits all."""
    runs = [[work() for work in works] for _ in range(repeats)]
    return [min(column, key=lambda run: float(run["seconds"])) for column in zip(*runs)]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Rows with the same keys, as columns."""
    lines = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
