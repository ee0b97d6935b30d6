"""The command line: fast help, one clear error for every bad input, one JSON document, exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from pipeline import complete, save_random_model

from flows import cli
from unet_core.architecture import UNetSpec
from unet_core.checkpoint import load_model, save_model
from unet_core.ledger import Failure, Quarantine, RunRecord, begin, hold, set_status
from unet_core.verification import RunOnDisk
from unet_core.volumes import Store

SHAPE = (20, 40, 36)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unet-flows", *map(str, arguments)])
        code = cli.run()
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A volume, labels of its shape, and a model for it."""
    rng = np.random.default_rng(0)
    zarr.create_array(
        tmp_path / "volume.zarr", data=rng.integers(0, 255, SHAPE, dtype="u1"), chunks=(20, 20, 20)
    )
    zarr.create_array(
        tmp_path / "truth.zarr", data=rng.integers(0, 3, SHAPE, dtype="u2"), chunks=(20, 20, 20)
    )
    save_random_model(tmp_path / "model", UNetSpec.build(ndim=3, depth=1, base=4), seed=4)
    return tmp_path


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refused(result: tuple[int, str, str], *facts: str) -> None:
    """One error with these facts, exit code 2, no traceback, nothing on stdout."""
    code, out, err = result
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert out == ""
    for fact in facts:
        assert fact in err, err


class TestSegmentRefuses:
    """`segment` with something wrong: refused before any work, nothing written."""

    @pytest.fixture(autouse=True)
    def _nothing_written(self, work: Path) -> Any:
        self.work = work
        self.to = work / "labels.zarr"
        yield
        assert not self.to.exists()

    def segment(self, run: Run, *options: object, volume: str = "volume.zarr", model: str = "model") -> Any:
        return run("segment", self.work / volume, "--model", self.work / model, "--to", self.to, *options)

    def test_no_such_volume(self, run: Run) -> None:
        refused(self.segment(run, volume="absent.zarr"), "no such volume", "absent.zarr")

    def test_not_a_zarr(self, run: Run) -> None:
        (self.work / "folder").mkdir()
        refused(self.segment(run, volume="folder"), "not a Zarr")

    def test_a_file(self, run: Run) -> None:
        tifffile.imwrite(self.work / "stack.tif", np.zeros(SHAPE, "u1"))
        refused(self.segment(run, volume="stack.tif"), "not a Zarr", "unet-flows ingest")

    def test_a_group_without_multiscales(self, run: Run) -> None:
        zarr.create_group(self.work / "group.zarr")
        refused(self.segment(run, volume="group.zarr"), "no multiscales")

    def test_a_level_whose_array_is_missing(self, run: Run, ome_volume: Path) -> None:
        shutil.rmtree(ome_volume / "0")
        refused(self.segment(run, volume=ome_volume.name), "array is missing", "--level 1")

    def test_wrong_number_of_dimensions(self, run: Run) -> None:
        zarr.create_array(self.work / "line.zarr", data=np.zeros(9, "u1"))
        refused(self.segment(run, volume="line.zarr"), "wrong number of dimensions")

    def test_a_plane_for_a_3d_model(self, run: Run) -> None:
        zarr.create_array(self.work / "plane.zarr", data=np.zeros((64, 64), "u1"))
        refused(self.segment(run, volume="plane.zarr"), "3D model cannot segment a plane")

    def test_wrong_number_of_channels(self, run: Run) -> None:
        zarr.create_array(self.work / "two.zarr", data=np.zeros((2, *SHAPE), "u1"))
        refused(self.segment(run, volume="two.zarr"), "another number of channels", "--channels")

    def test_no_such_channel(self, run: Run) -> None:
        refused(self.segment(run, "--channels", "3"), "no such channel", "0 to 0")

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_intensities_that_are_not_finite(self, run: Run, bad: float) -> None:
        image = np.zeros(SHAPE, "f4")
        image[3, 4, 5] = bad
        zarr.create_array(self.work / "float.zarr", data=image, chunks=(20, 20, 20))
        refused(self.segment(run, volume="float.zarr"), "NaN or infinite", "(3, 4, 5)")

    @pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
    def test_a_model_folder_without_a_file(self, run: Run, name: str) -> None:
        (self.work / "model" / name).unlink()
        refused(self.segment(run), "not a whole model folder", name)

    def test_no_model(self, run: Run) -> None:
        refused(self.segment(run, model="absent"), "no such model")

    def test_a_model_of_another_architecture(self, run: Run) -> None:
        edit_json(self.work / "model/model.json", lambda d: d["spec"].update(widths=[8, 16]))
        refused(self.segment(run), "another architecture", "tensor")

    def test_a_model_for_other_channels(self, run: Run) -> None:
        save_random_model(self.work / "rgb", UNetSpec.build(ndim=3, depth=1, base=4, in_channels=3))
        refused(self.segment(run, model="rgb"), "another number of channels", "3 channels")

    def test_a_norm_layer_that_looks_at_the_tile(self, run: Run) -> None:
        edit_json(self.work / "model/model.json", lambda d: d["spec"].update(norm="instance"))
        refused(self.segment(run), "statistics of the tile", "instance")

    @pytest.mark.parametrize(
        ("roi", "fact"),
        [
            ("0:20,0:40,0:99", "not inside the volume"),
            ("5:5,0:40,0:36", "empty"),
            ("a:b", "not a box"),
            ("0:9,0:9", "z0:z1,y0:y1,x0:x1"),
        ],
    )
    def test_a_bad_roi(self, run: Run, roi: str, fact: str) -> None:
        refused(self.segment(run, "--roi", roi), fact)

    def test_a_tile_off_the_stride(self, run: Run) -> None:
        refused(self.segment(run, "--tile", "15,16,16"), "--tile is not a multiple", "16,16,16")

    def test_a_block_that_is_not_whole(self, run: Run) -> None:
        refused(self.segment(run, "--tile", "8,8,8", "--block", "8,8,12"), "--block is not a multiple")

    def test_a_tile_that_cannot_fit(self, run: Run) -> None:
        zarr.create_array(self.work / "big.zarr", shape=(4096,) * 3, chunks=(512,) * 3, dtype="u1")
        refused(
            self.segment(run, "--tile", "2048,2048,2048", volume="big.zarr"),
            "does not fit in memory",
            "GiB available",
            "--tile",
        )

    def test_a_disk_too_small(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(self.work)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        refused(self.segment(run), "disk is too small", "1,000 bytes free")

    def test_not_a_number(self, run: Run) -> None:
        refused(self.segment(run, "--level", "x"), "--level")

    def test_an_unknown_option(self, run: Run) -> None:
        refused(self.segment(run, "--colour", "red"), "--colour")

    def test_an_unknown_key_in_the_cluster_file(self, run: Run) -> None:
        (self.work / "cluster.toml").write_text('[cluster]\nkind = "local"\nwokers = 2\n')
        refused(self.segment(run, "--cluster", self.work / "cluster.toml"), "wokers", "unknown key")


def test_segment_refuses_an_output_with_other_parameters(run: Run, work: Path) -> None:
    command = ("segment", work / "volume.zarr", "--model", work / "model", "--to", work / "labels.zarr")
    (work / "labels.zarr").mkdir()
    identity = {"volume": {}, "tile": [8, 8, 8]}
    begin(Store(work / "labels.zarr"), RunRecord("segment", identity, {}))
    refused(run(*command, "--tile", "16,16,16"), "other parameters", "tile [16, 16, 16]", "tile [8, 8, 8]")


def test_segment_refuses_an_output_of_another_program(run: Run, work: Path) -> None:
    command = ("segment", work / "volume.zarr", "--model", work / "model", "--to", work / "truth.zarr")
    before = sorted(work.rglob("*"))
    refused(run(*command), "not made by unet-flows")
    assert sorted(work.rglob("*")) == before


def test_segment_refuses_an_output_that_cannot_be_written(run: Run, work: Path) -> None:
    # Also as root nothing can be created below /proc.
    refused(
        run("segment", work / "volume.zarr", "--model", work / "model", "--to", "/proc/labels.zarr"), "/proc"
    )


def test_plan_is_one_json_document_and_starts_nothing(run: Run, work: Path) -> None:
    to = work / "labels.zarr"
    options = ("--tile", "8,8,8", "--plan", "--json")
    code, out, _ = run("segment", work / "volume.zarr", "--model", work / "model", "--to", to, *options)
    assert code == 0
    plan = json.loads(out)
    assert plan["tile"]["write"] == [8, 8, 8]
    assert plan["tile"]["count"] == 3 * 5 * 5
    assert plan["memory_per_worker"] > plan["memory_of_one_forward_pass"] > 0
    assert 0 < plan["useful_share_of_arithmetic"] < 1
    assert not to.exists()


def test_errors_are_json_where_json_was_asked_for(run: Run, work: Path) -> None:
    command = ("segment", work / "absent", "--model", work / "model", "--to", work / "labels.zarr", "--json")
    code, out, _ = run(*command)
    assert code == 2
    assert json.loads(out)["error"]["problem"] == "no such volume"


def test_an_interruption_during_start_up_claims_nothing(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.segment.plan", interrupted)
    result = run("segment", work / "volume.zarr", "--model", work / "model", "--to", work / "labels.zarr")
    assert result == (130, "", "interrupted\n")


class TestIngestRefuses:
    def test_a_tiff_cut_short(self, run: Run, tmp_path: Path) -> None:
        whole = tmp_path / "whole.tif"
        tifffile.imwrite(whole, np.arange(20 * 64 * 64, dtype="u2").reshape(20, 64, 64))
        (tmp_path / "cut.tif").write_bytes(whole.read_bytes()[:-5000])
        refused(run("ingest", tmp_path / "cut.tif", "--to", tmp_path / "v.zarr"), "cut.tif")
        assert not (tmp_path / "v.zarr").exists()

    def test_an_hdf5_without_the_dataset(self, run: Run, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["raw"] = np.zeros(SHAPE, "u1")
        refused(
            run("ingest", tmp_path / "a.h5", "--dataset", "label", "--to", tmp_path / "v.zarr"),
            "label",
            "raw",
        )

    def test_no_such_file(self, run: Run, tmp_path: Path) -> None:
        refused(run("ingest", tmp_path / "absent.tif", "--to", tmp_path / "v.zarr"), "absent.tif")

    def test_labels_that_are_not_integers(self, run: Run, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", labels=np.zeros(SHAPE, "f4"))
        refused(run("ingest", tmp_path / "a.npz", "--as", "labels", "--to", tmp_path / "v.zarr"), "integers")


class TestTrainRefuses:
    def train(self, run: Run, work: Path, *options: object) -> tuple[int, str, str]:
        data = ("--image", work / "volume.zarr", "--labels", work / "truth.zarr")
        return run("train", "--to", work / "new", *data, "--target", "foreground", *options)

    def test_a_label_volume_of_another_shape(self, run: Run, work: Path) -> None:
        zarr.create_array(work / "small.zarr", data=np.ones((5, 5, 5), "u1"))
        refused(self.train(run, work, "--labels", work / "small.zarr"), "differ in shape", "(5, 5, 5)")

    def test_a_toml_with_an_unknown_key(self, run: Run, work: Path) -> None:
        (work / "config.toml").write_text("step = 10\n")
        refused(run("train", work / "config.toml", "--to", work / "new"), "step", "unknown key")

    def test_regions_that_overlap(self, run: Run, work: Path) -> None:
        regions = ("--region", "0:12,0:40,0:36", "--validation-region", "10:20,0:40,0:36")
        refused(self.train(run, work, *regions), "share voxels")

    def test_an_output_that_exists(self, run: Run, work: Path) -> None:
        refused(self.train(run, work, "--to", work / "model"), "the output exists")

    def test_a_gpu_where_none_is(self, run: Run, work: Path) -> None:
        refused(self.train(run, work, "--device", "cuda"), "a GPU was asked for", 'device "cpu"')

    def test_more_memory_than_there_is(self, run: Run, work: Path) -> None:
        size = ("--patch", "256,256,256", "--base", "256", "--batch", "64")
        code, out, err = self.train(run, work, *size)
        assert (code, out) == (2, "")
        # What is odd comes first: it says why the memory does not suffice.
        note, error = err.index("note: "), err.index("error: this training does not fit in memory")
        assert note < err.index("z (20 of 256), y (40 of 256), x (36 of 256): it is mirrored there") < error
        for fact in ("GiB available", "--accumulate", "--patch (20,40,36 covers every region)"):
            assert fact in err

    def test_a_class_that_the_network_does_not_have(self, run: Run, work: Path) -> None:
        refused(self.train(run, work, "--target", "semantic"), "class", "truth.zarr")

    def test_a_region_without_a_label(self, run: Run, work: Path) -> None:
        zarr.create_array(work / "nothing.zarr", data=np.zeros(SHAPE, "u1"))
        nothing = ("--labels", work / "nothing.zarr")
        refused(self.train(run, work, *nothing), "only background")
        refused(self.train(run, work, *nothing, "--ignore", "0"), "nothing is labelled")

    def test_a_model_of_another_body_to_begin_with(self, run: Run, work: Path) -> None:
        refused(self.train(run, work, "--fine-tune", work / "model"), "fine-tuned", "norm")

    def test_a_proposal_over_a_file_that_exists(
        self, run: Run, work: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("flows.init.write", None)  # not asked: looking at the volumes takes long
        (work / "mine.toml").write_text("# mine\n")
        data = ("--image", work / "volume.zarr", "--labels", work / "truth.zarr")
        refused(run("train", "--init", work / "mine.toml", *data), "mine.toml", "something already")
        refused(run("train", "--init", work / "no" / "mine.toml", *data), "no such folder")
        assert (work / "mine.toml").read_text() == "# mine\n"


def test_evaluate_refuses_shapes_that_differ(run: Run, work: Path) -> None:
    zarr.create_array(work / "small.zarr", data=np.ones((5, 5, 5), "u1"))
    refused(run("evaluate", work / "small.zarr", work / "truth.zarr", "--target", "foreground"), "(5, 5, 5)")


def test_evaluate_prints_one_json_document(run: Run, work: Path) -> None:
    code, out, _ = run("evaluate", work / "truth.zarr", work / "truth.zarr", "--json")
    assert code == 0
    scores = json.loads(out)
    assert scores["pixel_error"] == 0
    assert scores["mean_iou"] == 1


@pytest.fixture
def labels(work: Path) -> Path:
    """A complete output."""
    complete(work, str(work / "labels.zarr"), tile=(8, 16, 16))
    return work / "labels.zarr"


def test_status_verify_and_clean_print_one_json_document(run: Run, labels: Path) -> None:
    code, out, _ = run("status", labels, "--json")
    document = json.loads(out)
    assert (code, document["status"], document["held_by"], document["failed"]) == (0, "complete", None, [])
    assert document["stages"]["predict"]["done"] == document["stages"]["predict"]["total"]
    code, out, _ = run("verify", labels, "--json")
    assert (code, json.loads(out)["sound"]) == (0, True)
    (labels / "0" / "c" / "0" / "0" / "1#1").write_bytes(b"half")
    code, out, _ = run("clean", labels, "--json")
    assert (code, json.loads(out)["leftovers_removed"]) == (0, 1)


def test_status_verify_and_clean_print_tables(run: Run, labels: Path, work: Path) -> None:
    quarantine = Quarantine(Store(labels), "predict")
    error, trace = "the chunk [3, 4] is corrupt", "Traceback: [red]"
    quarantine.add(
        Failure(stage="predict", index=0, error=error, traceback=trace, worker="host, process 7", attempts=3)
    )
    with hold(Store(labels)) as lease:
        RunOnDisk.open(Store(labels)).ledger("predict", epoch=lease.epoch).seal(without=[0])
    set_status(Store(labels), "failed")
    code, out, _ = run("status", labels)
    assert code == 0
    for words in ("segment: failed", "predict block 0, 3 attempts", error, trace, "host, process 7"):
        assert words in out
    complete(work, str(labels), tile=(8, 16, 16))
    victim = labels / "0" / "c" / "0" / "0" / "0"
    victim.write_bytes(bytes(100))
    code, out, _ = run("verify", labels)
    assert code == 1
    for words in ("NOT SOUND", str(victim.relative_to(labels)), "--repair opens"):
        assert words in out
    code, out, _ = run("verify", labels, "--repair")
    assert code == 1
    assert "does the reopened blocks again" in out
    code, out, _ = run("status", labels)
    assert "segment: partial" in out
    code, out, _ = run("clean", labels)
    assert code == 0
    assert "failures since mended" in out


@pytest.mark.parametrize("command", ["status", "verify", "clean"])
def test_what_is_no_output_is_refused(command: str, run: Run, work: Path) -> None:
    refused(run(command, work / "volume.zarr"), "no run of unet-flows is here", str(work / "volume.zarr"))
    refused(run(command, work / "absent"), "no run of unet-flows is here", "nothing")


def test_restart_asks_before_it_takes_anything_away(
    run: Run, labels: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path for path in labels.rglob("*") if path.is_file())
    command = ("segment", work / "volume.zarr", "--model", work / "model", "--to", labels, "--restart")
    refused(run(*command), "nobody is here to be asked", "--yes")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    refused(run(*command), "nothing was taken away")
    assert sorted(path for path in labels.rglob("*") if path.is_file()) == before


def test_restart_leaves_what_is_not_ours(run: Run, work: Path) -> None:
    (work / "theirs").mkdir()
    (work / "theirs" / "notes.txt").write_text("mine")
    command = ("segment", work / "volume.zarr", "--model", work / "model", "--to", work / "theirs")
    refused(run(*command, "--restart", "--yes"), "not made by unet-flows")
    assert (work / "theirs" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("to", ["volume.zarr", "volume.zarr/labels", ".", "link.zarr", "model"])
def test_restart_never_takes_an_input_away(to: str, run: Run, work: Path) -> None:
    (work / "link.zarr").symlink_to(work / "volume.zarr")
    before = sorted(path for path in work.rglob("*") if path.is_file())
    command = ("segment", work / "volume.zarr", "--model", work / "model", "--to", work / to)
    for options in ((), ("--restart", "--yes")):
        code, _, err = run(*command, *options)
        assert code == 2, err
    assert sorted(path for path in work.rglob("*") if path.is_file()) == before


def test_an_input_that_is_not_complete_is_taken_when_told(run: Run, labels: Path, work: Path) -> None:
    set_status(Store(labels), "partial")
    command = ("segment", labels, "--model", work / "model", "--to", work / "next.zarr", "--plan", "--json")
    code, out, _ = run(*command)
    assert code == 2
    assert "not complete" in out
    code, out, _ = run(*command, "--partial")
    assert code == 0, out


def test_retry_failed_without_failures_is_refused(run: Run, labels: Path, work: Path) -> None:
    command = ("segment", work / "volume.zarr", "--model", work / "model", "--to", labels, "--retry-failed")
    refused(run(*command), "no block of this output is in quarantine")


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['unet-flows', '--help']; from flows.cli import run; run()\n"
        "heavy = {'torch', 'zarr', 'dask', 'distributed', 'prefect', 'numpy', 'h5py', 'tifffile'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "segment" in done.stdout
    assert done.stderr.strip() == "[]"


WRONG_PATHS = """
segment absent --model m --to l
ingest absent.tif --to v
ingest absent/*.png --to v
train --image absent --labels absent --to m
train --image absent --labels absent --init t.toml
train absent.toml
train --image . --labels . --to m --cluster absent.toml
segment . --model . --to l --cluster absent.toml
evaluate absent absent
status absent
verify absent
clean absent
export absent --format onnx --to m
import absent.zip --to m
""".strip().splitlines()


def test_a_wrong_path_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from flows.cli import run\n"
        f"for command in {WRONG_PATHS!r}:\n"
        "    sys.argv = ['unet-flows', *command.split()]\n"
        "    print(run(), sorted({'torch', 'dask', 'distributed', 'prefect'} & set(sys.modules)), command)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == [f"2 [] {command}" for command in WRONG_PATHS]
    assert done.stderr.count("absent") >= len(WRONG_PATHS)


WRONG_INPUTS = {
    "train --image zarr --to m": ("labels", "--image zarr alone"),
    "train --to m": ("one way to name", "neither"),
    "train --image zarr --labels zarr --to m --base 0 --depth 9": ("--base 0: ", "--depth 9: "),
    "train --image zarr --labels zarr --to m --fine-tune broken": (
        "model.json",
        "not JSON",
        "copy the model",
    ),
    "ingest text.tif --to v": ("not a TIFF", "b'hell'", "export it again"),
    "ingest two.npz --to v": ("several arrays", "--dataset a"),
    "ingest empty --to v": ("no file that can be read", "nothing"),
    "ingest junk --to v": ("no file that can be read", "1 of other names, such as x"),
    "segment junk --model whole --to l": ("not a Zarr", "name the folder"),
    "segment zarr --model broken --to l": ("model.json", "not JSON", "copy the model"),
    "segment zarr --model list --to l": ("model.json", "a list", "copy the model"),
    "segment zarr --model cut --to l": ("weights.safetensors", "cut short", "as its header says"),
    "segment zarr --model whole --to l --level 3": ("--level 0",),
    "segment zarr --model whole --to l --workers 0": ("--workers 0: ",),
    "ingest two.npz --to v --as picture": ("picture",),
}


def test_a_wrong_input_is_told_before_prefect_is_imported(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("hello")
    np.savez(tmp_path / "two.npz", a=np.ones((3, 4, 5)), b=np.ones((3, 4, 5)))
    zarr.create_array(tmp_path / "zarr", data=np.zeros((8, 8, 8), "u1"))
    for name in ("junk", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "junk/x").touch()
    save_random_model(tmp_path / "whole", UNetSpec.build(ndim=3, depth=1, base=2))
    for name in ("broken", "list", "cut"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
    (tmp_path / "broken/model.json").write_text('{"format": 1,')
    (tmp_path / "list/model.json").write_text("[1]")
    weights = tmp_path / "cut/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    code = (
        "import json, sys; from flows import cli\n"
        f"for command in {list(WRONG_INPUTS)!r}:\n"
        "    sys.argv = ['unet-flows', *command.split(), '--json']\n"
        "    assert cli.run() == 2, command\n"
        "    assert not {'torch', 'dask', 'distributed', 'prefect'} & set(sys.modules), command\n"
        "    print('END')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    answers = done.stdout.split("END\n")[:-1]
    for (command, facts), answer in zip(WRONG_INPUTS.items(), answers, strict=True):
        for fact in facts:
            assert fact in answer, (command, answer)


STUBBORN = """
import signal, sys, time
from flows import supervise
def work():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        time.sleep(3600)
supervise._PATIENCE = 1
sys.exit(supervise.supervised(work))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_does_not_stop_is_ended(number: int) -> None:
    """As one in a call to a store that does not answer."""
    command = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGINT else 130)
    assert "interrupted" in err


OBEDIENT = """
import sys, time
from flows.supervise import INTERRUPTED, supervised
def work():
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.05)  # a signal on the way into a long one would be noticed after it
    except KeyboardInterrupt:
        return INTERRUPTED
sys.exit(supervised(work))
"""


# bash cannot heed what was ignored when it began, as it is where these tests run in the background.
HEEDFUL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_one_ctrl_c_ends_a_shells_loop() -> None:
    """bash goes on with the next round where a command exits with 130 by itself."""
    loop = 'for i in 1 2; do "$0" -c "$1"; done; echo went on'
    with subprocess.Popen(
        [sys.executable, "-c", HEEDFUL, "bash", "-c", loop, sys.executable, OBEDIENT],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "ready\n"
        os.killpg(shell.pid, signal.SIGINT)  # as a terminal does
        rest, _ = shell.communicate(timeout=60)
        assert (shell.returncode, rest) == (-signal.SIGINT, "")


ORPHAN = """
import os, signal, sys, time
from flows.supervise import end_with_parent
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
end_with_parent(signal.SIGKILL, parent=parent)
print("goes on", flush=True)
"""


def test_a_process_whose_parent_died_first_ends_too() -> None:
    """The kernel's signal is for deaths to come."""
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "")


def test_models_round_trip_through_their_folder(work: Path) -> None:
    stored = load_model(str(work / "model"))
    save_model(Store(work / "copy"), replace(stored.card), stored.network())
    assert load_model(str(work / "copy")).digest == stored.digest


@pytest.fixture
def ome_volume(work: Path) -> Path:
    """An OME-Zarr image with a pyramid, as `ingest` writes it."""
    from unet_core.metadata import pyramid_levels
    from unet_core.volumes import create_multiscale

    path = work / "ome.zarr"
    create_multiscale(
        Store(path),
        kind="image",
        axes="zyx",
        leading=(),
        levels=pyramid_levels(SHAPE, (1, 1, 1), smallest=20),
        dtype=np.dtype("u1"),
        chunk=(20, 20, 20),
        shard=(20, 40, 40),
        voxel_size=(1, 1, 1),
        origin=(0, 0, 0),
        unit="micrometer",
        name="ome",
    )
    return path


def test_flows_show_every_parameter_with_its_description() -> None:
    from flows.config import SegmentConfig
    from flows.segment import segment

    properties = segment.parameters.model_dump()["properties"]
    required = segment.parameters.model_dump()["required"]
    assert set(required) == {"volume", "model", "to"}
    assert list(properties)[:3] == required, "what must be given stands first in the form"
    assert set(properties) == set(SegmentConfig.model_fields)
    for name, field in SegmentConfig.model_fields.items():
        assert field.description
        # Parameters have the names of the form there, not those of the command line.
        as_options = re.sub(r"--([a-z-]+)", lambda m: m[1].replace("-", "_"), field.description)
        assert " ".join(properties[name]["description"].split()) == as_options


@pytest.mark.parametrize("command", [("--help",), ("status", "nowhere.zarr", "--json")])
def test_nobody_reads_what_is_printed(command: tuple[str, ...]) -> None:
    """As with `| head`, which closes its end early."""
    reader, writer = os.pipe()
    os.close(reader)
    program = (sys.executable, "-c", "from flows.cli import main; main()", *command)
    done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
