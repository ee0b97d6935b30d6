"""`watch`: every finished volume once in effect, whoever watches, dies or fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import LocalCluster
from killing import voxels
from pipeline import complete, save_random_model
from test_acquisition import SIZES, write_image
from test_cli import Run, refused, run  # noqa: F401

from flows.config import SegmentConfig, WatchConfig
from flows.outcome import IncompleteRunError
from flows.segment import request_of
from flows.summary.watching import print_watch
from flows.supervise import InterruptionError
from flows.watch.flow import watch_with
from unet_core.architecture import UNetSpec
from unet_core.checkpoint import load_model
from unet_core.errors import DataError, InputError, NoRoomError, RunError, StoreError
from unet_core.ledger import hold, read_status
from unet_core.volumes import Store

TILE = "8,8,8"
Shown = list[dict[str, Any]]


def segment_here(**parameters: Any) -> dict[str, Any]:
    """The stages of `segment` in this process, without Prefect and Dask."""
    request = request_of(SegmentConfig(**parameters))
    before = read_status(Store(request.to))
    assert request.tile is not None
    complete("", request.to, tile=request.tile, volume=request.volume, model=request.model)
    return {"stages": {"predict": {"done": 0 if before and before["status"] == "complete" else 1}}}


def image_of(seed: int) -> np.ndarray:
    shape = tuple(SIZES[a] for a in "zyx")
    return np.random.default_rng(seed).integers(1, 255, shape, dtype="u1")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A model, and a folder with three images that differ, one of them in a folder."""
    save_random_model(tmp_path / "model", UNetSpec.build(ndim=3, depth=1, base=2, classes=3), seed=6)
    for seed, name in enumerate(("a.zarr", "b.zarr", "day/c.ome.zarr")):
        write_image(tmp_path / "in" / name, data=image_of(seed))
    return tmp_path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of a cluster that can be had: in this process, where it takes no time."""
    file = tmp_path_factory.mktemp("cluster") / "cluster.toml"
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as there:
        file.write_text(f'kind = "address"\naddress = "{there.scheduler_address}"\n')
        yield file


def config(work: Path | str, **values: Any) -> WatchConfig:
    folders = {"prefix": f"{work}/in", "model": f"{work}/model", "to": f"{work}/out"}
    return WatchConfig(**{**folders, "tile": TILE, "quiet": 0.0, **values})


def call(work: Path | str, segment: Callable[..., dict[str, Any]] = segment_here, **values: Any) -> Any:
    """One call of the watch; the document also of one that ends with failures."""
    try:
        return watch_with(config(work, **values), segment, lambda document: None)
    except IncompleteRunError as error:
        return error.document


def states(document: dict[str, Any]) -> dict[str, str]:
    return {volume["volume"]: volume["state"] for volume in document["volumes"]}


def reason(document: dict[str, Any], name: str) -> str:
    return next(volume["reason"] for volume in document["volumes"] if volume["volume"] == name)


def root_of(work: Path | str) -> str:
    return f"{work}/out/model-{load_model(f'{work}/model').digest[:8]}"


def same_labels(work: Path, name: str, tmp: Path, *, tile: tuple[int, ...] = (8, 8, 8)) -> None:
    """Those of a volume are those of a plain `segment`."""
    plain = tmp / "plain" / name
    complete("", str(plain), tile=tile, volume=f"{work}/in/{name}", model=f"{work}/model")
    labels = voxels(plain)
    assert labels
    assert voxels(Path(root_of(work)) / name) == labels


def test_finished_volumes_are_segmented_once_and_later_ones_later(work, tmp_path, capsys):
    growing = write_image(work / "in/day/growing.zarr", data=image_of(9))
    last = growing.path / "0/c/2/1/1"
    aside = last.rename(work / "aside")
    first = call(work)
    assert states(first) == {
        "a.zarr": "segmented",
        "b.zarr": "segmented",
        "day/c.ome.zarr": "segmented",
        "day/growing.zarr": "growing",
    }
    assert "0/c/2/1/1, of an outer plane" in reason(first, "day/growing.zarr")
    assert first["status"] == "complete"
    assert first["counts"]["segmented"] == 3
    for name in ("a.zarr", "b.zarr", "day/c.ome.zarr"):
        same_labels(work, name, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in Path(root_of(work)).rglob("*.zarr/**/*")}
    aside.rename(last)

    def only_the_new(**parameters: Any) -> dict[str, Any]:
        assert parameters["volume"] == growing.url
        return segment_here(**parameters)

    second = call(work, only_the_new)
    assert states(second) == dict.fromkeys(states(first), "done") | {"day/growing.zarr": "segmented"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    standing = json.loads(Path(root_of(work), "volumes.json").read_text())
    assert standing["volumes"] == second["volumes"]
    print_watch(first)
    shown = capsys.readouterr().out
    for said in ("growing.zarr", "outer plane", "4 volumes", "1 growing, 3 segmented"):
        assert said in shown


def test_another_model_makes_other_labels(work):
    call(work)
    save_random_model(work / "model", UNetSpec.build(ndim=3, depth=1, base=2), seed=5)
    assert set(states(call(work)).values()) == {"segmented"}
    assert len(list((work / "out").iterdir())) == 2


def test_no_more_than_are_wanted_in_one_call(work):
    assert list(states(call(work, most=1)).values()) == ["segmented", "waiting", "waiting"]
    assert list(states(call(work, most=1)).values()) == ["done", "segmented", "waiting"]


def test_a_marker_says_which_are_finished(work):
    (work / "in/b.zarr/finished.txt").write_text("")
    document = call(work, marker="finished.txt", quiet=1e6)
    assert states(document) == {"a.zarr": "growing", "b.zarr": "segmented", "day/c.ome.zarr": "growing"}
    assert reason(document, "a.zarr") == "no finished.txt in it yet"


def test_a_prefix_that_is_the_volume(work):
    assert states(call(work, prefix=f"{work}/in/a.zarr")) == {"a.zarr": "segmented"}
    assert Path(root_of(work), "a.zarr/0").is_dir()


def test_labels_in_the_prefix_are_no_volumes(work):
    for to in (f"{work}/in", f"{work}/in/labels"):
        assert set(states(call(work, to=to)).values()) == {"segmented"}
        assert set(states(call(work, to=to)).values()) == {"done"}


class TestVolumesThatFail:
    """They are set aside with the reason, and the others are done."""

    def test_whatever_is_wrong_with_one(self, work: Path) -> None:
        write_image(work / "in/aa.zarr", "czyx")
        broken = write_image(work / "in/ab.zarr")
        broken.write("zarr.json", b"{")
        nan = zarr.open_array(write_image(work / "in/ac.zarr").path / "0", mode="r+")
        (work / "in/ac.zarr/0/c/1/1/1").write_bytes(b"damaged")
        assert nan.shape

        def segment(**parameters: Any) -> dict[str, Any]:
            try:
                return segment_here(**parameters)
            except DataError as error:  # as the flow ends with it
                document = {"status": "failed", "stages": {"predict": {"failed": [0]}}}
                raise IncompleteRunError(document, "1 of 1 blocks of predict failed", found=error) from None

        first = call(work, segment)
        assert first["status"] == "failed"
        assert list(states(first).values()) == ["segmented", *["failed"] * 3, *["segmented"] * 2]
        assert "made for another number of channels" in reason(first, "aa.zarr")
        assert "metadata cannot be read" in reason(first, "ab.zarr")
        assert (
            reason(first, "ac.zarr") == "1 of 1 blocks of predict failed (a chunk of this volume is damaged)"
        )
        for name in ("aa", "ab", "ac"):
            failure = json.loads(Path(root_of(work), f"{name}.failed.json").read_text())
            assert failure["volume"] == f"{work}/in/{name}.zarr"
            assert failure["reason"] == reason(first, f"{name}.zarr")
            assert failure["attempts"] == 1
        second = call(work, segment)
        assert second["status"] == "complete"
        assert states(second)["aa.zarr"] == "set aside"
        assert reason(second, "aa.zarr") == reason(first, "aa.zarr")
        assert states(call(work, segment, retry_failed=True))["aa.zarr"] == "failed"
        assert json.loads(Path(root_of(work), "aa.failed.json").read_text())["attempts"] == 2
        # Mended, they are volumes like others.
        write_image(work / "in/ab.zarr", data=image_of(7))
        write_image(work / "in/ac.zarr", data=image_of(8))
        third = call(work, segment)
        assert states(third)["aa.zarr"] == "set aside"
        assert states(third)["ab.zarr"] == "segmented"
        assert not Path(root_of(work), "ab.failed.json").exists()

    def test_a_volume_written_anew_under_its_old_name(self, work: Path) -> None:
        """Its labels are another volume's: neither done, nor overwritten."""
        call(work)
        labels = voxels(Path(root_of(work)) / "a.zarr")
        write_image(work / "in/a.zarr", data=image_of(77))
        document = call(work)
        assert states(document)["a.zarr"] == "failed"
        assert "begun with other parameters" in reason(document, "a.zarr")
        assert voxels(Path(root_of(work)) / "a.zarr") == labels
        shutil.rmtree(Path(root_of(work)) / "a.zarr")
        assert states(call(work, retry_failed=True))["a.zarr"] == "segmented"

    @pytest.mark.parametrize(
        ("error", "again"),
        [
            (InputError("these channels do not fit"), "set aside"),
            (DataError("NaN"), "set aside"),
            (KeyError("a mistake of ours"), "set aside"),
            (NoRoomError("the disk is too small"), "failed"),
            (StoreError("permission denied"), "failed"),
            (RunError("the workers died before the first block"), "failed"),
            (IncompleteRunError({"status": "partial", "stages": {}}, "it stopped"), "failed"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
    )
    def test_what_may_pass_is_tried_again(
        self, work: Path, cluster: Path, error: Exception, again: str
    ) -> None:
        def segment(**parameters: Any) -> dict[str, Any]:
            if parameters["volume"].endswith("b.zarr"):
                raise error
            return segment_here(**parameters)

        def both() -> list[str]:
            return list(states(call(work, segment, cluster=str(cluster))).values())

        assert both() == ["segmented", "failed", "segmented"]
        assert both() == ["done", again, "done"]


class TestWhatAllNeed:
    """Where that is gone the watch stops with the reason, and no volume is set aside."""

    def stopped(self, work: Path, take_away: Callable[[], object], match: str, **values: Any) -> None:
        def segment(**parameters: Any) -> dict[str, Any]:
            if parameters["volume"].endswith("a.zarr"):
                return segment_here(**parameters)
            take_away()
            raise InputError("something that looks like the volume's fault")

        with pytest.raises(IncompleteRunError, match=match) as stop:
            watch_with(config(work, **values), segment, lambda document: None)
        assert stop.value.exit_code == 1
        assert stop.value.document["status"] == "partial"
        assert states(stop.value.document) == {
            "a.zarr": "segmented",
            "b.zarr": "waiting",
            "day/c.ome.zarr": "waiting",
        }
        assert not list((work / "out").rglob("*.failed.json"))

    def test_the_model(self, work: Path) -> None:
        self.stopped(work, lambda: shutil.rmtree(work / "model"), "the watch stopped: no such model")

    def test_the_prefix(self, work: Path) -> None:
        self.stopped(work, lambda: (work / "in").rename(work / "gone"), "the watch stopped: no such prefix")

    def test_the_cluster(self, work: Path) -> None:
        file = work / "cluster.toml"
        file.write_text('kind = "class"\ncluster_class = "no_such_library.Cluster"\n')
        self.stopped(work, lambda: None, "this cluster class cannot be imported", cluster=str(file))

    def test_the_model_changes(self, work: Path) -> None:
        def segment(**parameters: Any) -> dict[str, Any]:
            document = segment_here(**parameters)
            save_random_model(work / "model", UNetSpec.build(ndim=3, depth=1, base=2), seed=99)
            return document

        with pytest.raises(IncompleteRunError, match="the model was changed under the watch") as stop:
            watch_with(config(work), segment, lambda document: None)
        assert list(states(stop.value.document).values()) == ["segmented", "waiting", "waiting"]


def test_a_volume_that_another_watch_is_at_is_claimed(work):
    place = Store(f"{root_of(work)}/b.zarr")
    with hold(place, every=0.05):
        document = call(work)
    assert states(document)["b.zarr"] == "claimed"
    assert document["status"] == "complete"
    assert states(call(work))["b.zarr"] == "segmented"


def test_one_that_was_claimed_since_the_look_is_claimed(work, monkeypatch):
    """The other watch begins between our look at the lease and our own try to take it."""

    def segment(**parameters: Any) -> dict[str, Any]:
        with hold(Store(parameters["to"]), every=0.05):
            return segment_here(**parameters)

    document = call(work, segment)
    assert set(states(document).values()) == {"claimed"}
    assert document["status"] == "complete"


def test_labels_complete_without_a_note_are_only_noted(work):
    complete("", f"{root_of(work)}/a.zarr", tile=(8, 8, 8), volume=f"{work}/in/a.zarr", model=f"{work}/model")
    assert states(call(work))["a.zarr"] == "done"


def test_ctrl_c_stops_the_watch(work):
    def segment(**parameters: Any) -> dict[str, Any]:
        if parameters["volume"].endswith("b.zarr"):
            raise KeyboardInterrupt
        return segment_here(**parameters)

    with pytest.raises(InterruptionError, match="interrupted after 1 volume;"):
        watch_with(config(work), segment, lambda document: None)
    assert list(states(call(work)).values()) == ["done", "segmented", "segmented"]


def test_other_parameters_are_another_folder(work):
    call(work, most=1)
    with pytest.raises(InputError, match="made with other parameters") as refusal:
        call(work, instances="components")
    assert refusal.value.expected == "instances not given"
    assert refusal.value.found == "instances components"
    assert states(call(work, workers=2, memory="4GiB"))["a.zarr"] == "done"


def test_a_prefix_in_s3(bucket):
    save_random_model(f"{bucket}/model", UNetSpec.build(ndim=3, depth=1, base=2, classes=3), seed=6)
    write_image(f"{bucket}/in/day/a.zarr", data=image_of(0))
    write_image(f"{bucket}/in/b.zarr", "czyx")
    grows = write_image(f"{bucket}/in/c.zarr", shard=True)
    grows.delete(["0/c/1/0/0"])
    assert states(call(bucket, quiet=10.0)) == {
        "b.zarr": "growing",
        "c.zarr": "growing",
        "day/a.zarr": "growing",
    }
    expected = {"b.zarr": "failed", "c.zarr": "growing", "day/a.zarr": "segmented"}
    assert states(call(bucket)) == expected
    assert Store(root_of(bucket)).read("b.failed.json") is not None
    assert states(call(bucket)) == {**expected, "b.zarr": "set aside", "day/a.zarr": "done"}


class TestRefuses:
    """One clear error, exit code 2, nothing written."""

    @pytest.fixture(autouse=True)
    def _nothing_written(self, work: Path) -> Any:
        self.work = work
        yield
        assert not (work / "out").exists()

    def watch(self, run: Run, *options: object, prefix: str = "in", model: str = "model") -> Any:  # noqa: F811
        folders = (self.work / prefix, "--model", self.work / model, "--to", self.work / "out")
        return run("watch", *folders, *options)

    def test_no_prefix(self, run: Run) -> None:  # noqa: F811
        refused(self.watch(run, prefix="absent"), "no such prefix", "absent")

    def test_a_prefix_without_volumes(self, run: Run) -> None:  # noqa: F811
        (self.work / "empty/folder").mkdir(parents=True)
        refused(self.watch(run, prefix="empty"), "there are no volumes under this prefix", "empty")
        refused(self.watch(run, prefix="model"), "there are no volumes under this prefix")

    def test_no_model(self, run: Run) -> None:  # noqa: F811
        refused(self.watch(run, model="absent"), "no such model")

    def test_options_that_say_nothing(self, run: Run) -> None:  # noqa: F811
        refused(self.watch(run, "--min-size", "5"), "how instances are made")
        refused(self.watch(run, "--quiet", "-1"), "--quiet")
        refused(self.watch(run, "--tile", "8"), "--tile")

    def test_a_prefix_without_volumes_in_s3(self, run: Run, bucket: str) -> None:  # noqa: F811
        Store(f"{bucket}/nothing").write("notes.txt", b"x")
        to = ("--model", self.work / "model", "--to", self.work / "out")
        refused(run("watch", f"{bucket}/nothing", *to), "there are no volumes under this prefix")
        refused(run("watch", f"{bucket}/absent", *to), "no such prefix")
