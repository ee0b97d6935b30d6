"""What the ledger costs per block, against the bare file operations that it cannot do without.

    python tests/benchmarks/ledger.py [--blocks 1000000] [--loose 20000]

`commit` is compared with creating empty files, reading loose entries with listing a folder, reading a
sealed ledger with reading a file of its size. Loose entries never number more than `SEAL_EVERY`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flows.blocks import SEAL_EVERY
from unet_core.ledger import Ledger, hold
from unet_core.volumes import Store


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def create_files(folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        os.close(os.open(folder / f"{index}", os.O_CREAT | os.O_WRONLY))


def list_files(folder: Path) -> int:
    return sum(1 for _ in os.scandir(folder))


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--blocks", type=int, default=10**6)
    parser.add_argument("--loose", type=int, default=SEAL_EVERY)
    options = parser.parse_args()
    blocks, loose = options.blocks, options.loose
    with tempfile.TemporaryDirectory() as folder, hold(Store(f"{folder}/out")) as lease:
        ledger = Ledger(lease.store, "predict", blocks, lease.epoch)

        def commit() -> None:
            for index in range(loose):
                ledger.commit(index, f"{index:016x}")

        times = {"commit": seconds(commit)}
        bare = Path(folder) / "bare"
        limits = {"commit": seconds(lambda: create_files(bare, loose))}
        times["read loose"] = seconds(ledger.read)
        limits["read loose"] = seconds(lambda: list_files(bare))
        times["seal"] = seconds(ledger.seal)
        sealed = list((Path(folder) / "out/.unet-flows/ledger/predict/sealed").rglob("*-*"))
        tracemalloc.start()
        entries = ledger.read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        times["read sealed"] = seconds(ledger.read)
        limits["read sealed"] = seconds(lambda: [path.read_bytes() for path in sealed])
        digest = ledger.part(0).digest[:loose]
        if entries.done.sum() != loose or not (digest == np.arange(digest.size)).all():
            raise SystemExit("the ledger did not keep what was committed")
        document = {
            "blocks": blocks,
            "loose_entries": loose,
            "microseconds_per_commit": round(1e6 * times["commit"] / loose, 1),
            "bare_file_creation_over_commit": round(limits["commit"] / times["commit"], 3),
            "seconds_to_read_loose_entries": round(times["read loose"], 3),
            "bare_listing_over_reading": round(limits["read loose"] / times["read loose"], 3),
            "seconds_to_seal": round(times["seal"], 3),
            "seconds_to_read_sealed": round(times["read sealed"], 4),
            "bare_file_read_over_reading": round(limits["read sealed"] / times["read sealed"], 3),
            "sealed_bytes": sum(path.stat().st_size for path in sealed),
            "peak_bytes_reading": peak,
            "bytes_per_block_in_memory": round(peak / blocks, 1),
        }
    print(json.dumps(document, indent=1))
    for name, value in document.items():
        print(f"{name.replace('_', ' '):<36} {value:>14,}")


if __name__ == "__main__":
    main()
