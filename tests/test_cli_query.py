"""`unet-flows query`: every verb, as people and as programs read it, and everything that is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from labelled import write_labels

from flows import cli
from unet_core.ledger import set_status
from unet_core.volumes import Store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three bars, the first two touching: 8, 4 and 4 voxels."""
    array = np.zeros((4, 6, 8), "u4")
    array[0, 0, :8], array[0, 1, :4], array[3, 5, 4:] = 1, 2, 3
    classes = np.array([0, 1, 2, 1], "u1")[array]
    image = np.arange(array.size, dtype="u2").reshape(1, *array.shape)
    return write_labels(str(tmp_path_factory.mktemp("cli")), array, image, classes, voxel_size=(2, 1, 1))


@pytest.fixture
def query(labels: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `query` in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object, of: object = labels) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unet-flows", "query", str(of), *map(str, arguments)])
        code = cli.run()
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_every_verb_as_json(query: Run, tmp_path: Path) -> None:
    def ask(*arguments: object) -> dict:
        code, out, err = query(*arguments, "--json")
        assert (code, err) == (0, ""), err
        document = json.loads(out)
        assert (document["command"], document["verb"]) == ("query", arguments[0])
        return document

    assert ask("info")["objects"] == 3
    units = ask("info")["units"]
    assert units.keys() == set(ask("info")["columns"])
    assert (units["volume"], units["axis_major"], units["moment_zy"]) == (
        "micrometer^3",
        "micrometer",
        "micrometer^2",
    )
    assert (units["z"], units["z1"], units["z_physical"]) == ("voxels", "voxels", "micrometer")
    assert (units["mean_0"], units["id"]) == ("intensity", None)
    assert ask("at", "0,1,2")["object"]["class_name"] == "nucleus"
    assert ask("at", "10,1,-3", "--physical")["id"] == 2
    assert ask("at", "0.2,1.4,1.5")["voxel"] == [0, 1, 2], "the nearest, and it says which"
    assert ask("at", "1,1,1")["object"] is None
    assert ask("object", 1)["object"]["voxels"] == 8
    assert ask("mask", 3, "--to", tmp_path / "m.npz")["shape"] == [1, 1, 4]
    assert ask("box", "0:1,0:6,0:4")["rows"] == [{"id": 1, "whole": False}, {"id": 2, "whole": True}]
    assert ask("box", "0:1,0:6,0:4", "--exact")["count"] == 2
    assert ask("neighbours", 1)["rows"] == [{"id": 2, "faces": 4, "area": 8.0}]
    found = ask("objects", "--where", "voxels < 8", "--sort", "-mean_0", "--limit", 1)
    assert (found["matching"], [row["id"] for row in found["rows"]]) == (2, [3])
    assert ask("crop", "0:2,0:2,0:2", "--to", tmp_path / "c.tif")["written"][1].endswith("c_labels.tif")
    assert ask("objects", "--to", tmp_path / "t.parquet")["rows"] == 3


def test_every_verb_in_the_terminal(query: Run, tmp_path: Path) -> None:
    for words, expected in (
        (("info",), "micrometer"),
        (("at", "0,1,2"), "nucleus"),
        (("object", 1), "touches_border"),
        (("mask", 1, "--to", tmp_path / "m.tif"), "written"),
        (("box", "0:4,0:6,0:8"), "3 of 3"),
        (("box", "0:4,0:6,0:8"), "by bounding boxes: some may have no voxel in the box, --exact"),
        (("box", "0:1,0:6,0:4", "--exact"), "2 of 2; each with a voxel in the box"),
        (("box", "1:2,0:6,0:8"), "none"),
        (("objects", "--limit", 2), "2 of 3"),
        (("crop", "0:2,0:2,0:2", "--no-image", "--to", tmp_path / "c.npz"), "written"),
        (("neighbours", 2), "area"),
    ):
        code, out, err = query(*words)
        assert (code, err) == (0, ""), err
        assert expected in out.replace("\n", ""), out
    assert (
        query("objects", "--format", "csv", "--columns", "id,volume")[1] == '"id","volume"\n1,16\n2,8\n3,8\n'
    )
    assert json.loads(query("objects", "--format", "json", "--columns", "id")[1]) == [
        {"id": i} for i in (1, 2, 3)
    ]


def test_what_is_refused(query: Run, labels: str, tmp_path: Path) -> None:
    there = tmp_path / "there.npz"
    there.touch()
    incomplete, other, bare = (
        shutil.copytree(labels, tmp_path / f"{n}.zarr") for n in ("incomplete", "other", "bare")
    )
    set_status(Store(incomplete), "failed")
    summary = other / "tables/summary.json"
    summary.write_text(summary.read_text().replace(json.loads(summary.read_text())["run"], "0" * 16))
    (bare / "tables/summary.json").unlink()
    for words, of, facts in (
        (("object", 4), labels, ("no such object", "1 to 3", "4")),
        (("object", 0), labels, ("no such object",)),
        (("mask", "one", "--to", "m.npz"), labels, ("not an id", "ID", "integer", "'one'")),
        (("object", "-3"), labels, ("no such object", "1 to 3", "-3")),
        (("neighbours", "1.5"), labels, ("not an id", "'1.5'")),
        (("at", "0,0"), labels, ("one number per axis", "z,y,x")),
        (("at", "0,nine,0"), labels, ("not a place",)),
        (("at", "4,0,0"), labels, ("outside the volume", "0:4,0:6,0:8")),
        (("box", "0:5,0:6,0:8"), labels, ("not inside the volume", "0:4,0:6,0:8")),
        (("box", "0:2,0:2"), labels, ("another number of axes", "z0:z1,y0:y1,x0:x1")),
        (("box", "2:2,0:6,0:8"), labels, ("empty",)),
        (("crop", "0:1,0:1,0:9", "--to", "c.npz"), labels, ("not inside the volume",)),
        (("crop", "0:1,0:1,0:1", "--to", "c.png"), labels, ("not known", ".zarr")),
        (("mask", 1, "--to", there), labels, ("there already",)),
        (("objects", "--where", "voxels > > 3"), labels, ("character 10", "^")),
        (("objects", "--where", "volum > 3"), labels, ("did you mean volume?",)),
        (("objects", "--sort", "-maen_0"), labels, ("did you mean mean_0?",)),
        (("objects", "--columns", "id,vol"), labels, ("no such column", "--columns")),
        (("objects", "--limit", "-1"), labels, ("0 or more",)),
        (("objects", "--format", "xml"), labels, ("csv or json",)),
        (("objects", "--format", "csv", "--to", "t.csv"), labels, ("--format csv and --to", "one of")),
        (("info",), tmp_path / "absent.zarr", ("no labels of unet-flows",)),
        (("objects",), other, ("another run", "0" * 16)),
        (("objects",), bare, ("no object table", "--instances")),
    ):
        code, out, err = query(*words, of=of)
        assert (code, out) == (2, ""), (words, out)
        assert err.startswith("error: ")
        assert "Traceback" not in err
        for fact in facts:
            assert fact in err, err
    code, out, _ = query("objects", "--format", "csv", "--json")
    assert (code, json.loads(out)["error"]["found"]) == (2, "--format csv and --json")
    assert query("info", "--partial", of=incomplete)[0] == 0
    assert query("at", "0,0,0", of=bare)[0] == 0
    code, out, err = query("object", 9, "--json")
    assert (code, json.loads(out)["error"]["problem"]) == (2, "no such object")
