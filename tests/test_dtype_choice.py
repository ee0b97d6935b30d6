"""`--dtype auto` follows from the device and the data: never from how busy the machine is."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unet_core import budget, inference
from unet_core.architecture import UNetSpec
from unet_core.geometry import Box
from unet_core.segmentation import blocks
from unet_core.tiling import Footprint, Tile, Tiling


@pytest.mark.parametrize("agree", [True, False])
@pytest.mark.parametrize("slow", ["float32", "bfloat16"])
def test_no_clock_decides(monkeypatch: pytest.MonkeyPatch, agree: bool, slow: str) -> None:
    clock = itertools.count()

    class Predictor:
        def __init__(self, network: Any, *, scale: Any, device: str, dtype: str) -> None:
            self.dtype = dtype

        def logits(self, data: Any, tile: Any) -> Any:
            for _ in range(1000 if self.dtype == slow else 1):
                next(clock)
            return self.dtype

        def classes(self, dtype: str) -> Any:
            return np.full((1, 10, 10), dtype != "float32" and not agree)

    monkeypatch.setattr(inference, "Predictor", Predictor)
    monkeypatch.setattr(inference, "fast_dtype", lambda device: "bfloat16")
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    nothing: Any = SimpleNamespace()
    chosen = inference.choose_dtype(nothing, np.zeros(1), nothing, scale=nothing, device="cpu")
    assert chosen == ("bfloat16" if agree else "float32")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "spec", [UNetSpec.build(ndim=3, depth=2, base=16), UNetSpec.build(ndim=2, depth=3, base=32)]
)
def test_float32_is_tried_in_the_memory_that_was_counted_for_16_bits(
    monkeypatch: pytest.MonkeyPatch, spec: UNetSpec, device: str
) -> None:
    tile = (1, 256, 256) if spec.ndim == 2 else (64, 64, 128)
    tiling = Tiling(
        volume=tile,
        roi=Box.of_shape(tile),
        footprint=Footprint.of(spec),
        tile=tile,
        chunk=tile,
        shard=tile,
        block=tile,
    )
    tried: list[Tile] = []

    def choose(network: Any, data: Any, tile: Tile, **_: Any) -> str:
        assert data == tile.read
        tried.append(tile)
        return "bfloat16"

    monkeypatch.setattr(inference, "choose_dtype", choose)
    monkeypatch.setattr(blocks, "fast_dtype", lambda device: "bfloat16")
    plan: Any = SimpleNamespace(device=device, tiling=tiling)
    volume: Any = SimpleNamespace(read=lambda box: box)
    network: Any = SimpleNamespace(spec=spec)
    scale: Any = None
    assert blocks._choose_dtype(plan, volume, network, scale) == "bfloat16"
    (part,) = tried
    if device == "cpu":
        assert part.write == tiling.roi, "all that there is to compare"
        return
    flat = 3 - spec.ndim
    counted = budget.forward_bytes(spec, tiling.read_shape[flat:], "bfloat16", device)
    assert budget.forward_bytes(spec, part.read.shape[flat:], "float32", device) <= counted
    assert part.read == part.write.grow(tiling.footprint.lower, tiling.footprint.upper)
    assert tiling.roi.contains(part.write)
    assert part.write.size >= tiling.roi.size / 8, "no smaller than need be"
