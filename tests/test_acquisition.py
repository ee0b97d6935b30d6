"""Images under a prefix: found without a look at their chunks; finished or growing, told object by object."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from s3_server import environment, faulty_proxy

from unet_core.acquisition import Found, Patience, find_volumes, stamp, why_growing
from unet_core.errors import InputError, StoreError
from unet_core.ledger import FOLDER, set_status
from unet_core.volumes import Store, outer_keys

SIZES = {"t": 2, "c": 2, "z": 6, "y": 8, "x": 8}
CHUNK = {"t": 1, "c": 1, "z": 2, "y": 4, "x": 4}
HOUR = 3600.0


def write_image(
    place: str | Path,
    axes: str = "zyx",
    *,
    sizes: dict[str, int] = SIZES,
    version: str = "0.5",
    separator: str = "/",
    shard: bool = False,
    levels: int = 1,
    data: np.ndarray | None = None,
) -> Store:
    """An OME-Zarr image as other programs write it; every chunk holds signal."""
    store, v3 = Store(place), version == "0.5"
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [2.0**n] * len(axes)}]}
        for n in range(levels)
    ]
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    multiscales = [{"version": version, "axes": described, "datasets": datasets, "name": "image"}]
    group = zarr.open_group(store.zarr(read_only=False), mode="w", zarr_format=3 if v3 else 2)
    if v3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    else:
        group.attrs["multiscales"] = multiscales
    for level in range(levels):
        shape = tuple(sizes[a] >> (level if a in "zyx" else 0) for a in axes)
        chunks = tuple(CHUNK[a] for a in axes)
        options: dict[str, Any] = {"shards": tuple(2 * c for c in chunks)} if shard else {}
        if v3:
            options["chunk_key_encoding"] = {"name": "default", "separator": separator}
        else:
            options["chunk_key_encoding"] = {"name": "v2", "separator": separator}
        array = group.create_array(str(level), shape=shape, chunks=chunks, dtype="u1", **options)
        array[...] = np.ones(shape, "u1") if data is None else data
    return store


def found_at(store: Store) -> Found:
    (found,) = find_volumes(store, apart=Store("/nowhere"), notes=[])
    return found


def names(prefix: Store, notes: list[str] | None = None, apart: str = "/nowhere") -> list[str]:
    return [f.path for f in find_volumes(prefix, apart=Store(apart), notes=[] if notes is None else notes)]


def later(seconds: float = HOUR, *, marker: str | None = None) -> Patience:
    """Ten minutes of patience, so many seconds after now."""
    return Patience(marker, 600.0, lambda: time.time() + seconds)


LAYOUTS = {
    "v2 flat": {"version": "0.4", "separator": "."},
    "v2 nested": {"version": "0.4", "separator": "/"},
    "v3": {},
    "v3 flat": {"separator": "."},
    "v3 sharded": {"shard": True},
}


def object_key(layout: str, index: tuple[int, ...]) -> str:
    """By the rules of both specifications."""
    separator = "." if "flat" in layout else "/"
    numbers = separator.join(map(str, index))
    return f"0/{numbers}" if layout.startswith("v2") else f"0/c{separator}{numbers}"


@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx", "tyx"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_object_that_is_missing_counts_where_it_is_of_an_outer_plane(tmp_path, layout, axes):
    store = write_image(tmp_path / "image.zarr", axes, **LAYOUTS[layout])
    found = found_at(store)
    assert why_growing(found, later()) is None
    size = 2 if "sharded" in layout else 1
    counts = [-(-SIZES[a] // (CHUNK[a] * size)) for a in axes]
    z = axes.find("z")
    outer = 0
    for index in product(*map(range, counts)):
        path = store.path / object_key(layout, index)
        aside = path.rename(tmp_path / "aside")
        reason = why_growing(found, later())
        if z < 0 or index[z] in (0, counts[z] - 1):
            assert reason is not None
            assert reason.startswith(f"{object_key(layout, index)}, of an outer plane, is not there")
            assert "--marker" in reason
            outer += 1
        else:
            assert reason is None
        aside.rename(path)
    assert outer == len(list(outer_keys(zarr.open_array(store.path / "0", mode="r"), axes)))


def test_an_object_without_bytes_is_missing(tmp_path):
    store = write_image(tmp_path / "image.zarr")
    (store.path / "0/c/2/1/1").write_bytes(b"")
    assert "0/c/2/1/1, of an outer plane" in why_growing(found_at(store), later())


def test_whatever_was_written_lately_makes_it_grow(tmp_path):
    store = write_image(tmp_path / "image.zarr", "czyx")
    found = found_at(store)
    assert why_growing(found, later(599)) is not None
    assert why_growing(found, later(601)) is None
    before = {path: path.stat().st_mtime for path in store.path.rglob("*") if path.is_file()}
    written = time.time()
    for path, modified in before.items():
        os.utime(path, (written + 1000, written + 1000))
        reason = why_growing(found, Patience(None, 600.0, lambda: written + 1500))
        assert reason == f"{path.relative_to(store.path)} was written 500 s ago"
        os.utime(path, (modified, modified))


def test_a_copy_that_keeps_old_times_is_as_young_as_it_is(tmp_path):
    store = write_image(tmp_path / "image.zarr")
    for path in store.path.rglob("*"):
        os.utime(path, (0, 0))
    assert "was written" in why_growing(found_at(store), later(0))
    assert why_growing(found_at(store), later()) is None


def test_a_store_whose_clock_is_ahead_is_told_of(tmp_path):
    store = write_image(tmp_path / "image.zarr")
    assert "in the future: the clocks differ" in why_growing(found_at(store), later(-HOUR))


def test_a_marker_alone_decides_where_one_is_named(tmp_path):
    store = write_image(tmp_path / "image.zarr")
    (store.path / "0/c/2/1/1").unlink()
    named = later(0, marker="OME/done.txt")
    assert why_growing(found_at(store), named) == "no OME/done.txt in it yet"
    assert why_growing(found_at(store), later(1e9, marker="OME/done.txt")) is not None
    store.write("OME/done.txt", b"")
    assert why_growing(found_at(store), named) is None


def test_every_level_of_a_pyramid_counts_that_was_begun(tmp_path):
    store = write_image(tmp_path / "image.zarr", levels=2, sizes={**SIZES, "z": 8})
    found = found_at(store)
    assert why_growing(found, later()) is None
    last = store.path / "1/c/1/0/0"
    aside = last.rename(tmp_path / "aside")
    assert why_growing(found, later()).startswith("1/c/1/0/0, of an outer plane")
    aside.rename(last)
    (store.path / "1/zarr.json").unlink()
    assert why_growing(found, later()) is None, "a level that nobody made is not needed"
    with pytest.raises(InputError, match="level 1 is listed"):
        why_growing(found, later(), level=1)
    assert "was written" in why_growing(found, later(0), level=1)


def test_what_ingest_made_is_finished_when_its_record_says_so(tmp_path):
    store = write_image(tmp_path / "image.zarr")
    set_status(store, "partial")
    assert "ingest is not done with it (status partial)" in why_growing(found_at(store), later())
    set_status(store, "complete")
    assert why_growing(found_at(store), later(0)) is None


def test_metadata_that_cannot_be_read_is_being_written_or_damaged(tmp_path):
    store = write_image(tmp_path / "image.zarr")
    text = (store.path / "zarr.json").read_bytes()
    (store.path / "zarr.json").write_bytes(text[:20])
    found = found_at(store)
    assert found.attributes is None
    assert "zarr.json was written" in why_growing(found, later(0))
    with pytest.raises(InputError, match="cannot be read"):
        why_growing(found, later())


def test_images_are_found_at_any_depth_and_nothing_else(tmp_path):
    image = {f"{name}.zarr" for name in ("a", "day/b", "plate.zarr/A/1/0", "day/deep/er/c.ome")}
    for name in image:
        write_image(tmp_path / name)
    for group in ("plate.zarr", "plate.zarr/A", "plate.zarr/A/1"):
        zarr.open_group(tmp_path / group, mode="a").attrs["ome"] = {"version": "0.5"}
    write_image(tmp_path / "day/old.zarr", version="0.4")
    labels = write_image(tmp_path / "a.zarr/labels/cells")
    for labelled in (labels, write_image(tmp_path / "labels.zarr")):
        group = zarr.open_group(labelled.path, mode="a")
        group.attrs["ome"] = {**group.attrs["ome"], "image-label": {}}
    zarr.create_array(tmp_path / "plain.zarr", data=np.ones((4, 4), "u1"))
    zarr.create_array(tmp_path / "plain2.zarr", data=np.ones((4, 4), "u1"), zarr_format=2)
    write_image(tmp_path / ".snapshot/a.zarr")
    write_image(tmp_path / "out/d.zarr")
    write_image(tmp_path / "ours.zarr")
    (tmp_path / "ours.zarr" / FOLDER).mkdir()
    (tmp_path / "ours.zarr" / FOLDER / "run.json").write_text(json.dumps({"kind": "segment"}))
    (tmp_path / "notes.txt").write_text("x")
    notes: list[str] = []
    found = names(Store(tmp_path), notes, apart=str(tmp_path / "out"))
    assert sorted(found) == sorted({*image, "day/old.zarr"})
    assert notes == []
    assert names(Store(tmp_path / "a.zarr")) == [""]


def test_links_are_followed_but_not_in_circles(tmp_path):
    elsewhere = write_image(tmp_path / "elsewhere/a.zarr")
    (tmp_path / "here/below").mkdir(parents=True)
    (tmp_path / "here/a.zarr").symlink_to(elsewhere.path)
    (tmp_path / "here/below/up").symlink_to(tmp_path / "here")
    (tmp_path / "here/itself").symlink_to(tmp_path / "here/itself")
    (tmp_path / "here/gone").symlink_to(tmp_path / "nothing")
    assert names(Store(tmp_path / "here")) == ["a.zarr"]


def test_a_walk_lists_folders_and_never_chunks(bucket, s3_endpoint, monkeypatch):
    sizes = {**SIZES, "z": 60}
    write_image(f"{bucket}/walk/day/a.zarr", sizes=sizes)
    write_image(f"{bucket}/walk/day/b.zarr", version="0.4", separator="/", sizes=sizes)
    with faulty_proxy(s3_endpoint) as proxy:
        for variable, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(variable, value)
        assert names(Store(f"{bucket}/walk")) == ["day/a.zarr", "day/b.zarr"]
        assert len(proxy.seen) <= 10
        assert not [path for _, path, _ in proxy.seen if "/c/" in path or "/0/" in path]


def test_a_folder_that_cannot_be_looked_into_hides_no_other(bucket, s3_endpoint, monkeypatch):
    for name in ("a.zarr", "secret/b.zarr", "z.zarr"):
        write_image(f"{bucket}/refused/{name}")
    with faulty_proxy(s3_endpoint) as proxy:
        for variable, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(variable, value)
        proxy.decide = lambda method, path: "403 AccessDenied" if "secret" in path else None
        notes: list[str] = []
        assert names(Store(f"{bucket}/refused"), notes) == ["a.zarr", "z.zarr"]
        assert len(notes) == 1
        assert notes[0].startswith("secret: not looked into: the store refuses access")
        proxy.decide = lambda method, path: "403 AccessDenied"
        with pytest.raises(StoreError, match="refuses access"):
            names(Store(f"{bucket}/refused"))


def test_a_store_tells_its_own_time(bucket, tmp_path):
    for store in (Store(f"{bucket}/clock"), Store(tmp_path / "not/there")):
        before = time.time()
        assert before - 1.1 <= store.clock() <= time.time() + 0.1
        assert not store.exists()


Change = Callable[[Path], object]
CHANGES: dict[str, Change] = {
    "metadata of the group": lambda path: (path / "zarr.json").write_bytes((path / "zarr.json").read_bytes()),
    "metadata of the array": lambda path: (path / "0/zarr.json").unlink(),
    "the marker": lambda path: (path / "done").write_text("x"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stamp_changes_with_what_every_writer_writes(tmp_path, change):
    found = found_at(write_image(tmp_path / "image.zarr"))

    def now(also: str = "") -> str:
        return stamp(found, marker="done", level=0, also=also)

    before = now()
    assert now() == before
    assert now("other parameters") != before
    time.sleep(0.01)
    CHANGES[change](found.store.path)
    assert now() != before
    assert stamp(replace(found, attributes=None), marker=None, level=0, also="") != before
