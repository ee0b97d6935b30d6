"""`--dtype auto` follows from the device and the data: never from how busy the machine is."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unet_core import inference


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
