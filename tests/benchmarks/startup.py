"""From the shell to the first block: with Prefect's ephemeral server, with one that runs; what it is made of.

    python tests/benchmarks/startup.py [--repeat 2]

A tiny stack of planes. Seen from outside: the output's lease (the cluster was had first), its run record
(intensities measured, a worker probed), the first block's entry, the end of the command.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from killing import Running, make_inputs, prefect_server, segment_command

RECORDS = ".unet-flows"
SEEN = {
    "cluster": lambda to: any((to / RECORDS / "lease").glob("*")),
    "prepared": lambda to: (to / RECORDS / "run.json").exists(),
    "first block": lambda to: any((to / RECORDS / "ledger/predict/blocks").glob("*/*/*")),
}


def imports() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import flows.segment"], check=True)
    return time.perf_counter() - began


def command(root: Path, to: Path, environment: dict[str, str]) -> dict[str, float]:
    """Seconds after which each was seen."""
    began = time.perf_counter()
    running = Running.start(segment_command(root, to), **environment)
    seen: dict[str, float] = {}
    while len(seen) < len(SEEN) and running.process.poll() is None:
        for name, there in SEEN.items():
            if name not in seen and there(to):
                seen[name] = round(time.perf_counter() - began, 2)
        time.sleep(0.02)
    code, document, errors = running.end()
    if code != 0:
        raise SystemExit(f"the command failed: {document} {errors}")
    return {**seen, "end": round(time.perf_counter() - began, 2)}


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_inputs(root)
        document: dict[str, Any] = {"cpus": os.cpu_count(), "load": os.getloadavg()[0]}
        document["imports"] = [round(imports(), 2) for _ in range(options.repeat)]
        ephemeral = {"PREFECT_HOME": str(root / "home"), "PREFECT_API_URL": ""}
        document["ephemeral server"] = [
            command(root, root / f"ephemeral-{k}.zarr", ephemeral) for k in range(options.repeat)
        ]
        with prefect_server(root / "server") as environment:
            document["running server"] = [
                command(root, root / f"server-{k}.zarr", environment) for k in range(options.repeat)
            ]
    print(json.dumps(document, indent=1))
    for name in ("ephemeral server", "running server"):
        steps = {step: statistics.median(run[step] for run in document[name]) for step in document[name][0]}
        print(name, *(f"{step} {seconds:.1f} s" for step, seconds in steps.items()), sep="  ")


if __name__ == "__main__":
    main()
