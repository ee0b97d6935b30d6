"""How fast this device computes a network: measured once, then remembered; to predict time, never to decide.

~/.cache/unet-flows/speed.json    one number per device, network, type and version of torch
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

from unet_core.architecture import UNetSpec
from unet_core.devices import device_name
from unet_core.geometry import Box, Shape
from unet_core.inference import Predictor
from unet_core.model import UNet
from unet_core.normalisation import Scale
from unet_core.tiling import Tile

_MACS = 2e10  # of the pass that is measured: about half a second of two cores


def macs_per_second(spec: UNetSpec, *, device: str, dtype: str) -> float:
    """Multiply-accumulates per second, as `UNetSpec.macs` of the padded network counts them."""
    known = _remembered()
    name = _name(spec, device, dtype)
    if name not in known:
        known[name] = _measured(spec, device, dtype)
        _remember(known)
    return known[name]


def _measured(spec: UNetSpec, device: str, dtype: str) -> float:
    flat = (1,) * (3 - spec.ndim)
    scale = Scale((0.0,) * spec.in_channels, (1.0,) * spec.in_channels)
    predictor = Predictor(UNet(spec), scale=scale, device=device, dtype=dtype)
    write = _small(spec)
    read = spec.read_shape(write)
    box = Box.of_shape((*flat, *write))
    data = np.zeros((spec.in_channels, *flat, *read), np.float32)
    seconds = []
    for _ in range(2):  # the first loads the kernels
        began = time.perf_counter()
        predictor.start(data, Tile(read=box, write=box, keep=box)).take()
        seconds.append(time.perf_counter() - began)
    return spec.padded().macs(read) / min(seconds)


def _small(spec: UNetSpec) -> Shape:
    write = spec.legal_write_shape(spec.read_shape((256,) * 2 if spec.ndim == 2 else (64,) * 3))
    while spec.padded().macs(spec.read_shape(write)) > _MACS and write != spec.stride:
        write = tuple(max(n // 2 // s * s, s) for n, s in zip(write, spec.stride))
    return write


def _name(spec: UNetSpec, device: str, dtype: str) -> str:
    network = json.dumps({**spec.to_dict(), "dropout": 0}, sort_keys=True)
    digest = hashlib.sha256(network.encode()).hexdigest()[:16]
    return f"{device_name(device)}, {dtype}, torch {torch.__version__}, network {digest}"


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unet-flows" / "speed.json"


def _remembered() -> dict[str, float]:
    with suppress(OSError, ValueError):
        known = json.loads(_file().read_text())
        if isinstance(known, dict):
            return {k: v for k, v in known.items() if isinstance(v, float) and v > 0}
    return {}


def _remember(known: dict[str, float]) -> None:
    """Written aside and renamed. Where it cannot be, the next plan measures again."""
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        aside = _file().with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(known, indent=1))
        aside.replace(_file())
