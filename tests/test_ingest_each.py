"""`ingest --each`: every file a volume of its own; what fails is named, what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import Run, refused, run  # noqa: F401

from flows.config import IngestConfig
from flows.ingest import each
from flows.outcome import IncompleteRunError
from flows.progress import stage_progress
from flows.summary.runs import print_run
from flows.supervise import InterruptionError
from unet_core.errors import StoreError
from unet_core.ledger import read_status
from unet_core.volumes import Store, Volume

SIZES = {"a": (20, 30), "b": (40, 30), "c.1": (25, 25)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images; Prefect left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(each, "volumes", each.volumes.fn)
    monkeypatch.setattr(
        each, "stage_progress", lambda name, total, **_: stage_progress(name, total, prefect=False)
    )
    (tmp_path / "images").mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(np.full(size, number + 1, np.uint8)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def config(**values: Any) -> IngestConfig:
    return IngestConfig(**{"sources": ["images/*.png"], "to": "set", "each": True, **values})


def counts(document: dict[str, Any]) -> tuple[int, int, int]:
    stage = document["stages"]["volumes"]
    return stage["done"], stage["skipped"], len(stage["failed"])


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_every_file_becomes_a_volume_once(here, kind):
    document = each.ingest_each(config(kind=kind))
    assert (document["status"], counts(document)) == ("complete", (3, 0, 0))
    assert document["stages"]["volumes"]["voxels"] == sum(a * b for a, b in SIZES.values())
    for number, (name, size) in enumerate(SIZES.items()):
        volume = Volume.open(str(here / "set" / f"{name}.zarr"))
        assert volume.shape == (1, *size)
        assert (volume.read(volume.box) == number + 1).all()
        assert (read_status(Store(f"set/{name}.zarr")) or {})["status"] == "complete"
    before = {path: path.stat().st_mtime_ns for path in (here / "set").rglob("*")}
    Image.fromarray(np.ones((9, 9), np.uint8)).save(here / "images" / "d.png")
    assert counts(each.ingest_each(config(kind=kind))) == (1, 3, 0)
    assert {path: path.stat().st_mtime_ns for path in before if path != here / "set"} == {
        path: time for path, time in before.items() if path != here / "set"
    }
    assert counts(each.ingest_each(config(kind=kind, restart=True))) == (4, 0, 0)


def test_a_file_that_fails_leaves_the_others(here):
    whole = (here / "images" / "b.png").read_bytes()
    damaged = bytearray(whole)
    damaged[45:60] = bytes(15)  # its header and its end are sound
    (here / "images" / "b.png").write_bytes(damaged)
    with pytest.raises(IncompleteRunError, match="1 of 3 volumes failed") as failed:
        each.ingest_each(config())
    assert failed.value.document["status"] == "failed"
    assert counts(failed.value.document) == (2, 0, 1)
    assert "b.png" in failed.value.found
    (here / "images" / "b.png").write_bytes(whole)
    with pytest.raises(Exception, match="cannot be ingested") as refused_:
        each.ingest_each(config())
    assert "other parameters" in refused_.value.found, "it is another file"
    assert counts(each.ingest_each(config(restart=True))) == (3, 0, 0)


def test_a_full_disk_stops_all_and_an_interruption_says_how_far_it_came(here, monkeypatch):
    carry_out = each.carry_out
    for error, raised, says in (
        (StoreError("the disk is full"), IncompleteRunError, "stopped after 1 of 3"),
        (KeyboardInterrupt(), InterruptionError, "interrupted after 1 of 3 volumes"),
    ):

        def second(planned: Any, held: Any, error: BaseException = error, **stages: Any) -> dict[str, Any]:
            if held.output.url.endswith("b.zarr"):
                raise error
            return carry_out(planned, held, **stages)

        monkeypatch.setattr(each, "carry_out", second)
        with pytest.raises(raised, match=says):
            each.ingest_each(config())
    monkeypatch.setattr(each, "carry_out", carry_out)
    assert counts(each.ingest_each(config())) == (2, 1, 0)


def test_what_cannot_be_ingested_is_refused_before_anything_is_written(run: Run, here: Path) -> None:  # noqa: F811
    command = ("ingest", "images/*", "--each", "--to", "set")
    refused(run(*command, "--retry-failed"), "--retry-failed goes with one volume")
    (here / "images" / "bad.png").write_bytes(b"no png")
    (here / "images" / "worse.docx").write_bytes(b"")
    refused(run(*command), "2 of 5 files cannot be ingested", "bad.png", "worse.docx", "not a PNG")
    refused(run("ingest", "none/*.png", "--each", "--to", "set"), "no file matches")
    (here / "images" / "bad.png").unlink()
    (here / "images" / "worse.docx").unlink()
    Image.fromarray(np.ones((9, 9), np.uint8)).save(here / "images" / "a.jpg")
    refused(run(*command), "two files would become one volume", "a.jpg", "a.png")
    assert not (here / "set").exists()


def test_the_command_prints_one_document_for_the_set(run: Run, here, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr("flows.outcome.told", lambda flow, _, parameters: flow.fn(**parameters))
    code, out, err = run("ingest", "images/*.png", "--each", "--to", "set", "--json")
    assert code == 0, err
    assert counts(json.loads(out)) == (3, 0, 0)


def test_labels_below_zero_are_told(here, capsys):
    np.save(here / "marked.npy", np.array([[-1, 0], [-2, 3]], np.int16))
    np.save(here / "plain.npy", np.array([[1, 0], [2, 3]], np.int16))
    files = ["marked.npy", "plain.npy"]
    document = each.ingest_each(config(kind="labels", sources=files))
    (note,) = document["notes"]
    assert "marked.npy" in note
    assert "2 of the voxels" in note
    print_run(document)
    assert "--ignore=-1" in capsys.readouterr().out
    assert each.ingest_each(config(sources=files, to="images"))["notes"] == []
