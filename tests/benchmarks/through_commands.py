"""What the learning benchmarks share: data into Zarr, parameters into TOML, and the commands themselves."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

DATA = Path(__file__).parents[3] / "shared" / "data"
COMMAND = (sys.executable, "-c", "from flows.cli import main; main()")


def command(*arguments: object) -> dict[str, Any]:
    """Run `unet-flows` to its end; its JSON document."""
    words = [str(argument) for argument in arguments]
    done = subprocess.run([*COMMAND, *words, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"unet-flows {' '.join(words)} ended with {done.returncode}: {done.stdout}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def write_volume(path: Path, data: NDArray[Any], *, voxel_size: tuple[float, ...] | None = None) -> Path:
    """(z, y, x) as an OME-Zarr volume by `ingest`, if it is not there yet."""
    if not path.exists():
        source = path.with_suffix(".npz")
        source.parent.mkdir(parents=True, exist_ok=True)
        np.savez(source, data=data)
        size = ("--voxel-size", ",".join(map(str, voxel_size))) if voxel_size else ()
        kind = "labels" if "truth" in path.name else "image"
        command("ingest", source, "--axes", "zyx", "--as", kind, "--to", path, *size)
        source.unlink()
    return path


def write_config(
    path: Path,
    values: Mapping[str, Any],
    *,
    augment: Mapping[str, Any],
    pairs: Iterable[Mapping[str, str]],
    validation: Iterable[Mapping[str, str]],
) -> Path:
    """A training file."""

    def lines(table: Mapping[str, Any]) -> list[str]:
        return [f"{key} = {json.dumps(value)}" for key, value in table.items()]

    text = [*lines(values), "[augment]", *lines(augment)]
    for name, entries in (("pairs", pairs), ("validation", validation)):
        for entry in entries:
            text += [f"[[{name}]]", *lines(entry)]
    path.write_text("\n".join(text) + "\n")
    return path


def labels_of(path: Path, level: str = "0") -> zarr.Array[Any]:
    """An array of an output, as plain zarr-python opens it."""
    return zarr.open_array(path, path=level, mode="r")


def options(description: str | None, tasks: Iterable[str]) -> argparse.Namespace:
    """TASKs by name, --folder, and --set KEY=VALUE as `changes`."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=layout)
    parser.add_argument("tasks", nargs="*", default=list(tasks), metavar="TASK", help=", ".join(tasks))
    parser.add_argument("--folder", type=Path, help="where models and volumes go; a temporary one otherwise")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    given = parser.parse_args()
    given.changes = {k: json.loads(v) for k, _, v in (entry.partition("=") for entry in given.set)}
    return given
