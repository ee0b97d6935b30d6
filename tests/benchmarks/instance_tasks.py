"""Instances of real data, through the commands: ours beside skimage's watershed on the same probabilities.

    python tests/benchmarks/instance_tasks.py [fib25 gala bbbc050 dsb2018 bbbc039 dic-hela] [--folder FOLDER]

Each set is trained on one part and judged on another: adapted Rand error, variation of information and AP at
IoU 0.5, of `segment --instances watershed`, of `--instances components`, and of yardsticks: skimage's
watershed of the whole, from markers of `peak_local_max` at several distances, within the same foreground.
The best of these, by Rand error on what is judged, is the one to beat. Sets of planes are stacks in which
every plane stands alone. Needs ../shared/data; some ten minutes a set.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.feature import peak_local_max
from skimage.segmentation import watershed
from through_commands import DATA, command, labels_of, options, write_config, write_volume

from unet_core.evaluation import Contingency, InstanceScores

Arrays = tuple[NDArray[Any], NDArray[Any]]
Size = tuple[float, float, float]
MIN_DISTANCES = (5, 10, 20, 40)  # of a yardstick's markers, in voxels
RECIPE: dict[str, Any] = {"steps": 600, "validate_every": 150}


@dataclass(frozen=True)
class Task:
    """Images and ids (z, y, x): to train on, to choose by, to judge.

    `boundary`: the network finds boundaries between objects that fill the volume, not objects on a ground.
    `min_size`: voxels of the smallest object, by whatever method.
    """

    train: Sequence[Arrays]
    validate: Sequence[Arrays]
    judge: Sequence[Arrays]
    voxel_size: Size
    recipe: dict[str, Any]
    planar: bool = False
    boundary: bool = False
    min_size: int = 1


def fib25() -> Task:
    with h5py.File(DATA / "fib25" / "fib25.h5") as file:
        image, ids = file["raw"][:], file["label"][:]
    return Task(
        train=[(image[:100], ids[:100])],
        validate=[(image[100:115], ids[100:115])],
        judge=[(image[120:], ids[120:])],
        voxel_size=(10.0, 10.0, 10.0),
        recipe={"target": "boundary", "ndim": 3, "depth": 2, "patch": "48,48,48"},
        boundary=True,
    )


def gala() -> Task:
    first, second = (np.load(DATA / "fibsem_gala_mini" / f"{name}.npz") for name in ("train", "test"))
    image, ids = first["image"], first["label"]
    return Task(
        train=[(image[:, :, :160], ids[:, :, :160])],
        validate=[(image[:, :, 160:], ids[:, :, 160:])],
        judge=[(second["image"], second["label"])],
        voxel_size=(10.0, 10.0, 10.0),
        recipe={"target": "boundary", "ndim": 3, "depth": 2, "patch": "32,48,48"},
        boundary=True,
    )


def bbbc050() -> Task:
    def embryos(*numbers: int) -> list[Arrays]:
        names = [f"Emb{n:02d}_t{t}" for n in numbers for t in (301, 501)]
        loaded = [np.load(DATA / "bbbc050_mouse_embryo" / f"{name}.npz") for name in names]
        return [(data["image"], data["label"]) for data in loaded]

    return Task(
        train=embryos(*range(1, 8)),
        validate=embryos(8),
        judge=embryos(9, 10, 11),
        voxel_size=(2.18, 1.0, 1.0),
        recipe={"target": "foreground", "ndim": 3, "depth": 3, "anisotropic_levels": 1, "patch": "24,64,64"},
        min_size=100,
    )


def dsb2018() -> Task:
    """The fluorescence images of 256 by 256."""
    with (DATA / "dsb2018" / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["kind"], row["shape"]) == ("fluo", "256x256")]
    data = np.load(DATA / "dsb2018" / "dsb2018.npz")
    images, ids = (np.stack([data[f"{row['key']}/{what}"] for row in rows]) for what in ("image", "label"))
    return _planes(images, ids)


def bbbc039() -> Task:
    data = np.load(DATA / "bbbc039" / "bbbc039.npz")
    return _planes(data["image"], data["label"])


def dic_hela() -> Task:
    data = np.load(DATA / "ctc_dic_c2dh_hela" / "seq01.npz")
    complete = data["gt_complete"]
    ids = np.where(complete[:, None, None], data["gt"], data["st"])
    judged = [k for k in range(10, len(complete)) if complete[k]]
    image = data["image"]
    return Task(
        train=[(image[:9], ids[:9])],
        validate=[(image[9:10], ids[9:10])],
        judge=[(image[judged], ids[judged])],
        voxel_size=(1.0, 1.0, 1.0),
        recipe={"target": "separated", "ndim": 2, "depth": 4, "patch": "256,256", "border_weight": 10.0},
        planar=True,
        min_size=500,
    )


def _planes(image: NDArray[Any], ids: NDArray[Any]) -> Task:
    """Half of the planes to train on, a sixth to choose by, the rest to judge."""
    half, rest = len(image) // 2, len(image) * 2 // 3
    return Task(
        train=[(image[:half], ids[:half])],
        validate=[(image[half:rest], ids[half:rest])],
        judge=[(image[rest:], ids[rest:])],
        voxel_size=(1.0, 1.0, 1.0),
        recipe={"target": "separated", "ndim": 2, "depth": 3, "patch": "192,192", "border_weight": 10.0},
        planar=True,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "fib25": fib25,
    "gala": gala,
    "bbbc050": bbbc050,
    "dsb2018": dsb2018,
    "bbbc039": bbbc039,
    "dic-hela": dic_hela,
}


def yardsticks(p: NDArray[np.float32], task: Task) -> Iterator[tuple[str, NDArray[Any]]]:
    """skimage's watersheds of one whole volume (z, y, x), or of each plane of a stack, by name.

    Markers are peaks of the distance to where p < 0.5, which is flooded; where the network finds boundaries,
    its map is, too, from either's peaks. Within the same voxels as ours: boundaries belong to objects.

    `p`: probability of being inside an object.
    """
    parts = [slice(k, k + 1) for k in range(len(p))] if task.planar else [slice(None)]
    inside = [p[k] >= 0.5 for k in parts]
    distance = [distance_transform_edt(i, sampling=task.voxel_size) for i in inside]
    ways = {"distance": (distance, distance)}
    if task.boundary:
        given = [p[k] for k in parts]
        ways |= {"map": (given, given), "distance, map": (distance, given)}
    for (name, (peaks, flooded)), apart in product(ways.items(), MIN_DISTANCES):
        masks = [np.ones_like(i) for i in inside] if task.boundary else inside
        yield (
            f"{name}, {apart}",
            np.concatenate(
                [_flooded(*each, apart, task.min_size) for each in zip(peaks, flooded, inside, masks)]
            ),
        )


def _flooded(
    peaks: NDArray[Any],
    height: NDArray[Any],
    inside: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    min_distance: int,
    min_size: int,
) -> NDArray[Any]:
    labels = inside.astype(int)
    found = peak_local_max(peaks, min_distance=min_distance, labels=labels, exclude_border=False)
    markers = np.zeros(height.shape, int)
    markers[tuple(found.T)] = np.arange(1, len(found) + 1)
    ids: NDArray[Any] = watershed(-height, markers, mask=mask)
    ids[np.isin(ids, np.flatnonzero(np.bincount(ids.ravel()) < min_size))] = 0
    return ids


def scores_of(truth: NDArray[Any], found: NDArray[Any], task: Task) -> dict[str, float]:
    scores = InstanceScores.of(Contingency.of(truth, found, planar=task.planar)).to_dict()
    (matching,) = (m for m in scores["matching"] if m["threshold"] == 0.5)
    variation = scores["variation_of_information"]
    return {
        "ARE": scores["adapted_rand"]["error"],
        "VOI": variation["split"] + variation["merge"],
        "AP50": matching["average_precision"],
    }


def run(task: Task, folder: Path, changes: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Train, then each method on every volume to be judged; means over these."""

    def volumes(name: str, pairs: Sequence[Arrays]) -> list[dict[str, str]]:
        return [
            {
                "image": str(write_volume(folder / f"{name}-{k}.zarr", image, voxel_size=task.voxel_size)),
                "labels": str(
                    write_volume(folder / f"{name}-truth-{k}.zarr", ids, voxel_size=task.voxel_size)
                ),
            }
            for k, (image, ids) in enumerate(pairs)
        ]

    config = write_config(
        folder / "train.toml",
        {"to": str(folder / "model"), **RECIPE, **task.recipe, **changes},
        augment={},
        pairs=volumes("train", task.train),
        validation=volumes("validate", task.validate),
    )
    command("train", config)
    found: dict[str, list[dict[str, float]]] = {"watershed": [], "components": []}
    ways = ("--min-size", task.min_size, *(("--connect", "2d") if task.planar else ()))
    for pair, (_, truth) in zip(volumes("judge", task.judge), task.judge):
        for method in ("watershed", "components"):
            labels = Path(pair["image"]).with_suffix(f".{method}.zarr")
            common = (pair["image"], "--model", folder / "model", "--to", labels, "--probabilities")
            command("segment", *common, "--instances", method, *ways)
            found[method].append(scores_of(truth, labels_of(labels)[:], task))
        inside = 0 if task.boundary else 1  # the class that objects are made of
        p = labels_of(labels, "probabilities/0")[inside].astype(np.float32) / 255
        for method, ids in yardsticks(p, task):
            found.setdefault(f"skimage: {method}", []).append(scores_of(truth, ids, task))
    return {
        method: {name: fmean(s[name] for s in each) for name in each[0]} for method, each in found.items()
    }


def main() -> None:
    given = options(__doc__, TASKS)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.tasks:
            folder = (given.folder or Path(scratch)).resolve() / name
            folder.mkdir(parents=True, exist_ok=True)
            results[name] = run(TASKS[name](), folder, given.changes)
    print(json.dumps(results, indent=1))
    print(f"\n{'set':<10} {'method':<28} {'ARE':>7} {'VOI':>7} {'AP50':>7}")
    for name, methods in results.items():
        for method, scores in methods.items():
            print(f"{name:<10} {method:<28} " + " ".join(f"{value:7.4f}" for value in scores.values()))


if __name__ == "__main__":
    main()
