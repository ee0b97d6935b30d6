"""Volumes and rare classes, through the commands: nuclei of embryos, neuron boundaries, synapses.

    python tests/benchmarks/volume_tasks.py [bbbc050 fib25 sstem-vnc] [--folder FOLDER] [--set steps=800]

bbbc050: nuclei, anisotropic; embryos held out, judged again as if by a camera of another offset and gain.
fib25: boundaries between neurons, on planes behind those trained on. sstem-vnc: five classes in planes, one
of them rare (synapses, 0.6 %). IoU per class, from `evaluate`. Needs ../shared/data; some ten minutes a task.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from through_commands import DATA, command, options, write_config, write_volume

RECIPE: dict[str, Any] = {"steps": 800, "validate_every": 200}
Pair = dict[str, str]


def bbbc050(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Embryos 1 to 7 to train on, 8 to choose by, 9 to 11 to judge."""

    def embryo(number: int, time_point: int, *, gain: float = 1.0, offset: float = 0.0) -> Pair:
        name = f"Emb{number:02d}_t{time_point}"
        data = np.load(DATA / "bbbc050_mouse_embryo" / f"{name}.npz")
        size = tuple(float(a) for a in data["anisotropy_zyx"])
        image = (data["image"] * gain + offset).round().clip(0, 65535).astype(np.uint16)
        changed = "" if gain == 1 else "-other-camera"
        return {
            "image": str(write_volume(folder / f"{name}{changed}.zarr", image, voxel_size=size)),
            "labels": str(write_volume(folder / f"{name}-truth.zarr", data["label"], voxel_size=size)),
        }

    times = (301, 501)
    network = {"target": "foreground", "ndim": 3, "depth": 3, "anisotropic_levels": 1, "patch": "24,64,64"}
    train(
        folder,
        {**network, **changes},
        [embryo(n, t) for n in range(1, 8) for t in times],
        [embryo(8, t) for t in times],
    )
    judged = {"as they are": {}, "other camera": {"gain": 1.7, "offset": 900.0}}
    return {
        what: mean_iou(folder, [embryo(n, t, **camera) for n in (9, 10, 11) for t in times], "foreground")
        for what, camera in judged.items()
    }


def fib25(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Planes 0 to 99 to train on, 100 to 114 to choose by, 120 to 169 to judge."""
    with h5py.File(DATA / "fib25" / "fib25.h5") as file:
        image, truth = file["raw"][:], file["label"][:]
    pair = {
        "image": str(write_volume(folder / "image.zarr", image, voxel_size=(10.0, 10.0, 10.0))),
        "labels": str(write_volume(folder / "truth.zarr", truth, voxel_size=(10.0, 10.0, 10.0))),
    }
    rows = f"0:{image.shape[1]},0:{image.shape[2]}"
    train(
        folder,
        {"target": "boundary", "ndim": 3, "depth": 2, "patch": "48,48,48", **changes},
        [{**pair, "region": f"0:100,{rows}"}],
        [{**pair, "region": f"100:115,{rows}"}],
    )
    return mean_iou(folder, [{**pair, "region": f"120:{image.shape[0]},{rows}"}], "boundary")


def sstem_vnc(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Planes 0 to 9 to train on, 10 and 11 to choose by, 12 to 14 to judge."""
    image, truth = (tifffile.imread(DATA / "sstem_vnc" / f"{name}.tif") for name in ("raw", "semantic5"))
    pair = {
        "image": str(write_volume(folder / "image.zarr", image, voxel_size=(50.0, 4.6, 4.6))),
        "labels": str(write_volume(folder / "truth.zarr", truth, voxel_size=(50.0, 4.6, 4.6))),
    }
    rows = f"0:{image.shape[1]},0:{image.shape[2]}"
    network = {"target": "semantic", "classes": 5, "ndim": 2, "depth": 4, "patch": "256,256"}
    train(
        folder,
        {**network, "foreground": 0.8, "class_weights": "balanced", **changes},
        [{**pair, "region": f"0:10,{rows}"}],
        [{**pair, "region": f"10:12,{rows}"}],
    )
    return mean_iou(folder, [{**pair, "region": f"12:15,{rows}"}], None)


def train(folder: Path, recipe: dict[str, Any], pairs: list[Pair], validation: list[Pair]) -> None:
    values = {"to": str(folder / "model"), **RECIPE, **recipe}
    command(
        "train",
        write_config(folder / "train.toml", values, augment={}, pairs=pairs, validation=validation),
    )


def mean_iou(folder: Path, pairs: list[Pair], target: str | None) -> dict[str, float]:
    """IoU per class over all voxels of all pairs together."""
    confusion, names = 0, []
    for pair in pairs:
        labels = folder / f"{Path(pair['image']).stem}-labels.zarr"
        command("segment", pair["image"], "--model", folder / "model", "--to", labels)
        more = {"--target": target, "--roi": pair.get("region")}
        given = [word for option, value in more.items() if value for word in (option, value)]
        found = command("evaluate", labels, pair["labels"], *given)
        confusion, names = confusion + np.array(found["confusion"]), list(found["classes"])
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return {name: round(float(h / u), 4) for name, h, u in zip(names, hits, union)}


TASKS: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "bbbc050": bbbc050,
    "fib25": fib25,
    "sstem-vnc": sstem_vnc,
}


def main() -> None:
    given = options(__doc__, TASKS)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.tasks:
            began = time.monotonic()
            folder = (given.folder or Path(scratch)).resolve() / name
            folder.mkdir(parents=True, exist_ok=True)
            iou = TASKS[name](folder, given.changes)
            results[name] = {"iou": iou, "minutes": round((time.monotonic() - began) / 60, 1)}
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
