"""Plans and summaries say what there is in words that are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import write_array

from flows.config import SegmentConfig
from flows.report.words import counted
from flows.segment import plan
from flows.summary.plan import plan_document, print_plan
from flows.summary.runs import print_run


@pytest.mark.parametrize(("dtype", "said"), [("float32", "float32 on cpu"), ("auto", "dtype auto (")])
def test_a_small_plan(
    tmp_path: Path,
    make_model: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    said: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("unet_core.inference.fast_dtype", lambda _: "bfloat16")
    monkeypatch.setattr("flows.summary.plan.macs_per_second", lambda *_, **__: 1e9)
    write_array(tmp_path / "volume.zarr", np.ones((8, 8, 8), np.uint8))
    config = SegmentConfig(
        volume=str(tmp_path / "volume.zarr"),
        model=str(make_model()),
        to=str(tmp_path / "l.zarr"),
        dtype=dtype,
    )
    document = plan_document(plan(config), workers=1)
    print_plan(document)
    out = capsys.readouterr().out
    assert said in out
    assert "worker(s)" not in out
    assert "in each of 1 worker," in out
    assert " 0.0 TFLOP" not in out
    assert "MFLOP" in out


def test_the_type_that_was_decided_is_told_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    document: dict[str, Any] = {"command": "segment", "status": "complete", "output": "l", "seconds": 1.0}
    print_run({**document, "stages": {}, "dtype": "bfloat16", "device": "cpu"})
    assert "arithmetic: bfloat16 on cpu" in capsys.readouterr().out


def test_one_is_not_many() -> None:
    assert [counted(n, "block") for n in (0, 1, 2000)] == ["0 blocks", "1 block", "2,000 blocks"]
