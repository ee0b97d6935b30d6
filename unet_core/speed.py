"""How fast this device computes a network with tiles of several sizes: measured once, then remembered.

    ~/.cache/unet-flows/speed.json    points per device, network, type and version of torch

Remembered, so that the same command chooses the same tile, and gives the same bits, however busy the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from unet_core import budget
from unet_core.architecture import UNetSpec
from unet_core.devices import device_name, release_memory
from unet_core.geometry import Box, Shape, round_up
from unet_core.inference import Predictor
from unet_core.model import UNet
from unet_core.normalisation import Scale
from unet_core.tile_choice import Rates, TileOption, tile_options
from unet_core.tiling import Footprint, Tile

_REGION = (2**14,) * 3  # larger than any tile
_LEAST = 2**26  # bytes of the smallest forward pass that is measured; each of the others takes twice as much
_ROUNDS = 2
_ENOUGH = 2e11  # multiply-accumulates that are measured: a second of two cores
Points = tuple[tuple[int, float], ...]


def rates_of(spec: UNetSpec, *, device: str, dtype: str, memory: int) -> Rates:
    """Rates of tiles of at most `memory` bytes; takes some seconds when they are not known yet."""
    known, name = _remembered(), _key(spec, device, dtype, memory)
    if name not in known:
        known[name] = _measured(spec, device, dtype, _sizes(memory))
        _remember(known)
    return Rates(known[name])


def is_known(spec: UNetSpec, *, device: str, dtype: str, memory: int) -> bool:
    """Whether `rates_of` answers at once."""
    return _key(spec, device, dtype, memory) in _remembered()


def macs_per_second(spec: UNetSpec, *, device: str, dtype: str, memory: int) -> float:
    """The rate of a tile of so many bytes, if rates are known; else that of a small one."""
    known = _remembered()
    name = _name(spec, device, dtype)
    for measured, points in known.items():
        if measured.startswith(name):
            return Rates(points).at(memory)
    known[name] = _measured(spec, device, dtype, [_LEAST])
    _remember(known)
    return Rates(known[name]).at(memory)


def _key(spec: UNetSpec, device: str, dtype: str, memory: int) -> str:
    return f"{_name(spec, device, dtype)}, {_sizes(memory)[-1] >> 20} MiB"


def _sizes(memory: int) -> list[int]:
    # Not up to `memory` itself: on GPUs it is another number each time.
    return [_LEAST << n for n in range(max(1, (memory // _LEAST).bit_length()))]


def _measured(spec: UNetSpec, device: str, dtype: str, sizes: list[int]) -> Points:
    """The best of some rounds over all tiles: other load hits all alike."""
    scale = Scale((0.0,) * spec.in_channels, (1.0,) * spec.in_channels)
    predictor = Predictor(UNet(spec), scale=scale, device=device, dtype=dtype)
    region = Box.of_shape(_REGION)
    best: dict[TileOption, float] = {}
    for size in sizes:
        options = tile_options(spec, _REGION, region, dtype=dtype, device=device, memory=size)
        if options:
            best[options[0]] = 0.0
    if not best:  # not even the smallest fits in what is asked for
        smallest = Footprint.of(spec).stride
        read = spec.read_shape(smallest[3 - spec.ndim :])
        needed = budget.forward_bytes(spec, read, dtype, device)
        best[TileOption(smallest, spec.macs(read), needed)] = 0.0
    rate_of(predictor, min(best, key=lambda option: option.memory).tile)  # loads the kernels
    for _ in range(_ROUNDS):
        for option in best:
            best[option] = max(best[option], rate_of(predictor, option.tile))
    release_memory()  # of the largest tile, which the workers will want
    return tuple(
        (option.memory, rate) for option, rate in sorted(best.items(), key=lambda item: item[0].memory)
    )


def rate_of(predictor: Predictor, tile: Shape) -> float:
    """Multiply-accumulates per second of one pass, or of so much of it as tells: slabs are all alike."""
    spec = predictor.spec
    flat = 3 - spec.ndim
    macs = spec.padded().macs(spec.read_shape(tile[flat:]))
    while macs > _ENOUGH and predictor.device == "cpu" and tile[flat] > spec.stride[0]:
        tile = (*tile[:flat], round_up(tile[flat] // 2, spec.stride[0]), *tile[flat + 1 :])
        macs = spec.padded().macs(spec.read_shape(tile[flat:]))
    box = Box.of_shape(tile)
    data = np.zeros((spec.in_channels, *tile[:flat], *spec.read_shape(tile[flat:])), np.uint8)
    began = time.perf_counter()
    predictor.start(data, Tile(read=box, write=box, keep=box)).take()
    return macs / (time.perf_counter() - began)


def _name(spec: UNetSpec, device: str, dtype: str) -> str:
    network = json.dumps({**spec.to_dict(), "dropout": 0}, sort_keys=True)
    digest = hashlib.sha256(network.encode()).hexdigest()[:16]
    return f"{device_name(device)}, {dtype}, torch {torch.__version__}, in slabs, network {digest}"


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unet-flows" / "speed.json"


def _remembered() -> dict[str, Points]:
    with suppress(OSError, ValueError, TypeError, AttributeError):  # whatever somebody made of the file
        known = json.loads(_file().read_text())
        return {name: tuple((int(m), float(rate)) for m, rate in points) for name, points in known.items()}
    return {}


def _remember(known: dict[str, Points]) -> None:
    """Written aside and renamed. Where it cannot be, the next plan measures again."""
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        aside = _file().with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(known, indent=1))
        aside.replace(_file())
