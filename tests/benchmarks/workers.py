"""What a second worker brings: the blocks of one volume by one worker of one thread, and by two.

    python tests/benchmarks/workers.py [--size 320] [--tile 160] [--base 16] [--depth 3] [--repeat 2]

Workers, futures and outputs are those of a run (`flows.blocks`); started, and their network loaded, they are
before the clock is. Aim: two are at least 1.8 times as fast as one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from predicting import build
from side_by_side import print_table

from flows import worker
from flows.cluster import open_client
from flows.config import Local
from unet_core.architecture import UNetSpec
from unet_core.devices import fast_dtype
from unet_core.ledger import hold, read_record
from unet_core.segmentation import SegmentRequest, plan_segmentation, resolve, start
from unet_core.volumes import Store


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--tile", type=int, default=160)
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--dtype", default=fast_dtype("cpu") or "float32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = UNetSpec.build(ndim=3, depth=options.depth, base=options.base)
        volume, model = build(folder, spec, options.size)
        seconds = {1: float("inf"), 2: float("inf")}
        for _ in range(options.repeat):
            for count in seconds:
                seconds[count] = min(seconds[count], timed(folder, volume, model, count, options))
    rows = [
        {"workers": count, "seconds": s, "mvoxel_s": options.size**3 / s / 1e6, "ratio": seconds[1] / s}
        for count, s in seconds.items()
    ]
    print(json.dumps({"size": options.size, "tile": options.tile, "dtype": options.dtype, "rows": rows}))
    print_table(rows)


def timed(folder: Path, volume: str, model: str, workers: int, options: argparse.Namespace) -> float:
    to = str(folder / "out.zarr")
    shutil.rmtree(to, ignore_errors=True)
    tile = (options.tile,) * 3
    request = SegmentRequest(
        volume=volume, model=model, to=to, tile=tile, dtype=options.dtype, normalisation="model"
    )
    planned = plan_segmentation(request)
    plan = resolve(planned.plan, "model")
    start(planned, plan)
    with hold(Store(to)) as lease, open_client(Local(workers=workers, threads=1)) as client:
        run = (to, read_record(Store(to)).fingerprint, lease.epoch, model)
        blocks = range(plan.stages[0].count)
        names = list(client.scheduler_info()["workers"])
        # The first of each loads the network.
        firsts = [
            client.submit(worker.predict, *run, i, workers=[n], pure=False) for i, n in enumerate(names)
        ]
        client.gather(firsts)
        began = time.perf_counter()
        client.gather([client.submit(worker.predict, *run, index, pure=False) for index in blocks])
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
