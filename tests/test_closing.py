"""The report that ends a run: its tables, its pictures, and the blocks that failed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from strategies import random_voxels, write_array

from flows.report.closing import failures_of, markdown, slices
from unet_core.geometry import Box
from unet_core.volumes import Volume


def stage(**values: Any) -> dict[str, Any]:
    basic = {"total": 4, "done": 2, "skipped": 1, "quarantined": 1, "empty_blocks": 0, "seconds": 2.0}
    return {**basic, "voxels": 3_000_000, "bytes_decoded": 10**6, "failed": [], **values}


DOCUMENT: dict[str, Any] = {
    "command": "segment",
    "status": "failed",
    "found": "1 of 4 blocks of predict failed",
    "output": "/data/labels.zarr",
    "seconds": 75.0,
    "stages": {"predict": stage(failed=[{"block": 3, "error": "c/6/0/0 is | corrupt\nreally"}])},
}


def test_a_report_says_what_was_planned_done_and_failed():
    text = markdown(DOCUMENT, {"tiles": "8 of 64×64×64", "volume": "a|b"}, Image.new("RGB", (8, 8)))
    assert text.startswith("# segment: failed\n")
    assert "> 1 of 4 blocks of predict failed" in text
    assert "| volume | a\\|b |" in text, "a pipe would end the cell"
    assert "| predict | 4 | 2 | 1 | 1 | 0 | 2.0 | 1.50 |" in text
    assert "data:image/" in text
    assert "unet-flows status /data/labels.zarr" in text
    rows = re.findall(r"^\|.*\|$", markdown(DOCUMENT, {"tiles": "8"}, None), flags=re.MULTILINE)
    assert {row.count("|") for row in rows} == {3, 9}
    assert failures_of(DOCUMENT) == [
        {"stage": "predict", "block": 3, "error": "c/6/0/0 is | corrupt\nreally"}
    ]


def test_three_slices_of_what_was_segmented_and_none_where_there_is_nothing(tmp_path: Path):
    shape = (12, 20, 30)
    image = Volume.open(str(write_array(tmp_path / "image.zarr", random_voxels(shape, "uint8", 0))))
    labels = np.zeros(shape, "u1")
    labels[:, 5:15] = 1
    there = str(write_array(tmp_path / "labels.zarr", labels))
    roi = Box((2, 0, 0), (11, 20, 30))
    for objects in (False, True):
        picture = slices(image, there, roi, class_names=("background", "cell"), objects=objects)
        assert picture is not None
        assert picture.height > 3 * 20
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 10
    assert slices(image, str(tmp_path / "none.zarr"), roi, class_names=(), objects=True) is None
