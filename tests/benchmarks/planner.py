"""Whether the tile that a plan chooses is the fastest: voxels per second of it and of others, in one run.

    python tests/benchmarks/planner.py [--memory-gib 3] [--repeat 2] [--dtype bfloat16]

Three networks: 2D of base 64 and depth 4, 3D of base 16 and depth 3, the same with two anisotropic levels,
on a region too large for any tile. What the choice rests on is measured first, as a run does it. Tried are
the choice, the eight that come next by the model, and five smaller ones spread over the memory. Of large
tiles only some slabs are computed, which are all alike. Rounds over all tiles are repeated, and each tile's
best time counts: other load hits all alike.
"""

from __future__ import annotations

import argparse
import json
from math import prod

import torch
from rich.console import Console
from rich.table import Table
from side_by_side import as_a_worker

from unet_core.architecture import UNetSpec
from unet_core.devices import DTYPES, device_name
from unet_core.geometry import Box
from unet_core.inference import Predictor
from unet_core.model import UNet
from unet_core.normalisation import Scale
from unet_core.speed import rate_of, rates_of
from unet_core.tile_choice import TileOption, spread, tile_options

REGION = (10_000, 10_000, 10_000)
NETWORKS = {
    "2D, base 64, depth 4": UNetSpec.build(ndim=2, depth=4, base=64),
    "3D, base 16, depth 3": UNetSpec.build(ndim=3, depth=3, base=16),
    "3D, base 16, depth 3, 2 levels anisotropic": UNetSpec.build(
        ndim=3, depth=3, base=16, anisotropic_levels=2
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory-gib", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    options = parser.parse_args()
    as_a_worker()
    results = {name: sweep(spec, options) for name, spec in NETWORKS.items()}
    document = {"device": device_name("cpu"), "torch": torch.__version__, "networks": results}
    print(json.dumps(document, indent=1))
    for name, rows in results.items():
        show(name, rows)


def sweep(spec: UNetSpec, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row per tile, the choice first."""
    memory = int(options.memory_gib * 2**30)
    region = Box.of_shape(REGION)
    rates = rates_of(spec, device="cpu", dtype=options.dtype, memory=memory)
    every = tile_options(spec, REGION, region, dtype=options.dtype, device="cpu", memory=memory, rates=rates)
    tried = list(dict.fromkeys([*every[:9], *spread(every, 6)]))
    scale = Scale((0.0,), (1.0,))
    predictor = Predictor(UNet(spec), scale=scale, device="cpu", dtype=options.dtype)
    found = dict.fromkeys(tried, 0.0)
    for _ in range(options.repeat):
        for option in tried:
            found[option] = max(found[option], rate_of(predictor, option.tile))
    return [row(spec, option, found[option]) for option in tried]


def row(spec: UNetSpec, option: TileOption, rate: float) -> dict[str, object]:
    macs = spec.padded().macs(spec.read_shape(option.tile[3 - spec.ndim :]))
    return {
        "tile": list(option.tile),
        "gib": round(option.memory / 2**30, 2),
        "useful": round(spec.macs_per_voxel() * prod(REGION) / option.macs, 3),
        "gflop_per_second": round(2 * rate / 1e9),
        "voxels_per_second": round(prod(option.tile) * rate / macs),
    }


def show(name: str, rows: list[dict[str, object]]) -> None:
    speeds = [float(str(row["voxels_per_second"])) for row in rows]
    table = Table(title=f"{name}: the choice (first) at {speeds[0] / max(speeds):.3f} of the best (aim 0.95)")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for entry in rows[:1] + sorted(rows[1:], key=lambda r: -float(str(r["voxels_per_second"])))[:8]:
        table.add_row(*(str(value) for value in entry.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
